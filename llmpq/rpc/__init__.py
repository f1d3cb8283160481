"""How the processes talk: channels, servers, and errors as gRPC statuses."""

from llmpq.rpc.channel import CONTROL_DEADLINE_S, open_channel
from llmpq.rpc.server import RunningServer, announce, serving, until_signal
from llmpq.rpc.status import error_from_rpc, rpc_errors

__all__ = [
    "CONTROL_DEADLINE_S",
    "RunningServer",
    "announce",
    "error_from_rpc",
    "open_channel",
    "rpc_errors",
    "serving",
    "until_signal",
]
