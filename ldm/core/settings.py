"""Types of settings that several rooms share, without torch: command lines have them in their help."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from ldm.core.errors import UserError

Limit = Annotated[float, "inf = none"]
"""A number that may be infinite, which means that there is no limit; every other number of a config is finite."""
Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""Of float32 products, as `torch.set_float32_matmul_precision` has them."""
DEVICES = "auto, cpu, cuda, cuda:N or mps"


def check_device_name(name: object) -> None:
    """Whether this machine has such a device is not looked at.

    Raises:
        UserError: not one of DEVICES.
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"unknown device {str(name)!r}; allowed: {DEVICES} (N is a GPU's number, from 0)")
