"""Gradients made of those at the reconstruction are those of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.losses.slopes import Slopes


@pytest.mark.parametrize("is_learned", [True, False])
def test_gradients_from_the_reconstruction_on_are_those_of_the_whole_loss(is_learned: bool) -> None:
    torch.manual_seed(0)
    inner, last, judge = (nn.Conv2d(3, 3, 1).double() for _ in range(3))
    log_variance = nn.Parameter(torch.tensor(0.3, dtype=torch.float64), requires_grad=is_learned)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    trained = [*inner.parameters(), *last.parameters(), *([log_variance] if is_learned else [])]

    def forward() -> tuple[torch.Tensor, ...]:
        latent = inner(images).tanh()
        reconstruction = last(latent)
        nll = ((reconstruction - images).abs() / log_variance.exp() + log_variance).sum()
        return reconstruction, nll, judge(reconstruction).square().mean(), latent.square().sum()

    weight = torch.tensor(0.7, dtype=torch.float64)
    _, nll, adversarial, penalties = forward()
    of_terms = [torch.autograd.grad(term, last.weight, retain_graph=True)[0] for term in (nll, adversarial)]
    wanted = torch.autograd.grad(nll + weight * adversarial + penalties, trained)

    reconstruction, nll, adversarial, penalties = forward()
    slopes = Slopes.of(reconstruction, nll, adversarial, log_variance)
    assert_close(list(slopes.at(last.weight)), of_terms)
    assert_close(torch.autograd.grad(slopes.loss(weight, penalties), trained), wanted)
