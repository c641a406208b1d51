"""What a run says of itself before and soon after it starts."""

from __future__ import annotations

import re

import torch
from tasks import train_config

from ldm.training.preflight import SPEED_STEPS, sizes, speed


def test_a_trained_parameter_takes_20_bytes_and_a_frozen_one_4() -> None:
    config = train_config(steps=5)
    said = sizes({"denoiser": 2**30, "first_stage": 2**29}, 2**30, config, first_step=3)
    assert "denoiser 1073.74M, first_stage 536.87M; weights and optimizer 22.00 GiB" in said and said.endswith("batch 7; step 3 of 5")
    assert sizes({"denoiser": 1}, 1, config, first_step=6).endswith("finished at step 5")


def test_speed_and_what_is_left() -> None:
    said = speed(train_config(steps=70), SPEED_STEPS, 20.0, torch.device("cpu"))  # 10 steps of 7 samples
    assert said.startswith("speed: 3.5 samples/s; about 2 minutes left, finished near ")
    most = float(re.search(r"at most (\d+\.\d\d) GiB", said)[1])
    assert 0.05 < most < 500  # of this process: torch alone is hundreds of MiB
