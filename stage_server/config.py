"""Settings of a stage server; flag defaults are read from here."""

from dataclasses import dataclass

from llmpq.address import split_address


@dataclass(frozen=True)
class StageConfig:
    """Settings of one stage server.

    Attributes:
        device: "cpu" or "cuda:N".
        coordinator: host:port to register at; empty to serve without registering.
        listen: host:port to serve on; port 0 picks a free one.
        advertise: host:port at which others reach this process; empty: the address it listens on.
        name: Name of the device in the cluster; empty: made from host, device and port.
        memory_budget: Bytes that weights, KV cache and temporaries may take; 0: 80 % of what is free.
        cpu_class: "avx512", "avx2" or "sse4"; empty: the best that the CPU has.
        cores: CPU cores to run on; empty: all.
    """

    device: str = "cpu"
    coordinator: str = ""
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    name: str = ""
    memory_budget: int = 0
    cpu_class: str = ""
    cores: tuple[int, ...] = ()
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Raises InvalidInputError for an address that is none."""
        for field in ("coordinator", "advertise"):
            if getattr(self, field):
                split_address(getattr(self, field), f"--{field}")
