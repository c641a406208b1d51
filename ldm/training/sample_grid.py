"""The sample grid of a stage-two run: one row per way of conditioning that the model is trained for, at fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Examples
from ldm.conditioning.inputs import ConditionInputs, part_of
from ldm.core.distributed import World
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.training.image_grid import as_rgb, grid_of

COLUMNS = 8  # samples a row, at most


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    Attributes:
        values: by conditioner, for all columns.
        kept: those of them that the unconditional side of guidance is given too.
        shown: (columns, C, h, w), images that belong beneath the samples.
        words: by conditioner, for all columns, for those that have some.
        columns: samples.
    """

    values: Mapping[str, Any]
    kept: Mapping[str, Any]
    shown: Tensor | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: int


def sample_grid(model: LatentDiffusion, rows: Sequence[Row], seed: int, world: World) -> Tensor:
    """(3, H, W) in [0, 1].

    Args:
        model: by averaged weights.
        rows: see `rows_of`.
        seed: of the samples.
        world: the processes, each of which draws some columns.
    """
    columns, how = rows[0].columns, model.sampling(seed=seed)
    start, stop = world.part(columns)
    drawn = []
    for row in rows:
        conditions, unconditions = (
            [model.encode_condition(ConditionInputs(count=1, values=_column(values, i))) for i in range(start, stop)]
            for values in (row.values, row.kept)
        )
        own = [model.render(conditions, unconditions, how, offset=start).cpu()] if start < stop else []
        drawn.append(as_rgb(torch.cat([images for one in world.of_all(own) for images in one])))
        if row.shown is not None:
            drawn.append(F.interpolate(as_rgb(row.shown).cpu(), size=drawn[-1].shape[2:], mode="nearest"))
    return grid_of(torch.cat(drawn), columns=columns)


def words_of(rows: Sequence[Row]) -> str:
    """What each sample of the grid was conditioned on, a line each, for the rows that can be put in words."""
    lines, number = [], 1
    for row in rows:
        lines.append(f"row {number}: {', '.join(row.values) or 'unconditional'}" + f"; row {number + 1} shows it" * (row.shown is not None))
        for column in range(row.columns if row.words else 0):
            lines.append(f"  {column + 1}  " + ", ".join(f"{name}: {words[column] or '(none)'}" for name, words in row.words.items()))
        number += 1 if row.shown is None else 2
    return "".join(f"{line}\n" for line in lines)


def rows_of(model: LatentDiffusion, batch: Batch, facts: DataFacts, prompts: tuple[str, ...]) -> Iterator[Row]:
    """A row for each thing that is read of a record; conditioners that read the same share it. Rows that guidance keeps come last.

    Without any, an unconditional one.

    Args:
        model: by averaged weights.
        batch: pictures whose captions, maps and so on are taken.
        facts: of their set.
        prompts: instead of captions; may be empty.
    """
    columns = min(COLUMNS, len(batch.names))
    found: dict[tuple[str, bool], dict[str, Examples]] = {}
    for name, part in model.conditioners.items():
        examples = part.examples(batch, facts, columns, prompts, model.latent_size)
        if examples is not None:
            found.setdefault((part.reads, part.keeps_under_guidance), {})[name] = examples
    for (_, keeps), parts in sorted(found.items(), key=lambda row: row[0][1]):
        values = {name: one.value for name, one in parts.items()}
        shown = next((one.shown for one in parts.values() if one.shown is not None), None)
        words = {name: one.words for name, one in parts.items() if one.words}
        yield Row(values=values, kept=values if keeps else {}, shown=shown, words=words, columns=columns)
    if not found:
        yield Row(values={}, kept={}, columns=columns)


def _column(values: Mapping[str, Any], column: int) -> dict[str, Any]:
    return {name: part_of(value, column, column + 1) for name, value in values.items()}
