"""llama.cpp's RPC servers, one of one thread on each core, and a model's layers spread over them evenly.

The Python package does not name these functions; its libraries have them if it was built with GGML_RPC=ON.
"""

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL

import llama_cpp

_START_S = 30.0
_PR_SET_PDEATHSIG = 1


def devices(num_servers: int) -> ctypes.Array[ctypes.c_void_p]:
    """Starts servers that end with this process; returns their devices, and a null behind them."""
    cores = sorted(os.sched_getaffinity(0))
    ports = [_free_port() for _ in range(num_servers)]
    for port, core in zip(ports, cores, strict=False):
        subprocess.Popen([sys.executable, __file__, str(port), str(core)])  # noqa: S603 it is this file
    rpc, base = _library("ggml-rpc"), _library("ggml-base")
    found = [_device(rpc, base, port) for port in ports]
    return (ctypes.c_void_p * (num_servers + 1))(*found, None)


def place_on(found: ctypes.Array[ctypes.c_void_p], parameters: llama_cpp.llama_model_params) -> None:
    """Has all layers of a model put on the devices."""
    parameters.devices = ctypes.cast(found, ctypes.c_void_p)
    parameters.n_gpu_layers = 999


def serve(port: int, core: int) -> None:
    """One server on one core; ends with the process that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, SIGKILL)
    os.sched_setaffinity(0, {core})
    rpc, base = _library("ggml-rpc"), _library("ggml")
    base.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    cpu = (ctypes.c_void_p * 1)(base.ggml_backend_dev_by_type(0))
    rpc.ggml_backend_rpc_start_server.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    rpc.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, 1, 1, cpu)


def _device(rpc: ctypes.CDLL, base: ctypes.CDLL, port: int) -> int:
    """The device of the server at a port, once it listens."""
    deadline = time.monotonic() + _START_S
    while not _listens(port):
        if time.monotonic() > deadline:
            raise RuntimeError(f"llama.cpp's RPC server did not listen within {_START_S:g} s")
        time.sleep(0.05)
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    registry = rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode())
    return base.ggml_backend_reg_dev_get(registry, 0)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"lib{name}.so"))


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
