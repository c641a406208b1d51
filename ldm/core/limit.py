"""A setting that may be infinite, which means no limit. Every other number in a config must be finite."""

from __future__ import annotations

from typing import Annotated

Limit = Annotated[float, "inf = none"]
