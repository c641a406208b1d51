"""Which rooms of the tests are marked `dependency`, so that they run with the oldest releases too."""

from __future__ import annotations

# Rooms whose tests depend on how torch or another library behaves, and those that do arithmetic or run whole scripts: every room is in one.
DEPENDENCY_ROOMS = (
    "checkpoints", "conditioning", "config", "data", "first_stage", "interop", "losses", "metrics", "networks", "pretrained", "training",
)  # fmt: skip
OTHER_ROOMS = ("app", "core", "diffusion", "evaluation", "gpu", "guidance", "mutants", "pipelines", "samplers", "web")
