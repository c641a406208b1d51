"""What may be said of a foreign file, by its words alone: command lines have them in their help, without torch."""

from __future__ import annotations

from typing import Literal

PredictionName = Literal["eps", "v", "x0"]
