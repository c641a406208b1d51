"""Where tensors lie: the device that a user names, among those that this machine has."""

from __future__ import annotations

import torch

from ldm.core.errors import UserError
from ldm.core.settings import check_device_name


def find_device(name: str = "auto") -> torch.device:
    """The device of a name; auto = CUDA, then Apple's GPU, then the CPU.

    Raises:
        UserError: not a device's name, see `check_device_name`; a device that is not on this machine.
    """
    check_device_name(name)
    there = devices()
    if name == "auto":
        return torch.device(there[0].partition(":")[0])
    if name not in there and f"{name}:0" not in there:
        raise UserError(f"device {name!r} is not available here; available: {', '.join(there)}. Name one of these, or auto")
    return torch.device(name)


def devices() -> tuple[str, ...]:
    """Names of this machine's devices, the CPU last."""
    cuda = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    return (*cuda, *["mps"] * torch.backends.mps.is_available(), "cpu")


def finest_float(device: torch.device) -> torch.dtype:
    """float64; float32 on Apple's GPUs, which have nothing finer."""
    return torch.float32 if device.type == "mps" else torch.float64
