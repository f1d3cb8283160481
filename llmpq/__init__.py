"""llmpq: serve a large language model over unlike devices, as a mesh of gRPC services.

`Client` and `SyncClient` are loaded when they are first asked for: services import this package and need neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpq.batch import Batch, BatchState, Cluster, Result
    from llmpq.client import Client
    from llmpq.errors import MeshError
    from llmpq.plan import LengthBucket, Plan, PlanOptions
    from llmpq.sync_client import SyncClient

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchState",
    "Client",
    "Cluster",
    "LengthBucket",
    "MeshError",
    "Plan",
    "PlanOptions",
    "Result",
    "SyncClient",
    "__version__",
]

_MODULE_OF = {
    "Batch": "llmpq.batch",
    "BatchState": "llmpq.batch",
    "Client": "llmpq.client",
    "Cluster": "llmpq.batch",
    "LengthBucket": "llmpq.plan",
    "MeshError": "llmpq.errors",
    "Plan": "llmpq.plan",
    "PlanOptions": "llmpq.plan",
    "Result": "llmpq.batch",
    "SyncClient": "llmpq.sync_client",
}


def __getattr__(name: str) -> object:
    """Loads a public name from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'llmpq' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)
