"""The tiny tasks of tests/training, and what CUDA needs to add in a fixed order."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))  # for tasks.py
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at CUDA's first matrix product


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that add in a fixed order; an operation that has none is an error that names it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
