"""Types of settings that several rooms share, without torch: command lines have them in their help."""

from __future__ import annotations

from typing import Annotated, Literal

Limit = Annotated[float, "inf = none"]
"""A number that may be infinite, which means that there is no limit; every other number of a config is finite."""
Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""Of float32 products, as `torch.set_float32_matmul_precision` has them."""
