"""The variational bound: its terms written out, the learned variance that it trains, and data whose entropy is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.core.shapes import over
from ldm.diffusion import bound
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import Uniform
from ldm.diffusion.likelihood import bound_times, variational_bound
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import EpsPrediction, VPrediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.diffusion.time_density import UniformSteps

F64 = torch.float64
every_process = pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)
CHAIN = DiscreteVP(spacing="linear", beta_first=1e-3, beta_last=0.3, num_steps=20)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def levels(*shape: int) -> Tensor:
    """Pixels."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).double() / 127.5 - 1


def test_terms_are_ho_et_als() -> None:
    """Ho et al. 2020, eq. 5 to 8, by the betas and torch's KL: a row in the middle, one near the end, and L_0 (eq. 13)."""
    beta = torch.linspace(1e-3, 0.3, 20, dtype=F64)
    bar = (1 - beta).cumprod(0)
    x0, x0_hat, x_t, variance_logits = levels(3, 1, 4, 4), 0.8 * levels(3, 1, 4, 4) + 0.02, draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    step = torch.tensor([12, 2, 1])
    t = step.double() / 20
    got = bound.term(Estimate(x0_hat, x_t, variance_logits), x0, t - 1 / 20, t, CHAIN, levels=256)

    def tilde(k: int) -> Tensor:
        return (1 - bar[k - 2]) / (1 - bar[k - 1]) * beta[k - 1]

    for row, k in ((0, 12), (1, 2)):

        def mean(x: Tensor, k: int = k, row: int = row) -> Tensor:
            of_x0 = bar[k - 2].sqrt() * beta[k - 1] / (1 - bar[k - 1])
            return of_x0 * x + (1 - beta[k - 1]).sqrt() * (1 - bar[k - 2]) / (1 - bar[k - 1]) * x_t[row]

        std = (variance_logits[row] * beta[k - 1].log() + (1 - variance_logits[row]) * tilde(k).log()).exp().sqrt()
        kl = kl_divergence(Normal(mean(x0[row]), tilde(k).sqrt()), Normal(mean(x0_hat[row]), std))
        assert got[row].item() == pytest.approx(kl.mean().item() / math.log(2), rel=1e-8)

    std = (variance_logits[2] * beta[0].log() + (1 - variance_logits[2]) * tilde(2).log()).exp().sqrt()
    about = Normal(x0_hat[2], std)
    low, high = about.cdf(x0[2] - 1 / 255), about.cdf(x0[2] + 1 / 255)
    low, high = torch.where(x0[2] < -0.999, 0.0, low), torch.where(x0[2] > 0.999, 1.0, high)
    assert got[2].item() == pytest.approx(-(high - low).log2().mean().item(), rel=1e-6)


