"""A config that does not say what the model is: `init_from` does. What it leaves out is the checkpoint's, and what it says must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ldm.checkpoints.model import LatentDiffusionSpec, read_spec
from ldm.config.loader import dump, from_short_form
from ldm.core.errors import UserError
from ldm.first_stage.identity import IdentityConfig

MODEL_KEYS = ("denoiser", "process", "prediction", "network_input", "learned_variance", "conditioning")
# What may differ: how the model is sampled and shown pictures, and what of its parts no weight depends on.
FREE = ("sampling", "sampling.*", "data", "data.*", "first_stage.checkpoint")
FREE_OF_DENOISER = ("denoiser.dropout", "denoiser.checkpointing", "denoiser.attention_backend")


def completed(content: dict[str, Any]) -> dict[str, Any]:
    """The config of a stage-two run with what the checkpoint of `init_from` says, if its `denoiser` has no `kind`; else as it is.

    Args:
        content: plain data, not yet checked.

    Raises:
        UserError: no `init_from`; a checkpoint that cannot be opened; a key that contradicts it.
    """
    denoiser, source = content.get("denoiser"), content.get("init_from")
    if isinstance(denoiser, str) or (isinstance(denoiser, dict) and "kind" in denoiser):
        return content
    if not isinstance(source, str):
        raise UserError(
            "this config does not say what the model is: name the checkpoint to go on with, init_from=FOLDER, or give it a whole model"
        )
    spec = read_spec(source)
    if isinstance(content.get("data"), dict) and "size" in content["data"]:  # then it says all of the size
        spec = replace(spec, buckets=None)
    free_of_conditioners = (f"conditioning.{name}.{key}" for name, config in spec.conditioning.items() for key in config.free)
    joined: dict[str, Any] = _joined(content, _known(spec, source), "", source, (*FREE, *FREE_OF_DENOISER, *free_of_conditioners))
    return joined


def check_base(spec: LatentDiffusionSpec, base: LatentDiffusionSpec) -> None:
    """Refuses, by UserError, to train adapters under another reading of the network than their base's, which is what they are used with."""
    for key in ("process", "prediction", "network_input", "learned_variance", "frozen"):
        if getattr(spec, key) != getattr(base, key):
            raise UserError(f"lora: {key} is not as in init_from, but adapters change weights and nothing else; leave out lora, or {key}")


def _known(spec: LatentDiffusionSpec, source: str) -> dict[str, Any]:
    """What a config that goes on with a checkpoint says of the model."""
    has_pixels = isinstance(spec.first_stage, IdentityConfig)
    first_stage = {"kind": "identity", "checkpoint": None} if has_pixels else {"kind": "checkpoint", "checkpoint": source}
    return {
        **{key: dump(getattr(spec, key)) for key in MODEL_KEYS},
        "first_stage": first_stage | {"config": None, "scale": None},
        "sampling": dump(spec.sampling),
        "data": {
            **{"size": dump(spec.size), "buckets": dump(spec.buckets), "fit": spec.fit, "depth": spec.depth},
            "channels": spec.first_stage.image_channels,
        },
    }


def _joined(given: Any, known: Any, path: str, source: str, free: Sequence[str]) -> Any:
    """`free`: patterns of the paths that may differ."""
    is_free = any(fnmatchcase(path, pattern) for pattern in free)
    if isinstance(known, dict) and "kind" in known and isinstance(given, str):
        given = from_short_form(given, path)
    if isinstance(given, dict) and isinstance(known, dict):
        if is_free and given.get("kind", known.get("kind")) != known.get("kind"):
            return given
        found = dict(known)
        for key, value in given.items():
            at = f"{path}.{key}" if path else key
            if path == "conditioning" and key not in known:
                raise UserError(
                    f"config key {at!r}: init_from={source} is conditioned on {', '.join(known) or 'nothing'} only; leave it out"
                )
            found[key] = (
                _joined(value, known[key], at, source, free) if key in known else value
            )  # a key that nobody knows the loader refuses
        return found
    if given == known or is_free:
        return given
    raise UserError(f"config key {path!r}: {given} contradicts init_from={source}, where it is {known}; leave it out")
