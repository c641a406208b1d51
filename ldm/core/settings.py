"""Types of settings that several rooms share, without torch: command lines have them in their help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from ldm.core.errors import UserError

Limit = Annotated[float, "inf = none"]
"""A number that may be infinite, which means that there is no limit; every other number of a config is finite."""
Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""Of float32 products, as `torch.set_float32_matmul_precision` has them."""
Size = tuple[int, int] | int
"""Of an image, in pixels: (height, width), or the side of a square."""
DEVICES = "auto, cpu, cuda, cuda:N or mps"


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


def each_side(size: Size, change: Callable[[int], int]) -> Size:
    """A size whose sides were changed alike."""
    return change(size) if isinstance(size, int) else (change(size[0]), change(size[1]))


def in_pixels(size: Size) -> str:
    """A size for people, height first: 512x1024."""
    height, width = height_width(size)
    return f"{height}x{width}"


def as_config(size: Size) -> str:
    """A size as a config has it: 64, or [512, 1024]."""
    return str(size if isinstance(size, int) else list(size))


def check_device_name(name: object) -> None:
    """Whether this machine has such a device is not looked at.

    Raises:
        UserError: not one of DEVICES.
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"unknown device {str(name)!r}; allowed: {DEVICES} (N is a GPU's number, from 0)")
