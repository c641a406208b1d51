"""Processes: published tables, the chain's own identities, the inverse of log-SNR."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP

F64 = torch.float64
DDPM_TABLE = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)
CHAINS = [
    DiscreteVP(),
    DDPM_TABLE,
    DiscreteVP(spacing="cosine"),
    DiscreteVP(zero_terminal_snr=True),
    DiscreteVP(spacing="cosine", zero_terminal_snr=True, num_steps=300),
    DiscreteVP(num_steps=2, zero_terminal_snr=True),
]
others = [kind() for name, kind in NoiseProcess.kinds().items() if name != "discrete_vp"]
every_chain = pytest.mark.parametrize("process", CHAINS, ids=repr)
every_process = pytest.mark.parametrize("process", [*CHAINS, *others], ids=repr)


def steps(process: NoiseProcess) -> torch.Tensor:
    """Times of steps 1 to N."""
    return torch.arange(1, process.num_steps + 1, dtype=F64) / process.num_steps


def alpha_bar(process: NoiseProcess) -> torch.Tensor:
    return process.alpha(steps(process)) ** 2


def noise_ratio(process: NoiseProcess, step: int) -> float:
    t = torch.tensor(step / process.num_steps, dtype=F64)
    return (process.sigma(t) / process.alpha(t)).item()


def test_linear_is_the_ddpm_table() -> None:
    """Ho et al. 2020, sec. 4, and the noise levels of guided-diffusion's models as published: 0.01 to 157.407."""
    assert noise_ratio(DDPM_TABLE, 1000) == pytest.approx(157.407, rel=1e-5)
    assert noise_ratio(DDPM_TABLE, 1) == pytest.approx(0.0100005, rel=1e-5)
    assert alpha_bar(DDPM_TABLE)[999].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_sqrt_linear_is_stable_diffusions_table() -> None:
    """Its published noise levels, 0.0292 to 14.6146, and the end of its alphas_cumprod."""
    process = DiscreteVP()
    assert noise_ratio(process, 1000) == pytest.approx(14.6146, rel=1e-5)
    assert noise_ratio(process, 1) == pytest.approx(0.0292, rel=2e-3)
    assert alpha_bar(process)[999].item() == pytest.approx(0.0047, abs=5e-5)


