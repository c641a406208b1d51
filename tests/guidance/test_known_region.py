"""The known region: kept to the bit by every sampler, given to the denoiser at the right noise, and consistent with the inpainted part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.grid import LogSNR, Trailing, Uniform
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.guidance.known_region import known_region
from ldm.samplers.ddim import DDIM
from ldm.samplers.sampler import Sampler, step_noise

# Samplers and guidance are on one floor and may not import each other; their tests may.
every_sampler = pytest.mark.parametrize("sampler", [*(kind() for kind in Sampler.kinds().values()), DDIM(eta=1.0)], ids=repr)
PROCESSES = [*(kind() for kind in NoiseProcess.kinds().values()), DiscreteVP(zero_terminal_snr=True)]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)

STREAMS = Streams.of("known", samples=(0, 1))
KNOWN_X0 = STREAMS.normal("x0", (2, 4, 4))
MASK = torch.zeros(2, 1, 4, 4)
MASK[0, :, :, :2] = 1
MASK[1, :, 1:, 3] = 1
KNOWN = (MASK > 0.5).expand(2, 2, 4, 4)


def noise(key: int) -> Tensor:
    return STREAMS.normal(("known", key), (2, 4, 4))


def pointwise(process: NoiseProcess) -> Denoise:
    """A denoiser in which no pixel depends on another."""

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x_t)
        x0 = (1.3 * x_t).sin()
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    return denoise


@every_process
@every_sampler
def test_the_known_part_is_kept_to_the_bit_and_the_rest_is_unchanged(sampler: Sampler, process: NoiseProcess) -> None:
    x, grid = process.prior_std * STREAMS.normal("start", (2, 4, 4)), Uniform().times(process, 9)
    plain = pointwise(process)
    free = sampler.sample(plain, x, grid, process, step_noise(STREAMS, x))
    at_time = (lambda key: noise(0)) if sampler.adaptive else noise
    got = sampler.sample(known_region(plain, KNOWN_X0, MASK, process, at_time), x, grid, process, step_noise(STREAMS, x))
    assert torch.equal(got[KNOWN], KNOWN_X0[KNOWN])
    if sampler.kind not in ("ode", "pc"):  # their step sizes depend on the whole image
        assert_close(got[~KNOWN], free[~KNOWN], rtol=0, atol=1e-5)
    assert (free - KNOWN_X0)[KNOWN].abs().mean() > 0.1


@every_process
def test_denoiser_gets_the_known_part_at_the_samples_noise(process: NoiseProcess) -> None:
    """alpha x0 + sigma noise in the known part, the sampler's x_t elsewhere; the noise depends on the time only."""
    x_t = STREAMS.normal("x_t", (2, 4, 4))
    inputs: list[Tensor] = []

    def watch(x: Tensor, t: Tensor) -> Estimate:
        inputs.append(x)
        return Estimate(torch.zeros_like(x), torch.zeros_like(x))

    wrapped = known_region(watch, KNOWN_X0, MASK, process, noise)
    for t in (0.8, 0.5, 0.8):
        wrapped(x_t, torch.tensor([t, t], dtype=torch.float64))
    assert all(torch.equal(x[~KNOWN], x_t[~KNOWN]) for x in inputs)
    assert torch.equal(inputs[0], inputs[2])

    drawn = []
    for x, t in zip(inputs, (0.8, 0.5), strict=False):
        alpha, sigma = process.scales(torch.tensor(t, dtype=torch.float64), x)
        drawn.append(((x - alpha * KNOWN_X0) / sigma)[KNOWN])
    assert (drawn[0] - drawn[1]).abs().mean() > 0.3
    assert 0.6 < torch.cat(drawn).std() < 1.4

    fixed = noise(7)
    known_region(watch, KNOWN_X0, MASK, process, lambda key: fixed)(x_t, torch.tensor([0.5, 0.5], dtype=torch.float64))
    alpha, sigma = process.scales(torch.tensor(0.5), x_t)
    assert_close(inputs[3][KNOWN], (alpha * KNOWN_X0 + sigma * fixed)[KNOWN])


@every_process
def test_the_estimate_gives_the_samplers_x_t(process: NoiseProcess) -> None:
    x_t, t = STREAMS.normal("x_t", (2, 4, 4)).double(), torch.tensor([0.4, 0.4], dtype=torch.float64)
    got = known_region(pointwise(process), KNOWN_X0.double(), MASK, process, lambda key: noise(key).double())(x_t, t)
    assert torch.equal(got.x0[KNOWN], KNOWN_X0.double()[KNOWN])
    assert_close(process.blend(got, t)[KNOWN], x_t[KNOWN])


@every_process
@every_sampler
def test_the_inpainted_part_agrees_with_the_known_part(sampler: Sampler, process: NoiseProcess) -> None:
    """Images of two equal pixels, N(0, 1): given the left pixel, the right one must be inpainted with nearly its value."""
    count, share = 500, 0.5
    grid = LogSNR() if process.prior_std > 1 else Trailing()

    def equal_pixels(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x_t)
        x0 = (alpha / (alpha**2 + share * sigma**2) * x_t.mean(-1, keepdim=True)).expand_as(x_t)
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    draws = torch.Generator().manual_seed(5)
    x0, x = torch.randn(2, count, 1, 1, 2, generator=draws).unbind()
    left = torch.tensor([1.0, 0.0]).expand(count, 1, 1, 2)
    fixed = torch.randn(x.shape, generator=draws)
    at_time = (lambda key: fixed) if sampler.adaptive else (lambda key: torch.randn(x.shape, generator=draws))
    wrapped = known_region(equal_pixels, x0, left, process, at_time)
    times = grid.times(process, 60)
    got = sampler.sample(wrapped, process.prior_std * x, times, process, lambda *_: torch.randn(x.shape, generator=draws))
    assert torch.equal(got[..., 0], x0[..., 0])
    agreement = torch.corrcoef(got.flatten(1).T)[0, 1]
    assert agreement > 0.85


def test_a_learned_variance_is_kept() -> None:
    process, x_t = DiscreteVP(), STREAMS.normal("x_t", (2, 4, 4))

    def learned(x: Tensor, t: Tensor) -> Estimate:
        return Estimate(x, x, variance_logits=x + 1)

    got = known_region(learned, x_t, MASK, process, lambda key: x_t)(x_t, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert_close(got.variance_logits[~KNOWN], x_t[~KNOWN] + 1)
