"""What lies on users' disks under names of an earlier format, read as today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.core.errors import UserError

FORMAT = 2  # of a checkpoint's config; its manifest says it, and those of the first format say none


def check_format(found: object, where: str) -> None:
    """
    Raises:
        UserError: a format that only a later version of this tool knows.
    """
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise UserError(f"{where} is of format {found}; this version reads formats 1 to {FORMAT}: update it")


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint of any format, with today's keys; one of today's is as it was.

    Format 1 called a first stage's latent normalization `space`, and its downsampling factor `ratio`. A LoRA's config holds its base's.
    """
    found = {"normalization" if key == "space" else key: value for key, value in config.items()}
    normalization, base = found.get("normalization"), found.get("base")
    if isinstance(normalization, Mapping):
        found["normalization"] = {"downsampling_factor" if key == "ratio" else key: value for key, value in normalization.items()}
    if isinstance(base, Mapping):
        found["base"] = upgraded(base)
    return found