def test_a_perfect_estimate_costs_only_the_last_step() -> None:
    x0, t = levels(2, 1, 4, 4), torch.tensor([0.5, 1.0], dtype=F64)
    assert_close(bound.term(Estimate(x0, x0), x0, t - 0.05, t, CHAIN, 256), torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("mean, std", [(0.3, 0.2), (-0.99, 0.01), (0.999, 1e-3), (0.1, 5.0)])
def test_level_probabilities_sum_to_one(mean: float, std: float) -> None:
    x = torch.arange(256, dtype=F64) / 127.5 - 1
    log_std = torch.tensor(math.log(std), dtype=F64)
    p = bound.log_likelihood(x, torch.tensor(mean, dtype=F64), log_std, 256).exp()
    assert p.sum().item() == pytest.approx(1, rel=1e-9)
    cdf = [(1 + math.erf((edge / 127.5 - 1 - mean) / std / math.sqrt(2))) / 2 for edge in torch.arange(0.5, 255).tolist()]
    assert_close(p, torch.tensor([b - a for a, b in zip([0, *cdf], [*cdf, 1], strict=True)], dtype=F64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_levels_far_from_the_mean_keep_value_and_slope(dtype: torch.dtype) -> None:
    """60 standard deviations away the probability is below any float64; its logarithm (the bin edge's tail) and its gradient are not."""
    mean = torch.tensor([0.0], dtype=dtype, requires_grad=True)
    x = torch.tensor([0.6], dtype=dtype)
    got = bound.log_likelihood(x, mean, torch.tensor([math.log(0.01)], dtype=dtype), 256)
    z = (0.6 - 1 / 255) / 0.01
    assert got.item() == pytest.approx(-(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)), rel=1e-5)
    got.backward()
    assert mean.grad.item() == pytest.approx(z / 0.01, rel=1e-3)


def test_without_levels_the_last_term_is_a_density() -> None:
    x, mean, log_std = draw(3, 5).unbind()
    assert_close(bound.log_likelihood(x, mean, log_std, None), Normal(mean, log_std.exp()).log_prob(x))


@every_process
def test_prior_term_is_its_kl(process: NoiseProcess) -> None:
    x0, end = draw(4, 6), torch.tensor(1.0, dtype=F64)
    kl = kl_divergence(Normal(process.alpha(end) * x0, process.sigma(end)), Normal(0.0, process.prior_std))
    assert_close(bound.prior_term(x0, process), kl.mean(1) / math.log(2), rtol=1e-6, atol=1e-12)
    assert bound.prior_term(x0, DiscreteVP(zero_terminal_snr=True)).tolist() == [0] * 4


@every_process
def test_bound_is_tight_where_the_chain_can_be_exact(process: NoiseProcess) -> None:
    """Gaussian data and the true posterior, its variance as a logit: the bound is the data's entropy and the prior's KL, to 4 errors."""
    mean, std, process = 0.4, 0.6, dataclasses.replace(process, num_steps=20)

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = (scale(t[:1]) for scale in (process.alpha, process.sigma))
        total = (alpha * std) ** 2 + sigma**2
        off = (x_t - alpha * mean) / total
        s = ((t[:1] * 20).round() - 1) / 20
        pull = process.alpha(s) * process.step_variance(s, t[:1]) / sigma**2
        variance = process.posterior_variance(s, t[:1]) + pull**2 * (std * sigma) ** 2 / total
        low, high = (process.log_variance(torch.full((1, 1), v, dtype=F64), s, t[:1]) for v in (0.0, 1.0))
        variance_logits = (variance.log() - low) / (high - low)
        return Estimate(x0=mean + alpha * std**2 * off, eps=sigma * off, variance_logits=variance_logits.expand_as(x_t))

    x0 = mean + std * draw(200, 300)
    got = variational_bound(denoise, x0, Uniform().times(process, 20), process, lambda i: draw(200, 300, seed=5 + i), levels=None)
    end = torch.tensor(1.0, dtype=F64)
    reached = Normal(process.alpha(end) * mean, ((process.alpha(end) * std) ** 2 + process.sigma(end) ** 2).sqrt())
    expected = Normal(mean, std).entropy() + kl_divergence(reached, Normal(0.0, process.prior_std))
    error = got.total.std() / math.sqrt(200)
    assert error < 0.01
    assert (got.total.mean() - expected / math.log(2)).abs() < 4 * error
    assert_close(got.total, got.prior + got.steps.sum(1))


def test_the_bound_of_a_mixture_nears_its_entropy_as_steps_grow() -> None:
    """Two narrow components, a fixed variance: the bound is above the entropy, by less with more steps."""
    process = VPSDE()
    means, std = torch.tensor([-0.5, 0.3], dtype=F64), 0.2
    law = MixtureSameFamily(Categorical(torch.ones(2, dtype=F64)), Normal(means, torch.full((2,), std, dtype=F64)))

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x_t)
        total = ((alpha * std) ** 2 + sigma**2)[..., None]
        off = x_t[..., None] - alpha[..., None] * means
        weights = (-off.square() / (2 * total)).softmax(-1)
        x0 = (weights * (means + alpha[..., None] * std**2 / total * off)).sum(-1)
        return Estimate(x0=x0, eps=(x_t - alpha * x0) / sigma)

    random = torch.Generator().manual_seed(3)
    x0 = means[torch.randint(2, (100, 400), generator=random)] + std * draw(100, 400)
    entropy = -law.log_prob(x0).mean(1) / math.log(2)

    def excess(steps: int) -> tuple[float, float]:
        """The bound minus the entropy, and its standard error."""
        times = bound_times(process, steps)
        got = variational_bound(denoise, x0, times, process, lambda i: draw(100, 400, seed=i), None, fixed_logits=1.0)
        off = got.total - entropy
        return off.mean().item(), (off.std() / 10).item()

    (few, _), (more, _), (many, error) = (excess(steps) for steps in (20, 60, 200))
    assert -4 * error < many < 0.04 and many + 4 * error < more and 2 * more < few


def test_fixed_variances_cost_more_than_the_exact_one() -> None:
    """Neither end of the variance_logits is the true posterior's variance; each is exact for its own data (Ho et al. 2020, sec. 3.2)."""
    x0 = draw(50, 300)  # N(0, 1): the large variance is exact

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = CHAIN.scales(t, x_t)
        return Estimate(x0=alpha * x_t, eps=sigma * x_t)

    def cost(variance_logits: float) -> float:
        times = Uniform().times(CHAIN, 20)
        return variational_bound(denoise, x0, times, CHAIN, lambda i: draw(50, 300, seed=i), None, variance_logits).total.mean().item()

    assert cost(1.0) < cost(0.5) < cost(0.0)
    assert cost(1.0) == pytest.approx(Normal(0.0, 1.0).entropy().item() / math.log(2), abs=0.05)


def test_mistakes_are_named() -> None:
    for times in ([1.0, 0.0], [0.9, 0.5, 0.0], [1.0, 0.5, 0.1]):
        with pytest.raises(UserError, match="at least 2 steps, from t = 1 to t = 0"):
            variational_bound(lambda x, t: Estimate(x, x), draw(1, 2), torch.tensor(times), CHAIN, lambda i: draw(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step(UniformSteps):
    """One step for all; not a registered kind."""

    step: int

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        return torch.full((len(streams),), self.step / process.num_steps, dtype=F64)


def network_of(weights: Tensor) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """Outputs twice the channels, a mean and variance logits, both depending on the weights."""
    return lambda x, network_time, c: torch.cat([weights[0] * x.tanh(), weights[1] * (over(network_time, x) / 20 - x)], dim=1)


STREAMS = Streams.of(0, "train", 3, samples=range(4))
LEARNED = {"process": CHAIN, "prediction": VPrediction(), "learned_variance": True, "levels": 256}


def test_the_vlb_objective_is_the_bound_by_one_term() -> None:
    """Its mean over the steps, with the same noise, is the bound without L_T."""
    x0, network = levels(4, 2, 4, 4).float(), network_of(torch.tensor([0.5, 0.3]))
    eps = STREAMS.normal("noise", x0.shape[1:])
    denoise = Denoiser(network=network, process=CHAIN, prediction=VPrediction(), learned_variance=True).bind(Condition())
    whole = variational_bound(denoise, x0, Uniform().times(CHAIN, 20), CHAIN, lambda i: eps)
    for step in (1, 2, 20):
        objective = Objective(**LEARNED, loss="vlb", density=Step(step=step))
        assert_close(objective(network, x0, Condition(), STREAMS), 20 * whole.steps[:, 20 - step], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [1, 11])
@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_in_the_hybrid_loss_the_bound_trains_only_the_variance(loss: str, step: int) -> None:
    """Nichol & Dhariwal 2021, sec. 3.1: the mean's gradient is L_simple's, the variance's is lambda L_vlb's."""
    x0 = levels(4, 2, 4, 4).float()

    def gradient(**parts: object) -> tuple[Tensor, Tensor]:
        weights = torch.tensor([0.5, 0.3], requires_grad=True)
        network = network_of(weights)
        if not parts.get("learned_variance"):
            loss = Objective(**parts)(lambda x, network_time, c: network(x, network_time, c)[:, :2], x0, Condition(), STREAMS)
        else:
            loss = Objective(**parts)(network, x0, Condition(), STREAMS)
        loss.sum().backward()
        return weights.grad, loss.detach()

    density = Step(step=step)
    both, hybrid = gradient(**LEARNED, loss=loss, vlb_weight=0.01, density=density)
    simple, plain = gradient(**LEARNED | {"learned_variance": False}, loss=loss, density=density)
    whole, vlb = gradient(**LEARNED, loss="vlb", density=density)
    assert_close(hybrid, plain + 0.01 * vlb)
    assert_close(both[0], simple[0])
    assert_close(both[1], 0.01 * whole[1])
    assert whole[0].abs() > 1e-3 and whole[1].abs() > 1e-3  # the plain bound trains both


def test_the_bound_can_be_trained_with_a_fixed_variance_and_any_process() -> None:
    x0 = levels(4, 2, 4, 4).float()
    for process in (CHAIN, EDM(num_steps=20)):
        objective = Objective(process=process, prediction=EpsPrediction(), loss="vlb", levels=256, density=Step(step=7))
        got = objective(lambda x, network_time, c: torch.zeros_like(x), x0, Condition(), STREAMS)
        s, t = (torch.tensor(k / 20, dtype=F64) for k in (6, 7))
        x0_error = process.sigma(t) / process.alpha(t) * STREAMS.normal("noise", x0.shape[1:]).double()  # eps read as 0
        # Ho et al. 2020, eq. 8, with sigma_t^2 = beta tilde
        pull = process.alpha(s) * process.step_variance(s, t) / process.sigma(t) ** 2
        nats = (pull * x0_error).square().flatten(1).mean(1) / (2 * process.posterior_variance(s, t))
        assert_close(got.double(), 20 * nats / math.log(2), rtol=1e-4, atol=0)
