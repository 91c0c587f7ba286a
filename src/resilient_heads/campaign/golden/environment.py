"""Versions, device and threads, which can change the last bits of a result."""

import importlib.metadata
import platform

import numpy as np
import torch
from torch import nn

from resilient_heads.evaluation import device_of


def environment_of(model: nn.Module) -> dict[str, str]:
    """Return versions, device, vector instructions of the CPU and number of threads."""
    device = device_of(model)
    return {
        "resilient_heads": _version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def _version() -> str:
    """Return the installed version of this library."""
    try:
        return importlib.metadata.version("resilient-heads")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
