"""Samplers on data where the answer is known: orders, marginals, where they land."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import Grid, Trailing, Uniform
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.sampler import Sampler, step_noise

F64 = torch.float64
PROCESSES = [kind() for kind in NoiseProcess.kinds().values()] + [
    DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02),
    DiscreteVP(spacing="cosine"),
    DiscreteVP(zero_terminal_snr=True),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
SAMPLERS = [kind() for kind in Sampler.kinds().values()] + [DDIM(eta=0.7), DDPM(variance="large")]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def start(*samples: int, shape: tuple[int, ...] = (2, 3)) -> tuple[torch.Tensor, Streams]:
    streams = Streams.of("test", samples=samples)
    return streams.normal("start", shape).double(), streams


@every_process
@pytest.mark.parametrize("sampler, order", [(DDIM(), 1), (DPMpp2M(), 2)], ids=["ddim", "dpmpp_2m"])
def test_converges_on_the_flow_at_its_order(process, sampler, order, gaussian, no_noise) -> None:
    world = gaussian(process, 1.5, 0.7)
    x = torch.tensor([[1.3]], dtype=F64)

    def error(steps: int) -> float:
        grid = torch.linspace(0.9, 0.2, steps + 1, dtype=F64)
        return abs(sampler.sample(world.denoise, x, grid, process, no_noise) - world.flow(x, grid[0], grid[-1])).item()

    assert error(128) < 0.01
    assert abs(math.log2(error(64) / error(128)) - order) < 0.15


@every_process
def test_large_variance_is_right_for_standard_normal_data(process, gaussian, spread_of) -> None:
    """Ho et al. 2020, sec. 3.2: sigma_t^2 = beta_t is optimal for x0 ~ N(0, I). Then x_t is N(0, 1) at every t, for any stride."""
    world = gaussian(process, 0.0, 1.0)
    for t, s in ((0.9, 0.5), (0.5, 0.499), (1.0, 0.05)):
        a, c = spread_of(DDPM(variance="large"), world.denoise, process, t, s)
        assert a**2 + c**2 == pytest.approx(1, rel=1e-9)


@every_process
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=0.5), DDIM(eta=1.0)], ids=repr)
def test_small_variance_is_right_for_one_point(process, sampler, gaussian, spread_of) -> None:
    """The same, the other end: for data at one point x_s has the deviation sigma_s, whatever share of it is fresh."""
    world = gaussian(process, 2.0, 0.0)
    for t, s in ((0.9, 0.5), (0.5, 0.499), (1.0, 0.05)):
        (a, c), (sigma_t, sigma_s) = spread_of(sampler, world.denoise, process, t, s), process.sigma(torch.tensor([t, s], dtype=F64))
        assert (a * sigma_t).item() ** 2 + c**2 == pytest.approx(sigma_s.item() ** 2, rel=1e-9)


@every_process
def test_eta_is_the_share_of_fresh_noise(process, gaussian, spread_of) -> None:
    """DDIM, eq. 16: c = eta sqrt((1 - bar_s) / (1 - bar_t)) sqrt(1 - bar_t / bar_s)."""
    world = gaussian(process, 0.5, 0.7)
    bar_t, bar_s = process.alpha(torch.tensor([0.8, 0.6], dtype=F64)).square().tolist()
    for eta in (0.0, 0.3, 1.0):
        _, c = spread_of(DDIM(eta=eta), world.denoise, process, 0.8, 0.6)
        assert c == pytest.approx(eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s), rel=1e-9)


@every_process
def test_ddim_at_eta_1_is_ddpm(process, gaussian) -> None:
    world, (x, streams) = gaussian(process, 0.5, 0.7), start(0, 1)
    grid = Uniform().times(process, 20)
    ancestral = DDPM().sample(world.denoise, x, grid, process, step_noise(streams, x))
    assert_close(DDIM(eta=1.0).sample(world.denoise, x, grid, process, step_noise(streams, x)), ancestral, rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.parametrize("sampler", [DDPM(), DDPM(variance="large"), DDIM(), DDIM(eta=0.5), DPMpp2M()], ids=repr)
def test_makes_the_datas_distribution(process, sampler, gaussian) -> None:
    """x_1 in, N(mean, std^2) out, over a whole trajectory; small strides leave a few percent."""
    world = gaussian(process, 1.5, 0.7)
    x = torch.randn(5000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    mean, std = world.marginal(torch.ones(()), x)
    x = mean + std * x
    draws = torch.Generator().manual_seed(1)
    grid = Uniform().times(process, 120)
    got = sampler.sample(world.denoise, x, grid, process, lambda i: torch.randn(x.shape, dtype=F64, generator=draws))
    assert got.mean().item() == pytest.approx(1.5, abs=0.05)
    assert got.std().item() == pytest.approx(0.7, rel=0.06)


@every_process
@every_sampler
@pytest.mark.parametrize("grid", [kind() for kind in Grid.kinds().values()], ids=lambda g: g.kind)
def test_lands_on_the_last_estimate(process, sampler, grid) -> None:
    """The last step goes to t = 0, where x is the estimated x0, with no noise left; from any grid, at any number of steps."""
    x, streams = start(0, 1)
    for steps in (1, 2, 7):
        seen: list[tuple[torch.Tensor, Estimate]] = []

        def denoise(x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
            alpha, sigma = process.scales(t, x_t)
            x0 = (x_t * 1.3).sin()
            seen.append((t, Estimate(x0, (x_t - alpha * x0) / sigma)))  # noqa: B023
            return seen[-1][1]  # noqa: B023

        got = sampler.sample(denoise, x, grid.times(process, steps), process, step_noise(streams, x))
        assert len(seen) == steps
        assert torch.equal(got, seen[-1][1].x0)
        assert all(t.shape == (2,) for t, _ in seen)
        assert got.isfinite().all()


@every_process
@every_sampler
def test_one_point_is_found(process, sampler, gaussian) -> None:
    x, streams = start(3, 4)
    world = gaussian(process, -0.8, 0.0)
    got = sampler.sample(world.denoise, x, Trailing().times(process, 5), process, step_noise(streams, x))
    assert_close(got, torch.full_like(x, -0.8), rtol=0, atol=1e-12)


def test_dpmpp_2m_is_first_order_where_there_is_no_past(gaussian, no_noise) -> None:
    """One step of DPM-Solver++ (Lu et al. 2022, eq. 14 with k = 1): sigma_s / sigma_t x_t - alpha_s (e^-h - 1) x0, which is DDIM's."""
    world, (x, _) = gaussian(DiscreteVP(), 1.5, 0.7), start(0)
    grid = torch.tensor([0.7, 0.5], dtype=F64)
    assert_close(
        DPMpp2M().sample(world.denoise, x, grid, world.process, no_noise), DDIM().sample(world.denoise, x, grid, world.process, no_noise)
    )


