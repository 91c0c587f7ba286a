"""What a campaign's figures may depend on beside its choices: the model's weights, versions and device."""

import hashlib
import importlib.metadata
import platform

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.evaluation import device_of


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's state dict: names, shapes and every bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # extra state may be anything
            digest.update(f"{name} {tensor!r};".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
