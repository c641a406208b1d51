"""Classifier-free guidance: its three identities, in one pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.guidance.classifier_free import classifier_free

every_prediction = pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
every_scale = pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])


class Listener:
    """A network whose every answer depends on the sample, the clock and all that it is told; remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[Condition] = []

    def __call__(self, x: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        self.asked.append(condition)
        told = condition.vector.sum(1) + (condition.tokens.mean(2) * condition.token_mask).sum(1)
        return (x + clock[:, None, None, None] / 500).sin() * told[:, None, None, None].cos() + condition.concat


def condition(seed: int, mask: bool = True) -> Condition:
    draws = torch.Generator().manual_seed(seed)
    return Condition(
        vector=torch.randn(3, 4, generator=draws),
        tokens=torch.randn(3, 2, 5, generator=draws),
        token_mask=torch.tensor([[True, mask]] * 3),
        concat=torch.randn(3, 1, 1, 1, generator=draws),
    )


TOLD, UNTOLD = condition(1), condition(2, mask=False)
X_T = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def denoiser(prediction: Prediction) -> Denoiser:
    return Denoiser(network=Listener(), process=DiscreteVP(), prediction=prediction)


@every_scale
@every_prediction
def test_is_the_line_through_untold_and_told(prediction: Prediction, scale: float) -> None:
    """Ho & Salimans 2022, eq. 6, with scale = 1 + w: 0 is untold, 1 is told; x0 and eps alike, each row by its own condition."""
    model = denoiser(prediction)
    untold, told = model.bind(UNTOLD)(X_T, T), model.bind(TOLD)(X_T, T)
    got = classifier_free(model, TOLD, UNTOLD, scale)(X_T, T)
    assert_close(got.x0, (1 - scale) * untold.x0 + scale * told.x0, rtol=1e-4, atol=1e-4)
    assert_close(got.eps, (1 - scale) * untold.eps + scale * told.eps, rtol=1e-4, atol=1e-4)
    assert (untold.x0 - told.x0).abs().mean() > 0.01


@every_scale
def test_asks_the_network_once(scale: float) -> None:
    model = denoiser(Prediction.of_kind("v")())
    denoise = classifier_free(model, TOLD, UNTOLD, scale)
    denoise(X_T, T)
    denoise(X_T, T)
    assert [len(asked.vector) for asked in model.network.asked] == [3 if scale == 1 else 6] * 2


@every_prediction
def test_guided_ends_still_make_x_t(prediction: Prediction) -> None:
    got = classifier_free(denoiser(prediction), TOLD, UNTOLD, 7.5)(X_T, T)
    assert_close(DiscreteVP().blend(got, T), X_T, rtol=1e-3, atol=1e-3)
