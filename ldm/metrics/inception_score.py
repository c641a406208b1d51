"""Inception Score (Salimans et al. 2016): exp of the mean KL between an image's class probabilities and the mean over all images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.metrics import bootstrap

SPLITS = 10


def logits_of(features: Tensor, class_layer: Tensor) -> Tensor:
    """(N, 1008) from Inception's features (N, 2048) and its class layer (1008, 2048)."""
    return features.double() @ class_layer.double().T


def score_of_logits(logits: Tensor) -> float:
    """Mean over SPLITS parts of the set, by any classifier's logits (N, classes), N >= SPLITS.

    The parts are those of torch-fidelity, so that its values are comparable to the last digit.
    """
    logits = logits.double()[np.random.RandomState(2020).permutation(len(logits))]
    scores = []
    for part in range(SPLITS):
        log_p = logits[part * len(logits) // SPLITS : (part + 1) * len(logits) // SPLITS].log_softmax(1)
        log_mean = log_p.exp().mean(0).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item())
    return float(np.mean(scores))


def score_and_interval(logits: Tensor) -> tuple[float, bootstrap.Interval | None]:
    """`score_of_logits`, and its interval where a statistic of so many rows has one."""
    value = score_of_logits(logits)
    if not bootstrap.has_interval(len(logits)):
        return value, None
    replicates = [score_of_logits(logits[rows]) for rows in bootstrap.draws(len(logits))]
    return value, bootstrap.around(value, torch.tensor(replicates))
