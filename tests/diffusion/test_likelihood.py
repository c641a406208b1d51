"""Exact likelihood by the probability flow, on data whose density is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.likelihood import bound_times, first_time, flow_density, mean_and_error, pixel_flow_density, variational_bound
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.vp_sde import VPSDE

F64 = torch.float64
DDPM = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)  # Ho et al. 2020
every_process = pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)


def marginal(process: NoiseProcess, t: float, means: Tensor, stds: Tensor) -> MixtureSameFamily:
    """The distribution of each number of x_t, for data from a mixture with equal weights."""
    alpha, sigma = (scale(torch.tensor(t, dtype=F64)) for scale in (process.alpha, process.sigma))
    components = Normal(alpha * means, ((alpha * stds) ** 2 + sigma**2).sqrt())
    return MixtureSameFamily(Categorical(torch.ones_like(means)), components)


def exact(process: NoiseProcess, means: Tensor, stds: Tensor) -> Denoise:
    """The exact denoiser of such data: x0 by Tweedie's formula for each component."""

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x_t)
        x, alpha, sigma = x_t[..., None], alpha[..., None], sigma[..., None]
        variance = (alpha * stds) ** 2 + sigma**2
        weights = (-(x - alpha * means).square() / (2 * variance) - variance.log() / 2).softmax(-1)
        x0 = (weights * (means + alpha * stds**2 / variance * (x - alpha * means))).sum(-1)
        eps = (weights * sigma * (x - alpha * means) / variance).sum(-1)
        return Estimate(x0=x0, eps=eps)

    return denoise


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int, seed: int = 3) -> Tensor:
    return draw(*shape, seed=seed).sign()


GAUSSIAN = torch.tensor([0.4], dtype=F64), torch.tensor([0.6], dtype=F64)
MIXTURE = torch.tensor([-0.5, 0.3], dtype=F64), torch.tensor([0.1, 0.25], dtype=F64)


@every_process
def test_gaussian_data(process: NoiseProcess) -> None:
    """The flow is a line, x_1 = m_1 + s_1 / s (x - m), so the model's density is known to the solver's tolerance, whatever the prior."""
    x = 0.4 + 0.6 * draw(4, 10)
    first, last = (marginal(process, t, *GAUSSIAN).component_distribution for t in (0.01, 1.0))
    end = last.mean + last.stddev / first.stddev * (x - first.mean)
    log_p = Normal(0.0, process.prior_std).log_prob(end) + (last.stddev / first.stddev).log()
    got = flow_density(exact(process, *GAUSSIAN), x, process, signs(4, 10), first=0.01, tolerance=1e-6)
    assert_close(got.bits, -log_p.mean(1) / math.log(2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("process", [RectifiedFlow(), VPSDE(beta_max=40.0)], ids=lambda p: p.kind)
def test_mixture_data(process: NoiseProcess) -> None:
    """Their density at the first time; both processes end in the prior, the VP-SDE because of its larger beta_max."""
    x = torch.linspace(-0.9, 0.9, 40, dtype=F64).reshape(4, 10)
    got = flow_density(exact(process, *MIXTURE), x, process, signs(4, 10), first=0.02, tolerance=1e-6)
    assert_close(got.bits, -marginal(process, 0.02, *MIXTURE).log_prob(x).mean(1) / math.log(2), rtol=0, atol=2e-4)


def test_both_numbers_of_one_mixture_agree() -> None:
    """On the same pixels: flow and bound give the bits of the mixture's levels, about 7; the bound up to the chance of its noise."""
    process, streams, shape = RectifiedFlow(), Streams.of(0, samples=range(4)), (4, 1, 48, 48)
    means, stds = torch.tensor([-0.5, 0.3], dtype=F64), torch.tensor([0.1, 0.15], dtype=F64)
    which = torch.randint(2, shape, generator=torch.Generator().manual_seed(0))
    x0 = (((means[which] + stds[which] * draw(*shape)) + 1) * 127.5).round() / 127.5 - 1
    denoise, law = exact(process, means, stds), marginal(process, 0.0, means, stds)
    bits = -(law.cdf(x0 + 1 / 255) - law.cdf(x0 - 1 / 255)).log2().flatten(1).mean(1)
    flow = pixel_flow_density(denoise, x0, process, streams, first=0.002, tolerance=1e-6)
    terms = variational_bound(denoise, x0, bound_times(process), process, lambda i: draw(*shape, seed=i), fixed_logits=1.0)
    assert_close(flow.bits, bits, rtol=0, atol=0.005)
    assert (terms.total - bits).mean().abs() < 0.05


def coupled(process: NoiseProcess) -> tuple[Denoise, Callable[[Tensor], Tensor]]:
    """Gaussian data of two dependent numbers, and their log-density per number: a Jacobian that is not diagonal."""
    root = torch.tensor([[0.5, 0.0], [0.4, 0.3]], dtype=F64)
    covariance = root @ root.T

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t[0], x_t)
        precision = (alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=F64)).inverse()
        return Estimate(x0=alpha * x_t @ precision @ covariance, eps=sigma * x_t @ precision)

    def log_density(x: Tensor) -> Tensor:
        alpha, sigma = (scale(torch.tensor(0.02, dtype=F64)) for scale in (process.alpha, process.sigma))
        total = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=F64)
        return torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), total).log_prob(x) / 2

    return denoise, log_density


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased(kind: str) -> None:
    """The mean over 1000 probes at one point is within 4 standard errors of the density."""
    denoise, log_density = coupled(RectifiedFlow())
    x = torch.tensor([[0.5, -0.2]], dtype=F64).expand(1000, 2)
    probe = signs(1000, 2) if kind == "rademacher" else draw(1000, 2)
    got = flow_density(denoise, x, RectifiedFlow(), probe, first=0.02)
    mean, error = mean_and_error(got.bits)
    assert 0.003 < error < 0.05
    assert abs(mean + log_density(x)[0].item() / math.log(2)) < 4 * error


