"""What may be set of an evaluation, by its words and numbers alone: command lines have them in their help, without torch."""

from __future__ import annotations

from typing import Literal

MOST = 50_000  # of a set, unless more are wanted: as many as published numbers use
BITS_IMAGES = 64  # where the user does not say how many
TOLERANCE = 1e-4  # a third of the evaluations that the published 1e-5 takes, for the same three decimals
Variance = Literal["small", "large"]
