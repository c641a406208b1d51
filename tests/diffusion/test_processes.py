"""The continuous processes: published values, and the agreement of chain, SDE and probability flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.sub_vp_sde import SubVPSDE
from ldm.diffusion.processes.ve_sde import VESDE
from ldm.diffusion.processes.vp_sde import VPSDE

F64 = torch.float64
PROCESSES = [kind() for kind in NoiseProcess.kinds().values()] + [
    DiscreteVP(spacing="cosine", num_steps=50),
    DiscreteVP(zero_terminal_snr=True, num_steps=50),
    VPSDE(beta_min=12.0, beta_max=12.0),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def inside(process: NoiseProcess) -> Tensor:
    """Times well inside (0, 1), away from the steps of a table, where slopes jump."""
    return (torch.arange(process.num_steps, dtype=F64) + 0.4) / process.num_steps


def test_vp_sde_has_its_published_values() -> None:
    """Song et al. 2021, appendix C: beta 0.1 to 20, log alpha = -t^2 (20 - 0.1) / 4 - 0.1 t / 2; g^2 = beta, f = -beta / 2."""
    t = at(0.1, 0.5, 1.0)
    assert_close(VPSDE().alpha(t), (-(t**2) * 19.9 / 4 - t * 0.1 / 2).exp(), rtol=1e-12, atol=0)
    assert VPSDE().alpha(at(1.0)).item() == pytest.approx(0.0065716, rel=1e-4)
    assert_close(VPSDE().sigma(t) ** 2, 1 - VPSDE().alpha(t) ** 2, rtol=1e-12, atol=0)
    assert_close(VPSDE().diffusion(t), 0.1 + t * 19.9)
    assert_close(VPSDE().drift(t), -(0.1 + t * 19.9) / 2)


def test_vp_sde_is_the_limit_of_the_ddpm_chain() -> None:
    """Song et al. 2021, appendix B: beta_i = beta(i / N) / N with N to infinity."""
    for n, tolerance in ((1000, 1.5e-2), (10_000, 1.5e-3)):
        chain = DiscreteVP(spacing="linear", beta_first=0.1 / n, beta_last=20 / n, num_steps=n)
        t = at(0.25, 0.5, 0.75)
        assert_close(chain.alpha(t), VPSDE().alpha(t), rtol=tolerance, atol=0)


def test_sub_vp_sde_has_its_published_values() -> None:
    """Song et al. 2021, eq. 12 and 29: the same alpha, variance (1 - alpha^2)^2, g^2 = beta (1 - exp(-2 B))."""
    t = at(0.1, 0.5, 1.0)
    alpha = VPSDE().alpha(t)
    assert_close(SubVPSDE().alpha(t), alpha)
    assert_close(SubVPSDE().sigma(t) ** 2, (1 - alpha**2) ** 2, rtol=1e-12, atol=0)
    assert_close(SubVPSDE().diffusion(t), (0.1 + t * 19.9) * (1 - alpha**4), rtol=1e-10, atol=0)
    assert (SubVPSDE().sigma(t) < VPSDE().sigma(t)).all()


def test_ve_sde_has_its_published_values() -> None:
    """Song et al. 2021, eq. 30: g = sigma_min r^t sqrt(2 log r), no drift; sigma^2 = (sigma_min r^t)^2 - sigma_min^2."""
    t = at(0.1, 0.5, 1.0)
    published = 0.01 * 5000**t
    assert published[1].item() == pytest.approx(0.7071, rel=1e-4)
    assert_close(VESDE().sigma(t) ** 2, published**2 - 1e-4, rtol=1e-12, atol=0)
    assert_close(VESDE().diffusion(t).sqrt(), published * math.sqrt(2 * math.log(5000)), rtol=1e-12, atol=0)
    assert VESDE().drift(t).tolist() == [0, 0, 0]
    assert VESDE().prior_std == 50


def test_edm_and_rectified_flow_have_their_published_values() -> None:
    t = at(0.002 / 80, 0.25, 1.0)
    assert_close(EDM().sigma(t), at(0.002, 20.0, 80.0))
    assert EDM().alpha(t).tolist() == [1, 1, 1]
    assert EDM().t_first == t[0] and EDM().prior_std == 80
    assert_close(EDM().diffusion(t), 2 * 80 * EDM().sigma(t))  # Karras et al. 2022, eq. 6: 2 sigma dsigma/dt
    assert_close(RectifiedFlow().alpha(t) + RectifiedFlow().sigma(t), torch.ones_like(t))
    assert_close(RectifiedFlow().sigma(t), t)


@every_process
def test_rates_are_the_slopes_of_the_scales(process: NoiseProcess) -> None:
    t = inside(process)
    tiny = 1e-4 * t.clamp(max=1 / process.num_steps)
    for rate, scale in zip(process.rates(t), (process.alpha, process.sigma), strict=True):
        assert_close(rate, (scale(t + tiny) - scale(t - tiny)) / (2 * tiny), rtol=1e-6, atol=1e-7)


@every_process
def test_the_sde_keeps_the_marginals(process: NoiseProcess) -> None:
    """The equations of its moments: d alpha / dt = f alpha, d sigma^2 / dt = 2 f sigma^2 + g^2 (Sarkka & Solin 2019, eq. 5.51)."""
    t = inside(process)
    tiny = 1e-4 * t.clamp(max=1 / process.num_steps)
    f, g2 = process.drift(t), process.diffusion(t)
    variance = process.sigma(t + tiny) ** 2 - process.sigma(t - tiny) ** 2
    assert_close((process.alpha(t + tiny) - process.alpha(t - tiny)) / (2 * tiny), f * process.alpha(t), rtol=1e-6, atol=1e-7)
    assert_close(variance / (2 * tiny), 2 * f * process.sigma(t) ** 2 + g2, rtol=1e-6, atol=1e-7)
    assert (g2 > 0).all()


@every_process
def test_the_flow_and_the_sde_share_marginals(process: NoiseProcess) -> None:
    """Song et al. 2021, eq. 13: f x - g^2 / 2 score = alpha' x0 + sigma' eps, for the score -eps / sigma of x_t given x0."""
    t = inside(process)
    x0, eps = torch.randn(2, len(t), dtype=F64, generator=torch.Generator().manual_seed(2))
    d_alpha, d_sigma = process.rates(t)
    x_t = process.alpha(t) * x0 + process.sigma(t) * eps
    flow = process.drift(t) * x_t + process.diffusion(t) / 2 * eps / process.sigma(t)
    assert_close(flow, d_alpha * x0 + d_sigma * eps, rtol=1e-9, atol=1e-9)


@every_process
def test_steps_compose(process: NoiseProcess) -> None:
    """q(x_t | x_s) after q(x_s | x_r) is q(x_t | x_r)."""
    r, s, t = at(0.11), at(0.42), at(0.83)
    through = (process.alpha(t) / process.alpha(s)) ** 2 * process.step_variance(r, s) + process.step_variance(s, t)
    assert_close(through, process.step_variance(r, t))


@every_process
def test_sampling_starts_where_the_process_ends(process: NoiseProcess) -> None:
    assert process.sigma(at(1.0)).item() == pytest.approx(process.prior_std, rel=3e-3)


@every_process
def test_learned_variance_lies_between_its_ends(process: NoiseProcess) -> None:
    """Nichol & Dhariwal 2021, eq. 15: log-linear from beta tilde to beta, and beyond; each row at its own times."""
    s, t = at(0.2, 0.5), at(0.3, 1.0)
    variance_logits = torch.tensor([0.0, 1.0, 0.5, -1.0], dtype=F64).expand(2, 4)
    low, high = process.posterior_variance(s, t), process.step_variance(s, t)
    expected = torch.stack([low, high, (low * high).sqrt(), low**2 / high], dim=1)
    assert_close(process.log_variance(variance_logits, s, t), expected.log())


def test_first_step_takes_the_second_steps_small_variance() -> None:
    """As published: the posterior's variance is 0 at the first step, where (1 - abar_1) / (1 - abar_2) beta_2 stands in."""
    process = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)
    beta_2 = 1e-4 + (0.02 - 1e-4) / 999
    bar_2 = (1 - 1e-4) * (1 - beta_2)
    got = process.log_variance(at(0.0, 1.0)[None], at(0.0), at(1e-3))
    assert_close(got, at(1e-4 / (1 - bar_2) * beta_2, 1e-4).log()[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VPSDE(beta_min=2.0, beta_max=1.0), "beta_min"),
        (lambda: SubVPSDE(beta_min=0.0), "beta_min"),
        (lambda: VESDE(sigma_min=1.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: EDM(sigma_min=0.0), "sigma_min"),
        *((lambda make=make: make(num_steps=1), "num_steps >= 2") for make in (VPSDE, SubVPSDE, VESDE, EDM, RectifiedFlow)),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