def test_bits_of_pixels_are_those_of_their_levels() -> None:
    """Broad data on 256 levels: bits are those of a level's probability, the density times the bin width 2 / 255."""
    streams = Streams.of(0, samples=range(3))
    x0 = ((0.2 * draw(3, 1, 16, 16).abs() + 1) * 127.5).round() / 127.5 - 1  # on one side, where the density falls
    means, stds = torch.zeros(1, dtype=F64), torch.full((1,), 0.2, dtype=F64)
    got = pixel_flow_density(exact(VPSDE(), means, stds), x0, VPSDE(), streams, first=1e-4, tolerance=1e-6)
    half = 1 / 255
    p = Normal(0.0, 0.2).cdf(x0 + half) - Normal(0.0, 0.2).cdf(x0 - half)
    assert_close(got.bits, -p.log2().flatten(1).mean(1), rtol=0, atol=4e-3)  # random values within the bins: 0.01 bits each, 256 of them
    alone = pixel_flow_density(exact(VPSDE(), means, stds), x0[1:2], VPSDE(), streams.part(1, 2), first=1e-4, tolerance=1e-6)
    assert_close(alone.bits, got.bits[1:2], rtol=0, atol=1e-5)


@every_process
def test_the_flow_begins_where_there_is_little_noise(process: NoiseProcess) -> None:
    t = torch.tensor(first_time(process), dtype=F64)
    assert (process.sigma(t) / process.alpha(t)).item() == pytest.approx(1e-3, rel=1e-9)


def test_the_first_time_is_the_published_one_and_below_a_tables_first_step() -> None:
    """Song et al. 2021, appendix C, take 1e-5 for the VP-SDE."""
    assert first_time(VPSDE()) == pytest.approx(1e-5, rel=0.01)
    assert first_time(DDPM) < 1 / 1000 < first_time(DDPM, 0.02)


def test_sharp_pixels_need_less_noise_than_a_tables_first_step_has() -> None:
    """Pixels that are almost certain: by default only their values within the bins cost bits; from step 1 on, 1.5 bits more."""
    process, means, stds = DDPM, torch.zeros(1, dtype=F64), torch.full((1,), 1 / 255 / 3**0.5, dtype=F64)
    streams = Streams.of(0, samples=range(3))
    bits = [
        pixel_flow_density(exact(process, means, stds), torch.zeros(3, 1, 8, 8, dtype=F64), process, streams, first=first).bits.mean()
        for first in (None, 1 / 1000)
    ]
    gaussian = Normal(0.0, stds.item()).entropy().item() / math.log(2) - math.log2(2 / 255)  # of a Gaussian with the bins' std
    assert bits[0] == pytest.approx(gaussian, abs=0.15) and bits[1] > bits[0] + 1.4


@every_process
def test_the_bounds_chain(process: NoiseProcess) -> None:
    """From t = 1 to little noise, falling, then to the data; as many steps as the process has, or as requested."""
    times = bound_times(process)
    assert len(times) == 1001 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    few = bound_times(process, 20)
    assert len(few) == 21 and few[0] == 1
    if isinstance(process, DiscreteVP):
        assert_close(times, torch.arange(1000, -1, -1, dtype=F64) / 1000)
    else:
        assert_close(process.sigma(few[-2]) / process.alpha(few[-2]), torch.tensor(1e-2, dtype=F64))
        assert_close(process.noise_share(few[:-1]).diff(n=2), torch.zeros(18, dtype=F64), rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="at least 2 steps"):
        bound_times(process, 1)


def test_precision_follows_the_tolerance() -> None:
    process, x = RectifiedFlow(), torch.linspace(-0.9, 0.9, 20, dtype=F64).reshape(2, 10)
    expected = -marginal(process, 0.02, *MIXTURE).log_prob(x).mean(1) / math.log(2)
    found = [flow_density(exact(process, *MIXTURE), x, process, signs(2, 10), 0.02, tolerance) for tolerance in (1e-3, 1e-6)]
    rough, fine = ((one.bits - expected).abs().max().item() for one in found)
    assert fine < rough / 20
    assert found[0].evaluations < found[1].evaluations


def test_mean_and_error() -> None:
    assert mean_and_error(torch.tensor([1.0, 3.0])) == pytest.approx((2.0, 1.0))
    with pytest.raises(UserError, match="at least 2"):
        mean_and_error(torch.tensor([1.0]))


def test_unknown_probe() -> None:
    with pytest.raises(UserError, match="unknown probe 'uniform'; allowed: gaussian, rademacher"):
        pixel_flow_density(exact(VPSDE(), *GAUSSIAN), draw(1, 1, 2, 2), VPSDE(), Streams.of(0, samples=[0]), probe="uniform")
