"""Classifier-free guidance: its identities in one pass, its interval, and the rescaling of its contrast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.guidance.classifier_free import classifier_free

every_prediction = pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
every_scale = pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])


class RecordingNetwork:
    """A network whose output depends on the sample, the network_time and the whole condition; records the conditions of its calls."""

    def __init__(self) -> None:
        self.conditions: list[Condition] = []

    def __call__(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        self.conditions.append(condition)
        cond = condition.vector.sum(1) + (condition.tokens.mean(2) * condition.token_mask).sum(1)
        return (x + network_time[:, None, None, None] / 500).sin() * cond[:, None, None, None].cos() + condition.concat


def condition(seed: int, mask: bool = True) -> Condition:
    draws = torch.Generator().manual_seed(seed)
    return Condition(
        vector=torch.randn(3, 4, generator=draws),
        tokens=torch.randn(3, 2, 5, generator=draws),
        token_mask=torch.tensor([[True, mask]] * 3),
        concat=torch.randn(3, 1, 1, 1, generator=draws),
    )


COND, UNCOND = condition(1), condition(2, mask=False)
X_T = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def denoiser(prediction: Prediction) -> Denoiser:
    return Denoiser(network=RecordingNetwork(), process=DiscreteVP(), prediction=prediction)


@every_scale
@every_prediction
def test_is_the_line_through_uncond_and_cond(prediction: Prediction, scale: float) -> None:
    """Ho & Salimans 2022, eq. 6, with scale = 1 + w: 0 is uncond, 1 is cond; for x0 and eps, each row with its own condition."""
    model = denoiser(prediction)
    uncond, cond = model.bind(UNCOND)(X_T, T), model.bind(COND)(X_T, T)
    got = classifier_free(model, COND, UNCOND, scale)(X_T, T)
    assert_close(got.x0, (1 - scale) * uncond.x0 + scale * cond.x0, rtol=1e-4, atol=1e-4)
    assert_close(got.eps, (1 - scale) * uncond.eps + scale * cond.eps, rtol=1e-4, atol=1e-4)
    assert (uncond.x0 - cond.x0).abs().mean() > 0.01


@every_scale
def test_calls_the_network_once(scale: float) -> None:
    model = denoiser(Prediction.of_kind("v")())
    denoise = classifier_free(model, COND, UNCOND, scale)
    denoise(X_T, T)
    denoise(X_T, T)
    assert [len(condition.vector) for condition in model.network.conditions] == [3 if scale == 1 else 6] * 2


@every_prediction
def test_guided_x0_and_eps_still_give_x_t(prediction: Prediction) -> None:
    got = classifier_free(denoiser(prediction), COND, UNCOND, 7.5)(X_T, T)
    assert_close(DiscreteVP().blend(got, T), X_T, rtol=1e-3, atol=1e-3)


LEVELS = (DiscreteVP().sigma(T) / DiscreteVP().alpha(T)).tolist()


@every_prediction
def test_outside_the_interval_the_result_is_cond(prediction: Prediction) -> None:
    """Kynkaanniemi et al. 2024, eq. 5, each row by its own noise level; if no row is inside, uncond is not computed."""
    model = denoiser(prediction)
    cond = model.bind(COND)(X_T, T)
    everywhere = classifier_free(model, COND, UNCOND, 4.0)(X_T, T)

    above = classifier_free(model, COND, UNCOND, 4.0, interval=(LEVELS[2] * 1.01, math.inf))
    model.network.conditions.clear()
    got = above(X_T, T)
    assert torch.equal(got.x0, cond.x0) and torch.equal(got.eps, cond.eps)
    assert [len(condition.vector) for condition in model.network.conditions] == [3]

    got = classifier_free(model, COND, UNCOND, 4.0, interval=(LEVELS[0] * 1.01, LEVELS[1] * 1.01))(X_T, T)
    for row, wanted in enumerate((cond, everywhere, cond)):
        assert_close(got.x0[row], wanted.x0[row], rtol=1e-4, atol=1e-4)
        assert_close(got.eps[row], wanted.eps[row], rtol=1e-4, atol=1e-4)

    got = classifier_free(model, COND, UNCOND, 4.0, interval=(0.0, math.inf))(X_T, T)
    assert torch.equal(got.x0, everywhere.x0)


@every_prediction
def test_rescale_restores_the_contrast(prediction: Prediction) -> None:
    """Lin et al. 2023, eq. 15 and 16: at 1 each sample's x0 has cond's standard deviation, below 1 a mix with its own; x_t stays."""
    model = denoiser(prediction)
    cond, plain = model.bind(COND)(X_T, T), classifier_free(model, COND, UNCOND, 7.5)(X_T, T)

    def stds(x0: Tensor) -> Tensor:
        return x0.flatten(1).std(1)

    assert (stds(plain.x0) / stds(cond.x0) - 1).abs().max() > 0.1
    for rescale in (0.7, 1.0):
        got = classifier_free(model, COND, UNCOND, 7.5, rescale=rescale)(X_T, T)
        assert_close(stds(got.x0), rescale * stds(cond.x0) + (1 - rescale) * stds(plain.x0), rtol=1e-4, atol=1e-5)
        assert_close(got.x0 / plain.x0, (stds(got.x0) / stds(plain.x0))[:, None, None, None].expand_as(X_T), rtol=1e-3, atol=1e-4)
        assert_close(DiscreteVP().blend(got, T), X_T, rtol=1e-4, atol=1e-4)


def test_rescale_of_a_constant_x0_is_finite() -> None:
    """An untrained network outputs 0; its x0 has no contrast at zero SNR."""
    process = DiscreteVP(zero_terminal_snr=True)
    model = Denoiser(network=lambda x, network_time, condition: 0 * x, process=process, prediction=Prediction.of_kind("v")())
    got = classifier_free(model, COND, UNCOND, 3.0, rescale=1.0)(X_T, torch.ones(3, dtype=torch.float64))
    assert torch.equal(got.x0, torch.zeros_like(X_T)) and torch.equal(got.eps, X_T)


def test_the_learned_variance_is_that_of_cond() -> None:
    network = RecordingNetwork()
    model = Denoiser(
        network=lambda x, network_time, condition: torch.cat([network(x, network_time, condition)] * 2, dim=1),
        process=DiscreteVP(),
        prediction=Prediction.of_kind("eps")(),
        learned_variance=True,
    )
    cond = model.bind(COND)(X_T, T)
    for scale, interval in ((0.0, (0.0, math.inf)), (1.0, (0.0, math.inf)), (4.0, (0.0, math.inf)), (4.0, (LEVELS[1], LEVELS[1]))):
        got = classifier_free(model, COND, UNCOND, scale, interval, rescale=0.5)(X_T, T)
        assert_close(got.variance_logits, cond.variance_logits)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"interval": (2.0, 1.0)}, "0 <= low <= high, got 2.0 and 1.0"),
        ({"interval": (-1.0, 1.0)}, "got -1.0 and 1.0"),
        ({"rescale": 1.5}, "from 0 (none) to 1 (all), got 1.5"),
    ],
)
def test_mistakes_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        classifier_free(denoiser(Prediction.of_kind("v")()), COND, UNCOND, 3.0, **wrong)
    assert message in str(caught.value)
