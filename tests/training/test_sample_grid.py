"""The sample grid of stage two: rows, what stands beneath them, and the same in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tasks import DrawnPictures, PicturesInBuckets, diffusion_task, train_config

from ldm.core.distributed import World
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.training.sample_grid import words_of

ALONE = World(0, 1, torch.device("cpu"))


def test_each_condition_is_shown_and_named() -> None:
    """Classes, then maps above their colours, then holes, which guidance keeps, above what was masked."""
    task = diffusion_task(ALONE, train_config())
    off = torch.autocast("cpu", enabled=False)
    grid = task.sample_grid(off)
    cell = 16 + 2
    assert grid.shape == (3, 5 * cell + 2, 8 * cell + 2)
    words = task.evaluate(off).samples
    assert words == words_of(task._rows())
    heads = [line for line in words.splitlines() if not line.startswith(" ")]
    assert heads == ["row 1: class", "row 2: map; row 3 shows it", "row 4: mask; row 5 shows it"]
    assert words.splitlines()[1:3] == ["  1  class: 0", "  2  class: 1"]
    beneath = grid[:, 2 * cell + 2 : 3 * cell, 2:cell]
    disc = DrawnPictures().sample(0, 0).map == 1
    for inside in (disc, ~disc):
        assert (beneath[:, inside] == beneath[:, inside][:, :1]).all()
    assert (beneath[:, disc][:, 0] != beneath[:, ~disc][:, 0]).any()


def test_pictures_of_several_sizes_share_the_rows_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is drawn at its own size, in the middle of a cell that holds the largest; numbers and words go on along the row."""
    task, sizes, numbers = diffusion_task(ALONE, train_config(), pictures=PicturesInBuckets), [], []
    render = LatentDiffusion.render

    def watched(self: LatentDiffusion, cond: Any, uncond: Any, how: Any, **options: Any) -> torch.Tensor:
        images = render(self, cond, uncond, how, **options)
        sizes.append((len(images), *images.shape[2:]))
        numbers.extend(options["numbers"])
        return images

    monkeypatch.setattr(LatentDiffusion, "render", watched)
    grid = task.sample_grid(torch.autocast("cpu", enabled=False))
    assert sizes == 3 * [(3, 20, 12), (3, 16, 16), (2, 12, 20)] and numbers == 3 * list(range(8))
    assert grid.shape == (3, 5 * 22 + 2, 8 * 22 + 2)
    cells = [grid[:, 2:22, 2 + 22 * column : 22 + 22 * column] for column in range(8)]
    for cell, is_narrow in zip(cells, [True] * 3 + [False] * 5, strict=True):
        assert (cell[:, :, :4] == 1).all() == is_narrow
    assert (cells[7][:, :4] == 1).all() and not (cells[7][:, 4:16] == 1).all()
    assert [line for line in words_of(task._rows()).splitlines() if line.startswith("  ")][:8][-1] == "  8  class: 1"
    task.evaluate(torch.autocast("cpu", enabled=False))
