"""Client channels with the mesh's limits, keepalive and retry policy."""

import json

import grpc

#: Deadline of a unary control call.
CONTROL_DEADLINE_S = 10.0
#: Largest payload of one message; frames of the data plane are cut to stay below (`llmpq.frame_chunks`).
MAX_PAYLOAD_BYTES = 4 * 2**20
#: Largest message: a payload and its header. A limit is a bug detector; do not lift it.
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 2**20

#: Ping idle connections well inside the usual NAT and load-balancer timeouts; servers permit it (see server.py).
KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

_RETRY_UNAVAILABLE = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
    ],
}

CONTROL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.service_config", json.dumps(_RETRY_UNAVAILABLE)),
)


def open_channel(address: str, *, is_data_plane: bool = False) -> grpc.aio.Channel:
    """Opens a channel to `host:port`; use it as an async context manager.

    Args:
        address: host:port.
        is_data_plane: Give the channel a connection of its own, so that a large activation never delays a control
            call, and no retries: a frame sent twice would corrupt a KV cache.
    """
    if not is_data_plane:
        return grpc.aio.insecure_channel(address, options=CONTROL_OPTIONS)
    options = [option for option in CONTROL_OPTIONS if option[0] != "grpc.service_config"]
    options += [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)
