"""The device of this process: what it is, and how it computes."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from llmpq.device import DeviceDescription
from llmpq.errors import InvalidInputError
from quantizer.linear import supported_schemes
from quantizer.native.library import kernels
from stage_server.config import StageConfig

#: Share of a device's free memory that a stage takes where no budget is given.
_DEFAULT_BUDGET_SHARE = 0.8


@dataclass(frozen=True)
class ComputeDevice:
    """A torch device with the type it computes in."""

    torch_device: torch.device
    compute_dtype: torch.dtype
    description: DeviceDescription


def open_device(config: StageConfig) -> ComputeDevice:
    """Finds the device that the configuration names.

    Raises:
        InvalidInputError: There is no such device on this host.
    """
    if config.device == "cpu":
        return _open_cpu(config)
    return _open_cuda(config)


def _open_cpu(config: StageConfig) -> ComputeDevice:
    device = torch.device("cpu")
    torch.set_num_threads(len(config.cores) or torch.get_num_threads())
    memory = psutil.virtual_memory()
    return ComputeDevice(
        device,
        torch.float32,
        DeviceDescription(
            kind="cpu",
            name=_cpu_name(),
            cpu_class=config.cpu_class,
            num_threads=torch.get_num_threads(),
            memory_total_bytes=memory.total,
            memory_budget_bytes=config.memory_budget or int(memory.available * _DEFAULT_BUDGET_SHARE),
            schemes=supported_schemes(device),
            activation_bytes=4,
            screens_head=kernels() is not None,
        ),
    )


def _open_cuda(config: StageConfig) -> ComputeDevice:
    if not re.fullmatch(r"cuda:\d+", config.device):
        raise InvalidInputError(f"Device '{config.device}' is neither cpu nor cuda:N.", subject="device")
    device = torch.device(config.device)
    if device.index is None or device.index >= torch.cuda.device_count():
        raise InvalidInputError(
            f"Device {config.device} is not there: torch sees {torch.cuda.device_count()} CUDA devices.",
            subject="device",
        )
    torch.cuda.set_device(device)  # for this thread, which else would open another device beside it
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    has_bfloat16 = properties.major >= 8  # noqa: PLR2004 Ampere
    return ComputeDevice(
        device,
        torch.bfloat16 if has_bfloat16 else torch.float16,
        DeviceDescription(
            kind="cuda",
            name=properties.name,
            cpu_class="",
            num_threads=0,
            memory_total_bytes=total,
            memory_budget_bytes=config.memory_budget or int(free * _DEFAULT_BUDGET_SHARE),
            schemes=supported_schemes(device),
            activation_bytes=2,
        ),
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
