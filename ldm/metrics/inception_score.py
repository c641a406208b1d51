"""Inception Score (Salimans et al. 2016): exp of the mean KL between a picture's class probabilities and those of all."""

from __future__ import annotations

from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

SPLITS = 10


def inception_score(features: Tensor, class_layer: Tensor) -> float:
    """Of Inception's features, as it is published.

    Args:
        features: (N, 2048), N >= SPLITS.
        class_layer: (1008, 2048).
    """
    return score_of_logits(features.double() @ class_layer.double().T)


def score_of_logits(logits: Tensor) -> float:
    """Mean over SPLITS parts of the set, by any classifier's logits (N, classes), N >= SPLITS."""
    return isc_features_to_metric(logits.double(), splits=SPLITS)["inception_score_mean"]
