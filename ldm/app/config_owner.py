"""Which script a config is for, by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Owner = Literal["train_vae", "train_ldm", "train_classifier", "checkpoint"]
WHOSE: dict[Owner, str] = {
    "train_vae": "a stage-one config: use scripts/train_vae.py",
    "train_ldm": "a stage-two config: use scripts/train_ldm.py",
    "train_classifier": "a classifier's config: use scripts/train_classifier.py",
    "checkpoint": "a checkpoint's, which says what a model is and not how it trains: name a run's, RUN_DIR/config.yaml, or one of configs/",
}


def owner_of(content: Mapping[str, Any]) -> Owner | None:
    """Whose config this is; None = of none of them.

    Args:
        content: plain data, not checked. One that goes on with a checkpoint leaves the denoiser to it.
    """
    if "train" not in content and ({"normalization", "space"} & content.keys() or {"base", "lora"} <= content.keys()):
        return "checkpoint"
    if "network" in content:
        return "train_classifier"
    if {"denoiser", "weighting"} & content.keys():
        return "train_ldm"
    return "train_vae" if "loss" in content else None
