"""A setting that may be infinite, which means that there is no limit; every other number of a config is finite."""

from __future__ import annotations

from typing import Annotated

Limit = Annotated[float, "inf = none"]
