"""Half precision, channels-last and torch.compile change how a step is computed, not what is learned."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from tasks import TASKS, autoencoder_task, numbers_of, train_config
from torch import Tensor, nn

from ldm.core.distributed import World
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.training.engine import _Engine
from ldm.training.run_folder import RunFolder

CPU = torch.device("cpu")
STEPS = 3
# How far float32 may walk from the CPU's way, and its losses. Between devices: a key's bias has a gradient of rounding only, and Adam goes
# by its sign.
WAY, LOSSES = {"cpu": 2e-3, "cuda": 5e-2}, {"cpu": 1e-5, "cuda": 1e-4}
each_task = pytest.mark.parametrize("which", TASKS)


def engine_of(which: str, device: torch.device, **changes: object) -> _Engine:
    config, alone = train_config(steps=STEPS, **changes), World(0, 1, device)
    return _Engine(TASKS[which](alone, config), config, RunFolder(Path("unused"), False), 0, alone)


def weights(engine: _Engine) -> Tensor:
    return torch.cat([p.detach().flatten() for module in engine.task.trained.values() for p in module.parameters()])


def walk(engine: _Engine) -> tuple[Tensor, list[float]]:
    """How far all weights move in some steps, and the steps' losses."""
    start, batches = weights(engine), engine.task.batches(1)
    losses = [numbers_of(engine, step, next(batches))["loss"] for step in range(1, STEPS + 1)]
    return (weights(engine) - start).cpu(), losses


@functools.cache
def plain(which: str) -> tuple[Tensor, list[float]]:
    return walk(engine_of(which, CPU))


def gap(which: str, found: tuple[Tensor, list[float]]) -> tuple[float, float]:
    """Distance to the CPU's float32 way, as a share of its length; largest relative difference of the losses."""
    way, losses = plain(which)
    share = ((found[0] - way).norm() / way.norm()).item()
    return share, max(abs(a - b) / b for a, b in zip(found[1], losses, strict=True))


@each_task
def test_bfloat16_walks_the_same_way(device: torch.device, which: str) -> None:
    """To 30 % after three steps: Adam steps by the gradient's sign where that is new, and rounding turns small ones."""
    way, losses = gap(which, walk(engine_of(which, device, precision="bf16")))
    assert 1e-2 < way < 0.3  # and it is another precision
    assert losses < 5e-3


@each_task
def test_float16_walks_the_same_way(device: torch.device, which: str) -> None:
    engine = engine_of(which, device, precision="fp16")
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 1.0})  # as after some steps that were skipped
    way, losses = gap(which, walk(engine))
    assert 1e-3 < way < 0.3
    assert losses < 5e-3


@pytest.mark.parametrize("which, scale, group", [("autoencoder", 2.0**9, "autoencoder"), ("diffusion", 2.0**20, "denoiser")])
def test_float16_skips_what_overflows_and_halves_its_scale(device: torch.device, which: str, scale: float, group: str) -> None:
    engine = engine_of(which, device, precision="fp16")
    engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": scale})
    count = sum(p.numel() for p in engine.task.groups[group])
    start, batches = weights(engine), engine.task.batches(1)
    for step in range(1, 20):
        scale = engine.scaler.get_scale()
        numbers = numbers_of(engine, step, next(batches))
        if math.isfinite(numbers[f"gradient_norm/{group}"]):
            break
        assert engine.scaler.get_scale() == scale / 2
        assert torch.equal(weights(engine)[:count], start[:count])
    assert step > 1 and engine.scaler.get_scale() == scale
    assert not torch.equal(weights(engine)[:count], start[:count])


@each_task
def test_channels_last_walks_the_same_way(device: torch.device, which: str) -> None:
    engine = engine_of(which, device, channels_last=True)
    seen: list[bool] = []
    for module in engine.task.trained.values():
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
                part.register_forward_hook(lambda part, x, y: seen.append(y.is_contiguous(memory_format=torch.channels_last)))
    way, losses = gap(which, walk(engine))
    assert seen and all(seen)
    assert way < WAY[device.type] and losses < LOSSES[device.type]


@each_task
def test_all_at_once_walks_the_same_way(device: torch.device, which: str) -> None:
    """As one trains on a GPU: bfloat16, channels-last, micro-batches."""
    way, losses = gap(which, walk(engine_of(which, device, precision="bf16", channels_last=True, accumulate=3)))
    assert 1e-2 < way < 0.3
    assert losses < 5e-3


@each_task
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_walks_the_same_way(device: torch.device, which: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that torch.compile takes, with either task's gradients; and the engine's own backend, which builds C++ for minutes."""
    seen: list[bool] = []
    whole = which != "autoencoder"  # whose last layer is left out
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=whole))
    torch.compiler.reset()
    engine = engine_of(which, device, compile=True)
    for module in engine.task.trained.values():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_pre_hook(lambda *_: seen.append(torch.compiler.is_compiling()))
    way, losses = gap(which, walk(engine))
    assert any(seen)
    assert way < WAY[device.type] and losses < LOSSES[device.type]


def test_a_compiled_autoencoder_meets_its_adversary_late(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then its graph was compiled for steps that go through it once."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    loss = AutoencoderLossConfig(perceptual_weight=0.0, disc_start=STEPS, disc_layers=1, disc_channels=8)
    alone, ways = World(0, 1, device), []
    for compile in (False, True):
        config = train_config(steps=STEPS, compile=compile)
        ways.append(walk(_Engine(autoencoder_task(alone, config, loss), config, RunFolder(Path("unused"), False), 0, alone)))
    (plain_way, plain_losses), (way, losses) = ways
    assert (way - plain_way).norm() < 2e-3 * plain_way.norm()
    assert losses == pytest.approx(plain_losses, rel=1e-5)
