"""Predictions: every kind says the same of the same sample; v by its own definition."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.prediction import EpsPrediction, Prediction, VPrediction, X0Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP

F64 = torch.float64
every_prediction = pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
every_process = pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)


def numbers() -> torch.Tensor:
    return torch.randn(3, 50, dtype=F64, generator=torch.Generator().manual_seed(1))


@every_process
@every_prediction
def test_reading_a_perfect_output_gives_both_ends_back(process: NoiseProcess, prediction: Prediction) -> None:
    x0, eps, _ = numbers()
    t = torch.linspace(process.t_first, process.t_last, 50, dtype=F64)
    scales = process.scales(t, x0)
    got = prediction.read(prediction.target(x0, eps, *scales), process.blend(Estimate(x0, eps), t), *scales)
    assert_close(got.x0, x0, rtol=1e-9, atol=1e-9)
    assert_close(got.eps, eps, rtol=1e-9, atol=1e-9)


@every_process
@every_prediction
def test_any_output_is_read_as_ends_that_make_x_t(process: NoiseProcess, prediction: Prediction) -> None:
    output, x_t, _ = numbers()
    t = torch.linspace(process.t_first, process.t_last, 50, dtype=F64)
    assert_close(process.blend(prediction.read(output, x_t, *process.scales(t, x_t)), t), x_t, rtol=1e-9, atol=1e-9)


@every_process
@every_prediction
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


def test_eps_and_x0_are_what_they_are_called() -> None:
    x0, eps, _ = numbers()
    alpha, sigma = torch.tensor(0.8, dtype=F64), torch.tensor(0.6, dtype=F64)
    assert_close(EpsPrediction().target(x0, eps, alpha, sigma), eps)
    assert_close(X0Prediction().target(x0, eps, alpha, sigma), x0)


def test_eps_is_refused_where_no_signal_is_left() -> None:
    with pytest.raises(UserError, match="'eps' says nothing .* 'v' or 'x0'"):
        EpsPrediction().check(DiscreteVP(zero_terminal_snr=True))
    for fine in (VPrediction(), X0Prediction()):
        fine.check(DiscreteVP(zero_terminal_snr=True))
    EpsPrediction().check(DiscreteVP())
