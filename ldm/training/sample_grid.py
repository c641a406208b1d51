"""The sample grid of a stage-two run: one row per way of conditioning that the model is trained for, at fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.conditioner import Examples
from ldm.conditioning.inputs import ConditionInputs, part_of
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.training.image_grid import grid_of

COLUMNS = 8  # samples a row, at most


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    Attributes:
        values: by conditioner, for all columns.
        kept: those of them that the unconditional side of guidance is given too.
        shown: (columns, C, H, W), images that belong beneath the samples.
    """

    values: Mapping[str, Any]
    kept: Mapping[str, Any]
    shown: Tensor | None = None


def sample_grid(model: LatentDiffusion, batch: Batch, facts: DataFacts, prompts: tuple[str, ...], seed: int) -> Tensor:
    """(3, H, W) in [0, 1].

    Args:
        model: by averaged weights.
        batch: held-out pictures, whose captions, maps and so on are taken.
        facts: of their set.
        prompts: instead of captions; may be empty.
        seed: of the samples.
    """
    columns = min(COLUMNS, len(batch.names))
    how = model.sampling(seed=seed)
    drawn = []
    for row in _rows(model, batch, facts, prompts, columns):
        conditions, unconditions = (
            [model.encode_condition(ConditionInputs(count=1, values=_column(values, i))) for i in range(columns)]
            for values in (row.values, row.kept)
        )
        drawn.append(model.render(conditions, unconditions, how))
        if row.shown is not None:
            drawn.append(row.shown.cpu())
    return grid_of(torch.cat(drawn), columns=columns)


def _rows(model: LatentDiffusion, batch: Batch, facts: DataFacts, prompts: tuple[str, ...], columns: int) -> Iterator[Row]:
    """A row for each thing that is read of a record; conditioners that read the same share it. Rows that guidance keeps come last.

    Without any, an unconditional one.
    """
    found: dict[tuple[str, bool], dict[str, Examples]] = {}
    for name, part in model.conditioners.items():
        examples = part.examples(batch, facts, columns, prompts)
        if examples is not None:
            found.setdefault((part.reads, part.keeps_under_guidance), {})[name] = examples
    for (_, keeps), parts in sorted(found.items(), key=lambda row: row[0][1]):
        values = {name: one.value for name, one in parts.items()}
        shown = next((one.shown for one in parts.values() if one.shown is not None), None)
        yield Row(values=values, kept=values if keeps else {}, shown=shown)
    if not found:
        yield Row(values={}, kept={})


def _column(values: Mapping[str, Any], column: int) -> dict[str, Any]:
    return {name: part_of(value, column, column + 1) for name, value in values.items()}
