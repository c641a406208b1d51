"""Predictions: every kind gives the same estimate of the same sample, and each matches its definition."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.prediction import (
    EDMPrediction,
    EpsPrediction,
    Prediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow

F64 = torch.float64
PROCESSES = [kind() for kind in NoiseProcess.kinds().values()]
UNDEFINED = {("rectified_flow", "eps"), ("rectified_flow", "score")}  # zero SNR at t = 1
PAIRS = [
    pytest.param(process, prediction, id=f"{process.kind}-{prediction.kind}")
    for process in PROCESSES
    for prediction in (kind() for kind in Prediction.kinds().values())
    if (process.kind, prediction.kind) not in UNDEFINED
]
every_pair = pytest.mark.parametrize("process, prediction", PAIRS)
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)


def numbers() -> torch.Tensor:
    return torch.randn(3, 50, dtype=F64, generator=torch.Generator().manual_seed(1))


@every_pair
def test_reading_a_perfect_output_gives_both_ends_back(process: NoiseProcess, prediction: Prediction) -> None:
    x0, eps, _ = numbers()
    t = torch.linspace(process.t_first, process.t_last, 50, dtype=F64)
    scales = process.scales(t, x0)
    got = prediction.read(prediction.target(x0, eps, *scales), process.blend(Estimate(x0, eps), t), *scales)
    assert_close(got.x0, x0, rtol=1e-9, atol=1e-9)
    assert_close(got.eps, eps, rtol=1e-9, atol=1e-9)


@every_pair
def test_any_output_is_read_as_x0_and_eps_of_x_t(process: NoiseProcess, prediction: Prediction) -> None:
    output, x_t, _ = numbers()
    t = torch.linspace(process.t_first, process.t_last, 50, dtype=F64)
    assert_close(process.blend(prediction.read(output, x_t, *process.scales(t, x_t)), t), x_t, rtol=1e-9, atol=1e-9)


@every_pair
def test_gain_carries_an_output_error_to_x0(process: NoiseProcess, prediction: Prediction) -> None:
    output, x_t, error = numbers()
    scales = process.scales(torch.linspace(process.t_first, process.t_last, 50, dtype=F64), x_t)
    moved = prediction.read(output + error, x_t, *scales).x0 - prediction.read(output, x_t, *scales).x0
    assert_close(moved.abs(), prediction.x0_gain(*scales) * error.abs(), rtol=1e-7, atol=1e-9)


def test_v_is_the_angular_velocity() -> None:
    """Salimans & Ho 2022, appendix D: v = dx/dphi for alpha = cos phi, sigma = sin phi."""
    x0, eps, _ = numbers()
    phi, tiny = torch.linspace(0, torch.pi / 2, 50, dtype=F64), 1e-6
    slope = ((phi + tiny).cos() * x0 + (phi + tiny).sin() * eps - (phi - tiny).cos() * x0 - (phi - tiny).sin() * eps) / (2 * tiny)
    assert_close(VPrediction().target(x0, eps, phi.cos(), phi.sin()), slope, rtol=1e-8, atol=1e-8)


def test_targets_of_eps_and_x0_are_eps_and_x0() -> None:
    x0, eps, _ = numbers()
    alpha, sigma = torch.tensor(0.8, dtype=F64), torch.tensor(0.6, dtype=F64)
    assert_close(EpsPrediction().target(x0, eps, alpha, sigma), eps)
    assert_close(X0Prediction().target(x0, eps, alpha, sigma), x0)


def test_velocity_is_the_slope_of_the_rectified_flow() -> None:
    """dx/dt of x = (1 - t) x0 + t eps."""
    x0, eps, _ = numbers()
    process, t, tiny = RectifiedFlow(), torch.linspace(0.01, 0.99, 50, dtype=F64), 1e-4
    slope = (process.blend(Estimate(x0, eps), t + tiny) - process.blend(Estimate(x0, eps), t - tiny)) / (2 * tiny)
    assert_close(VelocityPrediction().target(x0, eps, *process.scales(t, x0)), slope, rtol=1e-8, atol=1e-8)


@every_process
def test_velocity_is_the_slope_in_the_flows_frame(process: NoiseProcess) -> None:
    """dy/du for y = x / (alpha + sigma), u = sigma / (alpha + sigma), whatever the process."""
    x0, eps, _ = numbers()
    t, later = torch.linspace(0.2, 0.8, 50, dtype=F64), torch.linspace(0.2, 0.8, 50, dtype=F64) + 1e-3

    def y(t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.scales(t, x0)
        return process.blend(Estimate(x0, eps), t) / (alpha + sigma)

    slope = (y(later) - y(t)) / (process.noise_share(later) - process.noise_share(t))
    assert_close(VelocityPrediction().target(x0, eps, *process.scales(t, x0)), slope, rtol=1e-7, atol=1e-7)


def test_edm_is_the_published_preconditioning() -> None:
    """Karras et al. 2022, table 1: x0 = c_skip x + c_out F with sigma_data 0.5; at sigma = 1, c_skip = 0.2 and c_out = 1 / sqrt(5)."""
    output, x_t, _ = numbers()
    sigma, sd = torch.linspace(0.002, 80, 50, dtype=F64), 0.5
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    got = EDMPrediction().read(output, x_t, *EDM().scales(sigma / 80, x_t)).x0
    assert_close(got, c_skip * x_t + c_out * output, rtol=1e-9, atol=1e-9)
    one = torch.ones((), dtype=F64)
    assert_close(EDMPrediction().read(one, one, one, one).x0, 0.2 * one + 5**-0.5)


@every_process
def test_edm_target_has_unit_variance(process: NoiseProcess) -> None:
    """The purpose of the coefficients (appendix B.6): a target of variance 1 at every noise level, for data of variance sigma_data^2."""
    t = torch.linspace(process.t_first, 1, 50, dtype=F64)
    a, b = EDMPrediction(sigma_data=0.7).mix(process.alpha(t), process.sigma(t))
    assert_close((0.7 * a) ** 2 + b**2, torch.ones_like(t))


def test_score_is_the_gradient_of_the_log_density() -> None:
    x0, eps, _ = numbers()
    alpha, sigma = torch.tensor(0.8, dtype=F64), torch.tensor(0.3, dtype=F64)
    x_t = (alpha * x0 + sigma * eps).requires_grad_()
    torch.distributions.Normal(alpha * x0, sigma).log_prob(x_t).sum().backward()
    assert_close(ScorePrediction().target(x0, eps, alpha, sigma), x_t.grad)


@pytest.mark.parametrize("process", [DiscreteVP(zero_terminal_snr=True), RectifiedFlow()], ids=lambda p: p.kind)
def test_a_prediction_that_is_undefined_at_zero_snr_is_refused(process: NoiseProcess) -> None:
    for prediction in (EpsPrediction(), ScorePrediction()):
        with pytest.raises(UserError, match=f"'{prediction.kind}' is undefined at zero SNR.*use 'v', 'x0', 'velocity' or 'edm'"):
            prediction.check(process)
    for fine in (VPrediction(), X0Prediction(), VelocityPrediction(), EDMPrediction()):
        fine.check(process)


def test_eps_and_score_are_accepted_above_zero_snr() -> None:
    for prediction in (EpsPrediction(), ScorePrediction()):
        prediction.check(DiscreteVP())
    with pytest.raises(UserError, match="sigma_data > 0"):
        EDMPrediction(sigma_data=0)
