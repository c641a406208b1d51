"""What may be set of a flow's likelihood, by its words and numbers alone: command lines have them in their help, without torch."""

from __future__ import annotations

from typing import Literal

Probe = Literal["rademacher", "gaussian"]
FIRST_NOISE = 1e-3  # sigma / alpha; less than the 2.3e-3 that dequantised pixels have of their own