def test_cosine_follows_its_formula_to_the_clip() -> None:
    """Nichol & Dhariwal 2021, eq. 17; beta is clipped at 0.999, which the last step alone reaches at T = 1000."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    got = alpha_bar(DiscreteVP(spacing="cosine"))
    for step in (1, 250, 500, 999):
        assert got[step - 1].item() == pytest.approx(f(step / 1000) / f(0), rel=1e-9)
    assert (got[999] / got[998]).item() == pytest.approx(1 - 0.999, rel=1e-9)


def test_zero_terminal_snr_shifts_and_scales_the_root() -> None:
    """Lin et al. 2023, alg. 1: sqrt(alpha_bar) keeps its first value, ends at 0, and stays affine in the old one."""
    old, new = DiscreteVP().alpha(steps(DiscreteVP())), DiscreteVP(zero_terminal_snr=True).alpha(steps(DiscreteVP()))
    assert new[-1] == 0
    assert_close(new[0], old[0])
    slope = (new[0] - new[500]) / (old[0] - old[500])
    assert_close(new, new[0] + slope * (old - old[0]), rtol=1e-9, atol=1e-12)


@every_chain
def test_variance_is_preserved(process: NoiseProcess) -> None:
    t = torch.linspace(0, 1, 1001, dtype=F64)
    assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0)


@every_process
def test_the_start_is_pure_data_and_log_snr_is_that_of_the_scales(process: NoiseProcess) -> None:
    t = torch.linspace(0, 1, 1001, dtype=F64)
    assert (process.alpha(t[0]), process.sigma(t[0])) == (1, 0)
    assert process.log_snr(t[0]) == math.inf
    assert_close(process.log_snr(t[1:-1]), 2 * (process.alpha(t[1:-1]) / process.sigma(t[1:-1])).log(), rtol=1e-8, atol=1e-8)


@every_process
def test_log_snr_falls_without_jumps_and_time_at_inverts_it(process: NoiseProcess) -> None:
    n = process.num_steps
    t = torch.linspace(0, 1, 7 * n + 1, dtype=F64)  # steps, and six times between each two
    assert (process.log_snr(t).diff() < 0).all()
    assert_close(process.time_at(process.log_snr(t)), t, rtol=0, atol=1e-9)

    step = steps(process)[:-1]
    for side in (-1e-12, 1e-12):
        assert_close(process.sigma(step + side), process.sigma(step), rtol=1e-7, atol=1e-9)
        assert_close(process.alpha(step + side), process.alpha(step), rtol=1e-7, atol=1e-9)


@every_process
def test_time_at_holds_at_both_ends_and_beyond(process: NoiseProcess) -> None:
    t = torch.logspace(-6, 0, 100, dtype=F64)
    assert_close(process.time_at(process.log_snr(t)), t, rtol=1e-12, atol=0)
    beyond = torch.tensor([math.inf, -math.inf, process.log_snr(t[-1]).item() - 1], dtype=F64)
    assert process.time_at(beyond).tolist() == [0, 1, 1]


def test_between_steps_log_snr_is_linear() -> None:
    process = DiscreteVP(num_steps=10)
    ends = process.log_snr(torch.tensor([0.3, 0.4], dtype=F64))
    assert_close(process.log_snr(torch.tensor(0.325, dtype=F64)), ends[0] + 0.25 * (ends[1] - ends[0]))


@every_chain
def test_adjacent_posterior_is_ho_et_als(process: NoiseProcess) -> None:
    """Ho et al. 2020, eq. 7, written out in the betas."""
    t = steps(process)
    bar, s = alpha_bar(process)[1:], t[:-1]
    bar_before = alpha_bar(process)[:-1]
    beta = 1 - bar / bar_before
    assert_close(process.step_variance(s, t[1:]), beta, rtol=1e-7, atol=1e-9)
    assert_close(process.posterior_variance(s, t[1:]), (1 - bar_before) / (1 - bar) * beta, rtol=1e-7, atol=1e-9)

    x0, x_t = torch.full_like(bar, 0.7), torch.full_like(bar, -1.3)
    mean = bar_before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).clamp(min=0).sqrt() * (1 - bar_before) / (1 - bar) * x_t
    assert_close(process.posterior_mean(x0, x_t, s, t[1:]), mean, rtol=1e-6, atol=1e-9)


@every_process
def test_posterior_joins_the_marginals(process: NoiseProcess) -> None:
    """Drawing x_t given x0, then x_s given both, is the same as drawing x_s given x0, for any two times."""
    s, t = torch.tensor(0.31, dtype=F64), torch.tensor(0.87, dtype=F64)
    x0 = torch.ones((), dtype=F64)
    zero = torch.zeros_like(x0)
    mean = process.posterior_mean(x0, process.blend(Estimate(x0, zero), t), s, t)
    eps_gain = process.posterior_mean(zero, process.blend(Estimate(zero, x0), t), s, t)  # x_s per unit of eps in x_t
    assert_close(mean, process.alpha(s))
    assert_close(eps_gain**2 + process.posterior_variance(s, t), process.sigma(s) ** 2)


@every_process
def test_blend_takes_one_time_a_sample(process: NoiseProcess) -> None:
    x0, eps = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    got = process.blend(Estimate(x0, eps), t)
    for i in range(3):
        assert_close(got[i], (process.alpha(t[i]) * x0[i] + process.sigma(t[i]) * eps[i]).float())


@every_process
def test_noise_share_starts_at_0_and_gives_the_noise_ratio(process: NoiseProcess) -> None:
    t = torch.tensor([0.0, 0.4, 0.8], dtype=F64)
    share = process.noise_share(t)
    assert share[0] == 0
    assert_close(share / (1 - share), process.sigma(t) / process.alpha(t))


def test_a_long_chain_keeps_its_digits() -> None:
    """alpha_bar of 100,000 steps of 0.02 is e^-2020, below any float64; its log-SNR is not."""
    process = DiscreteVP(spacing="linear", beta_first=0.02, beta_last=0.02, num_steps=100_000)
    assert process.log_snr(torch.tensor(1.0)).item() == pytest.approx(100_000 * math.log(0.98), rel=1e-9)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"spacing": "quadratic"}, "sqrt_linear"),
        ({"num_steps": 1}, "num_steps"),
        ({"beta_first": 0.02, "beta_last": 0.01}, "beta_first"),
        ({"beta_first": 0.0}, "beta_first"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiscreteVP(**wrong)
