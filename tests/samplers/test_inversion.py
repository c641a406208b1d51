"""DDIM inversion on exact denoisers: the noise that it finds is the one that DDIM draws the sample from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import Karras, Trailing
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.ddim import DDIM
from ldm.samplers.inversion import invert

every_process = pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)


def times(process: NoiseProcess, steps: int) -> torch.Tensor:
    """A usual grid of the process; trailing times of EDM's would end at sigma = 2, where a step to the data is far."""
    return (Karras() if process.kind == "edm" else Trailing()).times(process, steps)


def started(process: NoiseProcess, t: torch.Tensor) -> torch.Tensor:
    """Samples at t of noise from -2.5 to 2.5 standard deviations."""
    return process.sigma(t) * torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]


@every_process
def test_drawn_again_is_the_same_for_gaussian_data(process: NoiseProcess, gaussian: Callable, no_noise: Callable) -> None:
    world, grid = gaussian(process, 0.4, 0.7), times(process, 20)
    x0 = torch.linspace(-1, 2, 21, dtype=torch.float64)[:, None]
    found = invert(world.denoise, x0, grid, process, iterations=15)
    assert_close(DDIM().sample(world.denoise, found, grid, process, no_noise), x0, rtol=0, atol=1e-6)


@every_process
def test_the_noise_of_a_drawn_sample_is_the_one_that_it_was_drawn_from(
    process: NoiseProcess, mixture: Callable, no_noise: Callable
) -> None:
    world, grid = mixture(process), times(process, 40)
    start = started(process, grid[0])
    drawn = DDIM().sample(world.denoise, start, grid, process, no_noise)

    def error(iterations: int) -> float:
        return (invert(world.denoise, drawn, grid, process, iterations) - start).abs().max().item() / process.sigma(grid[0]).item()

    assert error(3) < min(5e-3, error(1) / 5)


def test_it_counts_steps_and_evaluations_and_refuses_none(gaussian: Callable) -> None:
    process = NoiseProcess.kinds()["rectified_flow"]()
    world, steps, asked = gaussian(process, 0.0, 1.0), [], []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> Estimate:
        asked.append(t.unique().item())
        return world.denoise(x, t)

    grid = Trailing().times(process, 5)
    invert(denoise, torch.zeros(2, 1, dtype=torch.float64), grid, process, 2, lambda step: steps.append((step.done, step.steps)))
    assert steps == [(i, 5) for i in range(1, 6)]
    assert asked == [t for t in sorted(grid[:-1].tolist()) for _ in range(2)]  # those that DDIM evaluates, each twice
    with pytest.raises(UserError, match="at least 1 iteration"):
        invert(denoise, torch.zeros(2, 1), grid, process, 0)
