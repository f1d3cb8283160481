"""llmpq: serve a large language model over unlike devices, as a mesh of gRPC services."""

__version__ = "0.1.0"
