"""The keys that choose kernels reach torch, and a run of its own chooses anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ldm.app.training_run import choose_kernels
from ldm.training.config import TrainConfig


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "as it was")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def test_kernels_are_as_the_config_says() -> None:
    for deterministic, precision in ((True, "high"), (False, "medium"), (False, "highest")):
        choose_kernels(TrainConfig(steps=1, batch_size=1, deterministic=deterministic, matmul_precision=precision))
        assert torch.are_deterministic_algorithms_enabled() == torch.backends.cudnn.deterministic == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
        assert torch.get_float32_matmul_precision() == precision
