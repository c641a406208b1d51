"""kill -9 at a random step of either stage, the same command again: the same weights to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
STEPS = 24

VAE = f"""
name: tiny-vae
data: {{train: DATA, val: null, size: 16}}
first_stage: {{kind: kl, channels: 16, multipliers: [1, 2], blocks: 1, latent_channels: 2, dropout: 0.1}}
loss: {{perceptual_weight: 0, disc_start: 6, disc_layers: 1, disc_channels: 8}}
train: {{steps: {STEPS}, batch_size: 4, checkpoint_every: 5, sample_every: 100, optimizer: {{learning_rate: 1.0e-3}}}}
"""
LDM = f"""
name: tiny-ldm
data: {{train: DATA, val: null, size: 16, cache_views: 2}}
first_stage: {{checkpoint: FIRST_STAGE}}
denoiser:
  {{kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2, vector_width: 8, dropout: 0.1}}
process: discrete_vp
prediction: eps
weighting: constant
conditioning: {{class: {{kind: class_label, width: 8}}}}
sampling: {{sampler: ddim, steps: 2}}
train: {{steps: {STEPS}, batch_size: 4, checkpoint_every: 5, sample_every: 100, optimizer: {{learning_rate: 1.0e-3}}}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of coloured squares in two class folders."""
    folder = tmp_path_factory.mktemp("kill")
    for number in range(10):
        picture = Image.new("RGB", (20, 20), (25 * number, 255 - 25 * number, 90))
        ImageDraw.Draw(picture).rectangle((number, 3, number + 8, 15), fill=(255, 200, 25 * number))
        path = folder / "data" / ("even" if number % 2 else "odd") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def train(script: str, home: Path, config: str, run: str, kill_at: int | None = None) -> None:
    """One process of a training script; with kill_at it is killed once that many steps are logged."""
    file = home / f"{script}.yaml"
    file.write_text(config.replace("DATA", str(home / "data")).replace("FIRST_STAGE", str(home / "vae" / "checkpoint")))
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--config", str(file), "--run-dir", str(home / run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(home / f"{run}.log", "a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        metrics = home / run / "metrics.jsonl"
        while kill_at is not None and process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= kill_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        code = process.wait(100)
    assert code == (0 if kill_at is None else -signal.SIGKILL), (home / f"{run}.log").read_text()[-2000:]


def final(home: Path, run: str) -> dict[str, Tensor]:
    """Live and averaged weights and optimizer moments of the last state, and the checkpoint's tensors."""
    state = torch.load(home / run / "state" / f"step-{STEPS:08d}" / "state.pt", weights_only=True)
    flat = {f"state.{path}": value for path, value in _tensors(state)}
    for file in sorted((home / run / "checkpoint").glob("*.safetensors")):
        flat |= {f"{file.name}.{name}": value for name, value in load_file(file).items()}
    return flat


def _tensors(tree: object, path: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _tensors(value, f"{path}.{key}")]
    return [(path, tree)] if isinstance(tree, Tensor) else []


@pytest.mark.timeout(300)
def test_both_stages_end_bitwise_equal_after_kills(home: Path) -> None:
    whim = random.Random(time.time_ns())
    for script, config, run in (("train_vae", VAE, "vae"), ("train_ldm", LDM, "ldm")):
        train(script, home, config, run)
        kill_at = whim.randint(1, STEPS - 2)
        train(script, home, config, f"{run}-killed", kill_at)
        train(script, home, config, f"{run}-killed")
        whole, resumed = final(home, run), final(home, f"{run}-killed")
        assert whole.keys() == resumed.keys()
        different = [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])]
        assert not different, f"{script} killed at step {kill_at}: {different[:5]}"
        assert (home / run / "metrics.jsonl").read_text().count("\n") == STEPS
        assert (home / f"{run}-killed" / "metrics.jsonl").read_text().count("\n") == STEPS
