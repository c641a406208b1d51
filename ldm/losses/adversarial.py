"""Adversarial losses on a discriminator's logits (high = real), and the weight that balances them.

| kind | discriminator | generator | source |
|---|---|---|---|
| hinge | (relu(1 - r) + relu(1 + f)) / 2 | -f | Lim & Ye 2017; Esser et al. 2021 |
| vanilla | (softplus(-r) + softplus(f)) / 2 | -f | Esser et al. 2021's other choice: logistic loss, linear generator |
| non_saturating | (softplus(-r) + softplus(f)) / 2 | softplus(-f) | Goodfellow et al. 2014, sec. 3 |
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ldm.core.errors import unknown

AdversarialKind = Literal["hinge", "vanilla", "non_saturating"]
KINDS = ("hinge", "vanilla", "non_saturating")

ADAPTIVE_CLAMP = 1e4  # as published


def discriminator_error(real: Tensor, fake: Tensor, how: AdversarialKind) -> Tensor:
    """The discriminator's loss of each logit; float32, in the shape of the logits.

    Raises:
        UserError: unknown `how`.
    """
    real, fake = real.float(), fake.float()
    match how:
        case "hinge":
            return 0.5 * (relu(1 - real) + relu(1 + fake))
        case "vanilla" | "non_saturating":
            return 0.5 * (softplus(-real) + softplus(fake))
    raise unknown("adversarial loss", how, KINDS)


def generator_error(fake: Tensor, how: AdversarialKind) -> Tensor:
    """The generator's loss of each logit; float32, in the shape of the logits.

    Raises:
        UserError: unknown `how`.
    """
    match how:
        case "hinge" | "vanilla":
            return -fake.float()
        case "non_saturating":
            return softplus(-fake.float())
    raise unknown("adversarial loss", how, KINDS)


def adaptive_weight(grad_nll: Tensor, grad_adversarial: Tensor, *, clamp: float = ADAPTIVE_CLAMP) -> Tensor:
    """|grad_nll| / (|grad_adversarial| + 1e-4), at most `clamp`: (), no gradient.

    Both are gradients at the decoder's last layer for the whole step: already summed over micro-batches and processes.

    Source: Esser et al. 2021, eq. 7.
    """
    weight = torch.linalg.vector_norm(grad_nll.detach().float()) / (torch.linalg.vector_norm(grad_adversarial.detach().float()) + 1e-4)
    clamped: Tensor = weight.clamp(0, clamp)
    return clamped
