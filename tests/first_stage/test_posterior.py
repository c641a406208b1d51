"""The diagonal Gaussian against torch.distributions, and the clamp."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ldm.first_stage.posterior import DiagonalGaussian


def example() -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 8, 5, 6, generator=generator, dtype=torch.float64)
    return DiagonalGaussian.of(parameters)


def test_kl_is_that_of_torch_distributions():
    posterior = example()
    expected = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(0.0, 1.0))
    assert_close(posterior.kl_per_dimension(), expected)
    assert_close(posterior.kl(), expected.sum((1, 2, 3)))


def test_nll_is_that_of_torch_distributions():
    posterior = example()
    x = torch.linspace(-2, 2, posterior.mean.numel(), dtype=torch.float64).reshape(posterior.mean.shape)
    assert_close(posterior.nll(x), -Normal(posterior.mean, posterior.std).log_prob(x).sum((1, 2, 3)))


def test_draws_have_the_posteriors_moments_and_carry_gradient_to_both():
    mean, log_variance = torch.tensor(1.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    posterior = DiagonalGaussian(mean.expand(1, 1, 200, 200), log_variance.expand(1, 1, 200, 200))
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    draws = posterior.sample(noise)
    assert_close(draws.mean(), torch.tensor(1.5), atol=0.02, rtol=0)
    assert_close(draws.var(), torch.tensor(-1.0).exp(), atol=0, rtol=0.03)
    draws.square().mean().backward()  # 1.5^2 + exp(-1): derivatives 3 and exp(-1)
    assert_close(mean.grad, torch.tensor(3.0), atol=0.03, rtol=0)
    assert_close(log_variance.grad, torch.tensor(-1.0).exp(), atol=0.02, rtol=0)


def test_means_come_first_and_extreme_log_variances_are_clamped():
    parameters = torch.tensor([5.0, 7.0, -1e4, 1e4]).reshape(1, 4, 1, 1).bfloat16()
    posterior = DiagonalGaussian.of(parameters)
    assert posterior.mean.flatten().tolist() == [5, 7]
    assert posterior.log_variance.flatten().tolist() == [-30, 20]
    assert posterior.mean.dtype == torch.float32
    assert posterior.kl().isfinite().all()
