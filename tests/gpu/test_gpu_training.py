"""Training on a GPU against the CPU: a step of every task, the same seed twice, killed and resumed. Precision: tests/training."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed_run
import pytest
import tasks
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.core.distributed import World
from ldm.core.precision import Precision, autocast
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.losses.perceptual import Perceptual
from ldm.training.engine import _Engine
from ldm.training.run_folder import RunFolder
from ldm.training.state import open_state

CPU = torch.device("cpu")


class StandIn(nn.Module):
    """What `Perceptual` asks of an lpips.LPIPS, two layers deep and with random weights: VGG16's may not be at hand."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.lins = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in (8, 16))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.rand(p.shape, generator=draw) - (0.5 if p.shape[0] > 1 else 0.0))

    def scaling_layer(self, images: Tensor) -> Tensor:
        return images / 0.45

    def net(self, images: Tensor) -> list[Tensor]:
        first = self.first(images).relu()
        return [first, self.second(first).relu()]


@pytest.fixture(autouse=True)
def with_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more task: all terms of stage one's loss at once, its weights balanced by the last layer's gradients."""
    loss = AutoencoderLossConfig(perceptual_weight=1.0, disc_start=1, disc_layers=1, disc_channels=8, learn_logvar=True)
    monkeypatch.setitem(tasks.TASKS, "autoencoder_lpips", functools.partial(tasks.autoencoder_task, loss=loss, lpips=StandIn()))


every_task = pytest.mark.parametrize("which", [*tasks.TASKS, "autoencoder_lpips"])


def apart(here: Tensor, there: Tensor, least: float = 0.0) -> float:
    """Distance of two tensors as a share of the second's length, or of `least` where that is more."""
    return ((here.cpu() - there.cpu()).norm() / there.cpu().norm().clamp(min=least)).item()


@every_task
def test_a_step_has_the_cpus_gradients(device: torch.device, which: str, tmp_path: Path) -> None:
    """Every parameter's in float32, generator's and discriminator's, to 1e-3; and every number of the log.

    Gradients that are zero but for rounding, those of the keys' biases, are compared with a hundredth of the largest.
    """
    here, there = (tasks.gradients_of_a_step(which, World(0, 1, place), tmp_path) for place in (device, CPU))
    assert here.keys() == there.keys()
    gradients = [name for name in there if "." in name]
    least = 0.01 * max(there[name].norm().item() for name in gradients)
    assert {name: share for name in gradients if (share := apart(here[name], there[name], least)) > 1e-3} == {}
    for name in there.keys() - gradients:
        assert_close(here[name], there[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@every_task
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_trains_to_the_same_bits(
    device: torch.device, which: str, precision: Precision, tmp_path: Path, deterministic: None
) -> None:
    def trained() -> Tensor:
        world, config = World(0, 1, device), tasks.train_config(steps=3, precision=precision, channels_last=True)
        task = tasks.TASKS[which](world, config)
        engine, batches = _Engine(task, config, RunFolder(tmp_path, False), 0, world), task.batches(1)
        for step in (1, 2, 3):
            engine.step(step, next(batches))
        return torch.cat([p.detach().flatten() for module in task.trained.values() for p in module.parameters()])

    first = trained()
    assert first.device.type == device.type and first.isfinite().all()
    assert torch.equal(trained(), first)


def everything_learned(run: Path) -> dict[str, Any]:
    """Of the last step's state: weights, averages, what the optimizers remember, fp16's scale."""
    saved = open_state(run / "state", World(0, 1, CPU))
    assert saved.step == killed_run.STEPS
    return saved.tensors() | {"scaler": saved.progress.scaler}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which, precision", [("autoencoder", "fp16"), ("diffusion", "bf16")])
def test_killed_and_resumed_to_the_same_bits(
    device: torch.device, which: str, precision: Precision, tmp_path: Path, deterministic: None
) -> None:
    """kill -9 two steps after a state."""
    killed_run.train(tmp_path / "whole", which, device, precision)
    worker = [sys.executable, killed_run.__file__, str(tmp_path / "cut"), which, str(device), precision, "11"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are split over threads
    killed = subprocess.run(worker, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert open_state(tmp_path / "cut" / "state", World(0, 1, CPU)).step == 8
    killed_run.train(tmp_path / "cut", which, device, precision)

    whole, resumed = (everything_learned(tmp_path / name) for name in ("whole", "cut"))
    assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.parametrize("precision, of_distance, of_gradient", [("fp32", 1e-5, 1e-3), ("bf16", 1e-2, 0.2), ("fp16", 1e-3, 0.05)])
def test_lpips_is_the_cpus(device: torch.device, precision: Precision, of_distance: float, of_gradient: float) -> None:
    """And it comes along to the device, though it is no submodule. Its gradient jumps where rounding turns a ReLU."""
    draw = torch.Generator().manual_seed(1)
    images, reconstruction = (torch.rand(3, 3, 32, 32, generator=draw) * 2 - 1 for _ in range(2))

    def distance(there: torch.device, precision: Precision) -> tuple[Tensor, Tensor]:
        perceptual, given = Perceptual(StandIn()).to(there), reconstruction.to(there).requires_grad_()
        with autocast(there, precision):
            distances = perceptual(images.to(there), given)
        return distances.detach(), torch.autograd.grad(distances.sum(), given)[0]

    here, there = distance(device, precision), distance(CPU, "fp32")
    assert apart(here[0], there[0]) < of_distance
    assert apart(here[1], there[1]) < of_gradient
