"""Checkpoint formats: configs that an earlier version wrote are read with today's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.core.errors import UserError

FORMAT = 2  # of a checkpoint's config, recorded in its manifest; a manifest without it is of format 1


def check_format(found: object, where: str) -> None:
    """
    Raises:
        UserError: the format of a later version.
    """
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise UserError(f"{where} is of format {found}; this version reads formats 1 to {FORMAT}: update it")


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint of any format, with today's keys; a config of today's format is returned unchanged.

    Format 1 called a first stage's latent normalization `space`, and its downsampling factor `ratio`. A LoRA's config has its base's in it.
    """
    found = {"normalization" if key == "space" else key: value for key, value in config.items()}
    normalization, base = found.get("normalization"), found.get("base")
    if isinstance(normalization, Mapping):
        found["normalization"] = {"downsampling_factor" if key == "ratio" else key: value for key, value in normalization.items()}
    if isinstance(base, Mapping):
        found["base"] = upgraded(base)
    return found
