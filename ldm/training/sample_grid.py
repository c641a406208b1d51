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
from ldm.training.image_grid import as_rgb, grid_of, on_one_canvas

COLUMNS = 8  # samples a row, at most


@dataclass(frozen=True, kw_only=True)
class Row:
    """Samples of one size that are conditioned alike: a row of the grid, or a part of one where samples have several sizes.

    Attributes:
        size: (height, width) of the samples.
        values: by conditioner, for all columns.
        kept: those of them that the unconditional side of guidance is given too.
        shown: (columns, C, h, w), images that belong beneath the samples.
        words: by conditioner, for all columns, for those that have some.
        columns: samples.
    """

    size: tuple[int, int]
    values: Mapping[str, Any]
    kept: Mapping[str, Any]
    shown: Tensor | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: int


def sample_grid(model: LatentDiffusion, rows: Sequence[tuple[Row, ...]], seed: int, world: World) -> Tensor:
    """(3, H, W) in [0, 1].

    Args:
        model: by averaged weights.
        rows: see `rows_of`.
        seed: of the samples.
        world: the processes, each of which draws some columns.
    """
    how = model.sampling(seed=seed)
    drawn: list[Tensor] = []
    for row in rows:
        samples: list[Tensor] = []
        shown: list[Tensor] = []
        for part in row:
            at_size = model.at_size(*part.size)
            start, stop = world.part(part.columns)
            conditions, unconditions = (
                [at_size.encode_condition(ConditionInputs(count=1, values=_column(values, i))) for i in range(start, stop)]
                for values in (part.values, part.kept)
            )
            numbers = range(len(samples) + start, len(samples) + stop)
            own = [at_size.render(conditions, unconditions, how, numbers=numbers).cpu()] if start < stop else []
            samples += as_rgb(torch.cat([images for one in world.of_all(own) for images in one]))
            if part.shown is not None:
                shown += F.interpolate(as_rgb(part.shown).cpu(), size=part.size, mode="nearest")
        drawn += samples + shown
    return grid_of(on_one_canvas(drawn), columns=sum(part.columns for part in rows[0]))


def words_of(rows: Sequence[tuple[Row, ...]]) -> str:
    """What each sample of the grid was conditioned on, a line each, for the rows that can be put in words."""
    lines, number = [], 1
    for row in rows:
        has_shown = row[0].shown is not None
        lines.append(f"row {number}: {', '.join(row[0].values) or 'unconditional'}" + f"; row {number + 1} shows it" * has_shown)
        said = [
            ", ".join(f"{name}: {words[column] or '(none)'}" for name, words in part.words.items())
            for part in row
            for column in range(part.columns if part.words else 0)
        ]
        lines += [f"  {column}  {words}" for column, words in enumerate(said, 1)]
        number += 2 if has_shown else 1
    return "".join(f"{line}\n" for line in lines)


def rows_of(model: LatentDiffusion, batches: Sequence[Batch], facts: DataFacts, prompts: tuple[str, ...]) -> Iterator[tuple[Row, ...]]:
    """A row for each thing that is read of a record; conditioners that read the same share it. Rows that guidance keeps come last.

    Without any, an unconditional one. Each row has a part for each batch.

    Args:
        model: by averaged weights.
        batches: pictures whose captions, maps and so on are taken, those of one size together.
        facts: of their set.
        prompts: instead of captions; may be empty.
    """
    parts, before = [], 0
    for batch in batches:
        first = before % max(1, len(prompts))  # so that the row shows them one after the other
        parts.append(list(_rows_of_one_size(model, batch, facts, prompts[first:] + prompts[:first])))
        before += len(batch.names)
    yield from zip(*parts, strict=True)


def _rows_of_one_size(model: LatentDiffusion, batch: Batch, facts: DataFacts, prompts: tuple[str, ...]) -> Iterator[Row]:
    columns, (height, width) = len(batch.names), batch.images.shape[2:]
    latent_size = model.at_size(height, width).latent_size
    found: dict[tuple[str, bool], dict[str, Examples]] = {}
    for name, part in model.conditioners.items():
        examples = part.examples(batch, facts, columns, prompts, latent_size)
        if examples is not None:
            found.setdefault((part.reads, part.keeps_under_guidance), {})[name] = examples
    for (_, keeps), parts in sorted(found.items(), key=lambda row: row[0][1]):
        values = {name: one.value for name, one in parts.items()}
        shown = next((one.shown for one in parts.values() if one.shown is not None), None)
        words = {name: one.words for name, one in parts.items() if one.words}
        yield Row(size=(height, width), values=values, kept=values if keeps else {}, shown=shown, words=words, columns=columns)
    if not found:
        yield Row(size=(height, width), values={}, kept={}, columns=columns)


def _column(values: Mapping[str, Any], column: int) -> dict[str, Any]:
    return {name: part_of(value, column, column + 1) for name, value in values.items()}
