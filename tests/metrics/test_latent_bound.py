"""The bound of both stages: the decoder's noise, and each term on a model where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace, MultivariateNormal, Normal
from torch.testing import assert_close

from ldm.metrics.latent_bound import DecoderNoise, latent_bound

F64 = torch.float64
LEVELS = torch.arange(256, dtype=F64) / 127.5 - 1


@pytest.mark.parametrize("kind, law", [("laplace", Laplace), ("gaussian", Normal)])
@pytest.mark.parametrize("mean, scale", [(0.3, 0.1), (-0.99, 0.02), (1.2, 0.05), (0.1, 3.0)])
def test_levels_have_the_probability_of_the_noise(kind, law, mean, scale):
    """And the probabilities of all levels sum to 1, also for a decoder output beyond white."""
    noise = DecoderNoise(kind=kind, scale=scale)
    bits = noise.bits(LEVELS[:, None, None, None], torch.full((256, 1, 1, 1), mean, dtype=F64))
    edges = law(mean, scale).cdf(torch.arange(0.5, 255, dtype=F64) / 127.5 - 1)
    share = torch.cat([edges, torch.ones(1, dtype=F64)]) - torch.cat([torch.zeros(1, dtype=F64), edges])
    kept = share > 1e-9  # below, the difference of two distribution functions is rounding only
    assert_close(bits[kept], -share[kept].log2(), rtol=1e-6, atol=1e-6)
    assert (2**-bits).sum().item() == pytest.approx(1, rel=1e-9)


def test_a_level_far_from_the_decoders_output_is_accurate():
    """Laplace: the probability of a level 2000 scales away, in closed form."""
    images, decoded = torch.zeros(1, 1, 1, 1) + 1 / 255, torch.full((1, 1, 1, 1), 1 / 255 - 0.4)
    bits = DecoderNoise(kind="laplace", scale=0.4 / 2000).bits(images, decoded).item()
    half = 2000 / 0.4 / 255
    assert bits == pytest.approx((2000 - half + math.log(2) - math.log1p(-math.exp(-2 * half))) / math.log(2), rel=1e-6)


@pytest.mark.parametrize("law, kind, scale", [(Laplace(0.0, 0.1), "laplace", 0.1), (Normal(0.0, 0.1), "gaussian", 0.1)])
def test_the_noise_is_the_likelier_of_the_two(law, kind, scale):
    torch.manual_seed(0)
    errors = law.sample((100_000,)).double()
    found = DecoderNoise.fitted(errors.abs().mean().item(), errors.square().mean().item())
    assert found.kind == kind and found.scale == pytest.approx(scale, rel=0.02)


def test_one_latent_of_a_linear_model():
    """Two pixels x = w z + noise, z ~ N(0.5, 2^2): with the posterior itself as q, each term has its closed form, and the mean over z is
    -log2 p(x), for any shift and scale."""
    torch.manual_seed(0)
    w, prior, tau = torch.tensor([0.1, -0.2], dtype=F64), Normal(torch.tensor(0.5, dtype=F64), 2.0), 0.05
    x = LEVELS[[140, 90]].reshape(1, 1, 1, 2)
    variance = 1 / (1 / prior.variance + w.square().sum() / tau**2)
    mean = variance * (prior.mean / prior.variance + (w * x.flatten()).sum() / tau**2)
    raw = mean + variance.sqrt() * torch.randn(20_000, 1, 1, 1, dtype=F64)
    covariance = 4 * w[:, None] * w + tau**2 * torch.eye(2, dtype=F64)
    expected = -(MultivariateNormal(0.5 * w, covariance).log_prob(x.flatten()) / math.log(2) + 2 * math.log2(2 / 255)) / 2

    for shift, scale in ((0.0, 1.0), (0.7, 0.25)):
        normalised = Normal((prior.mean - shift) * scale, prior.stddev * scale)
        latent_bits = -normalised.log_prob((raw - shift) * scale).flatten() / math.log(2)
        noise = DecoderNoise(kind="gaussian", scale=tau)
        images, std = x.expand(len(raw), 1, 1, 2), variance.sqrt().expand_as(raw)
        found = latent_bound(images, raw * w, noise, std, latent_bits, (scale,))
        assert_close(found.latent, -prior.log_prob(raw).flatten() / math.log(2) / 2)
        assert_close(found.entropy, Normal(mean, variance.sqrt()).entropy().expand(len(raw)) / math.log(2) / 2)
        assert abs(found.total.mean() - expected) < 4 * found.total.std() / len(raw) ** 0.5 + 1e-3  # the bin width is not tiny
