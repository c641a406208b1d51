"""The sample grid of stage two: rows, what stands beneath them, and the same in words."""

from __future__ import annotations

import torch
from tasks import DrawnPictures, diffusion_task, train_config

from ldm.core.distributed import World
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
