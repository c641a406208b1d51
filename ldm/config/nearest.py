"""The key that an unknown one probably stands for."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ldm.core.family import Family

# What other tools call a key, by its last part.
ALIASES = {
    "lr": "train.optimizer.learning_rate",
    "wd": "train.optimizer.weight_decay",
    "warmup": "train.optimizer.warmup_steps",
    "scheduler": "train.optimizer.decay",
    "grad_clip": "train.optimizer.clip_norm",
    "max_grad_norm": "train.optimizer.clip_norm",
    "bs": "train.batch_size",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "epochs": "train.steps",
    "num_epochs": "train.steps",
    "gradient_accumulation_steps": "train.accumulate",
    "mixed_precision": "train.precision",
    "ema": "train.ema_decay",
    "path": "data.train",
    "dir": "data.train",
    "folder": "data.train",
    "dataset": "data.train",
    "resolution": "data.size",
    "image_size": "data.size",
    "num_workers": "data.workers",
}
NO_KEY = {
    "output_dir": "the run's folder is a flag: --run-dir DIR",
    "run_dir": "the run's folder is a flag: --run-dir DIR",
    "out": "the run's folder is a flag: --run-dir DIR",
    "resume": "the same command again resumes",
}
SIMILAR = 0.75  # least likeness, from 0 to 1, of a key elsewhere in the config


def hint(key: str, siblings: Sequence[str], schema: Any) -> str:
    """What to write in place of an unknown key; empty if nothing is near.

    Only last parts are compared: a path that shares no more than its beginning is no near one.

    Args:
        key: as a dotted path.
        siblings: the keys that there are in its place.
        schema: of the whole config.
    """
    name, keys = _last(key), [*_leaves(schema, "")]
    if name in NO_KEY:
        return f" {NO_KEY[name][0].upper()}{NO_KEY[name][1:]}."
    by_name = {_last(sibling): sibling for sibling in siblings}
    found = [key for key in keys if _last(key) == name] or [key for key in (ALIASES.get(name),) if key in keys]
    found = found or [by_name[near] for near in difflib.get_close_matches(name, by_name, n=1)]
    if not found:
        near = difflib.get_close_matches(name, {_last(key) for key in keys}, n=1, cutoff=SIMILAR)
        found = [key for key in keys if _last(key) in near]
    return f" Did you mean {' or '.join(map(repr, found[:3]))}?" if found else ""


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _leaves(schema: Any, prefix: str) -> Iterator[str]:
    """Paths of all keys of a dataclass that are no section themselves; what a `kind` brings is not among them."""
    if not is_dataclass(schema):
        return
    hints = typing.get_type_hints(schema)
    for field in fields(schema):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        sections = [option for option in options if is_dataclass(option) and not issubclass(typing.cast(type, option), Family)]
        for section in sections:
            yield from _leaves(section, f"{prefix}{field.name}.")
        if not sections and field.init:
            yield f"{prefix}{field.name}"
