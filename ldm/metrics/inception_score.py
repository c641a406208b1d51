"""Inception Score (Salimans et al. 2016): exp of the mean KL between an image's class probabilities and the mean over all images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from ldm.metrics import bootstrap

SPLITS = 10


def logits_of(features: Tensor, class_layer: Tensor) -> Tensor:
    """(N, 1008) from Inception's features (N, 2048) and its class layer (1008, 2048)."""
    return features.double() @ class_layer.double().T


def score_of_logits(logits: Tensor) -> float:
    """Mean over SPLITS parts of the set, from any classifier's logits (N, classes), N >= SPLITS."""
    return isc_features_to_metric(logits.double(), splits=SPLITS)["inception_score_mean"]


def score_and_interval(logits: Tensor) -> tuple[float, bootstrap.Interval | None]:
    """`score_of_logits`, and its interval if there are fewer than FEW rows."""
    value = score_of_logits(logits)
    if len(logits) >= bootstrap.FEW:
        return value, None
    replicates = [score_of_logits(logits[rows]) for rows in bootstrap.draws(len(logits))]
    return value, bootstrap.around(value, torch.tensor(replicates))
