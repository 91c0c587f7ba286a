"""Versions, device, threads and settings of PyTorch, which can change the last bits of a result."""

import importlib.metadata
import platform
from typing import Any

import numpy as np
import torch
from torch import nn

from resilient_heads.evaluation import device_of


def environment_of(model: nn.Module) -> dict[str, str]:
    """Return versions, device, vector instructions of the CPU, number of threads, and settings of PyTorch."""
    device = device_of(model)
    return {
        "resilient_heads": _version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        **_settings(device),
    }


def _settings(device: torch.device) -> dict[str, str]:
    """Return the settings of PyTorch that choose kernels or number formats."""
    kind = device.type
    backends: Any = torch.backends
    # For PyTorch, attention on the CPU obeys the switches of the GPU's kernels, too.
    attention = {"flash": backends.cuda.flash_sdp_enabled(), "math": backends.cuda.math_sdp_enabled()}
    if kind == "cuda":
        attention["mem_efficient"] = backends.cuda.mem_efficient_sdp_enabled()
        attention["cudnn"] = backends.cuda.cudnn_sdp_enabled()
    return {
        "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off",
        "default_dtype": str(torch.get_default_dtype()),
        "float32_precision": _float32_precision(kind),
        "denormals": "kept" if torch.full((1,), 1e-40, dtype=torch.float32).mul(1.0).item() else "flushed",
        "deterministic_algorithms": _on(torch.are_deterministic_algorithms_enabled()),
        "mkldnn": _on(backends.mkldnn.is_available() and backends.mkldnn.enabled),
        "attention": ", ".join(name for name, enabled in attention.items() if enabled),
        "quantized_engine": str(backends.quantized.engine),
        **(_settings_of_cudnn() if kind == "cuda" else {}),
    }


def _settings_of_cudnn() -> dict[str, str]:
    """Return the settings of the kernels for convolutions on a GPU."""
    names = [name for name in ("enabled", "benchmark", "deterministic") if getattr(torch.backends.cudnn, name)]
    return {"cudnn": ", ".join(names)}


def _float32_precision(kind: str) -> str:
    """Return the precision inside operations on float32 tensors, such as ``"matmul ieee, conv tf32, rnn tf32"``."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # PyTorch before 2.9
        tf32 = [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32] if kind == "cuda" else []
        return ", ".join([torch.get_float32_matmul_precision(), *(f"tf32 {_on(allowed)}" for allowed in tf32)])
    library = backends.cudnn if kind == "cuda" else backends.mkldnn
    places = {"matmul": backends.cuda.matmul if kind == "cuda" else library.matmul}
    places |= {"conv": library.conv, "rnn": library.rnn}
    defaults = [library.fp32_precision, backends.fp32_precision, "ieee"]
    chosen = {name: [place.fp32_precision, *defaults] for name, place in places.items()}
    return ", ".join(f"{name} {next(one for one in found if one != 'none')}" for name, found in chosen.items())


def _on(switch: bool) -> str:
    """Return a switch as a word."""
    return "on" if switch else "off"


def _version() -> str:
    """Return the installed version of this library."""
    try:
        return importlib.metadata.version("resilient-heads")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
