"""The gradients at the reconstruction, of which the adversarial weight and the training step's gradients are both made.

The weight needs the gradients of two terms at the decoder's last layer; only then is the loss known that goes backward through the whole
autoencoder. All of these begin alike: backward through LPIPS to the reconstruction, and through the discriminator. Gradients are linear
in what comes from behind. So these two passes are made once, and what follows begins at the reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP16_GUARD = 2.0**8  # the nll's gradients are large and the adversary's small: kept within half precision's range; exact


@dataclass(frozen=True)
class Slopes:
    """
    Attributes:
        reconstruction: (B, C, H, W), with its graph.
        nll: gradient of the nll there, divided by FP16_GUARD.
        adversarial: of the adversarial term, times FP16_GUARD.
        log_variance: the parameter.
        of_log_variance: the nll's gradient there, divided by FP16_GUARD; None = it is not trained.
    """

    reconstruction: Tensor
    nll: Tensor
    adversarial: Tensor
    log_variance: Tensor
    of_log_variance: Tensor | None

    @staticmethod
    def of(reconstruction: Tensor, nll: Tensor, adversarial: Tensor, log_variance: Tensor) -> Slopes:
        """Frees the graphs of nll () and adversarial () down to the reconstruction, whose own stays."""
        ends = [reconstruction, log_variance] if log_variance.requires_grad else [reconstruction]
        of_nll, *rest = torch.autograd.grad(nll / FP16_GUARD, ends)
        (of_adversarial,) = torch.autograd.grad(adversarial * FP16_GUARD, reconstruction)
        return Slopes(reconstruction, of_nll, of_adversarial, log_variance, rest[0] if rest else None)

    def at(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of nll and adversarial term at the last layer's weight."""
        (of_nll,) = torch.autograd.grad(self.reconstruction, last, self.nll, retain_graph=True)
        (of_adversarial,) = torch.autograd.grad(self.reconstruction, last, self.adversarial, retain_graph=True)
        return of_nll * FP16_GUARD, of_adversarial / FP16_GUARD

    def loss(self, weight: Tensor, penalties: Tensor) -> Tensor:
        """(): has the gradients of nll + weight * adversarial + penalties, not its value."""
        total = (self.reconstruction * (self.nll * FP16_GUARD + weight * self.adversarial / FP16_GUARD)).sum() + penalties
        return total if self.of_log_variance is None else total + self.log_variance * self.of_log_variance * FP16_GUARD