@every_sampler
def test_picture_is_the_same_alone_and_in_a_batch(sampler, gaussian) -> None:
    process = DiscreteVP()
    world, grid = gaussian(process, 0.5, 0.7), Trailing().times(process, 12)

    def draw(*samples: int) -> torch.Tensor:
        x, streams = start(*samples)
        return sampler.sample(world.denoise, x, grid, process, step_noise(streams, x))

    together = draw(5, 6, 7)
    assert_close(draw(6)[0], together[1], rtol=0, atol=1e-12)
    assert_close(draw(7, 5)[0], together[2], rtol=0, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_each_step_has_its_own_noise() -> None:
    x, streams = start(0, shape=(1000,))
    noise = step_noise(streams, x.float())
    assert noise(3).dtype == torch.float32
    assert torch.equal(noise(3), noise(3))
    assert abs((noise(3) * noise(4)).mean()) < 0.15
    assert abs((noise(0) * x).mean()) < 0.15


def test_progress_is_told_after_each_step(gaussian) -> None:
    process = DiscreteVP()
    x, streams = start(0)
    told: list[tuple[int, int]] = []
    grid = Uniform().times(process, 3)
    DDIM().sample(gaussian(process, 0, 1).denoise, x, grid, process, step_noise(streams, x), lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_mistakes_are_named(gaussian) -> None:
    process = DiscreteVP(num_steps=10)
    x, streams = start(0)
    world, noise = gaussian(process, 0, 1), step_noise(streams, x)
    with pytest.raises(UserError, match="at least 1, got 0"):
        DDIM().sample(world.denoise, x, torch.zeros(1), process, noise)
    with pytest.raises(UserError, match="at most the process's 10 steps, got 11"):
        DDPM().sample(world.denoise, x, Uniform().times(process, 11), process, noise)
    with pytest.raises(UserError, match="0 <= eta <= 1, got 1.5"):
        DDIM(eta=1.5)
    with pytest.raises(UserError, match="unknown ddpm variance 'huge'; allowed: large, small"):
        DDPM(variance="huge")
    with pytest.raises(UserError, match="Did you mean 'ddim'"):
        Sampler.of_kind("dim")
