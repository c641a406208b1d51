"""What a run may be asked, up to the very limits."""

from __future__ import annotations

import pytest

from ldm.core.errors import UserError
from ldm.training.config import OptimizerConfig, TrainConfig


@pytest.mark.parametrize(
    "wrong, least",
    [({"learning_rate": 0.0}, {"learning_rate": 1e-12}), ({"warmup_steps": -1}, {"warmup_steps": 0}),
     ({"weight_decay": -1e-9}, {"weight_decay": 0.0}), ({"final_rate": -1e-9}, {"final_rate": 0.0}),
     ({"final_rate": 1.001}, {"final_rate": 1.0}), ({"clip_norm": 0.0}, {"clip_norm": None}),
     ({"betas": (0.9, 1.0)}, {"betas": (0.0, 0.999)}), ({"betas": (-0.1, 0.9)}, {"betas": (0.0, 0.0)})],
)  # fmt: skip
def test_limits_of_an_optimizer(wrong: dict, least: dict) -> None:
    OptimizerConfig(**least)
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


COUNTS = ("steps", "batch_size", "accumulate", "checkpoint_every", "sample_every", "checkpoint_file_mib", "keep_every")


@pytest.mark.parametrize(
    "wrong, least",
    [*(({name: 0}, {name: 1}) for name in COUNTS), ({"ema_decay": 1.0}, {"ema_decay": 0.0}), ({"ema_decay": -0.1}, {"ema_decay": 0.0}),
     ({"accumulate": 9}, {"accumulate": 8})],
)  # fmt: skip
def test_limits_of_a_run(wrong: dict, least: dict) -> None:
    plain = {"steps": 8, "batch_size": 8}
    TrainConfig(**{**plain, **least})
    with pytest.raises(UserError, match=next(iter(wrong))):
        TrainConfig(**{**plain, **wrong})
