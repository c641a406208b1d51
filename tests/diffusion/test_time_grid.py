"""Grids: where they stop, against published lists of timesteps; what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.grid import Grid, Leading, Trailing, Uniform
from ldm.diffusion.processes.discrete_vp import DiscreteVP

PROCESS = DiscreteVP()
every_grid = pytest.mark.parametrize("grid", [kind() for kind in Grid.kinds().values()], ids=lambda g: g.kind)


def indices(times: torch.Tensor) -> list[int]:
    """Table indices of all times but the last."""
    return (times[:-1] * 1000 - 1).round().long().tolist()


def test_published_timesteps() -> None:
    """Lin et al. 2023, table 2: 10 of 1000 steps, written there from 1, here from 0."""
    assert indices(Trailing().times(PROCESS, 10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert indices(Leading().times(PROCESS, 10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert indices(Leading(offset=1).times(PROCESS, 10)) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]


def test_trailing_rounds_to_the_table() -> None:
    times = Trailing().times(PROCESS, 7)
    assert indices(times) == [999, 856, 713, 570, 428, 285, 142]
    assert_close(times * 1000, (times * 1000).round(), rtol=0, atol=1e-9)
    assert_close(Uniform().times(PROCESS, 7).diff(), torch.full((7,), -1 / 7, dtype=torch.float64))


@every_grid
@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("steps", [1, 3, 50, 599])
def test_falls_from_the_start_to_0(grid: Grid, steps: int, start: float) -> None:
    times = grid.times(PROCESS, steps, start)
    assert len(times) == steps + 1
    assert (times.diff() < 0).all()
    assert times[-1] == 0 and times[0] <= start
    if grid.kind != "leading":
        assert times[0] == start


def test_all_steps_are_the_whole_table() -> None:
    for grid in (Trailing(), Leading()):
        assert indices(grid.times(PROCESS, 1000)) == list(range(999, -1, -1))


@every_grid
@pytest.mark.parametrize("steps, start, said", [(0, 1.0, "at least 1"), (-3, 1.0, "got -3"), (5, 0.0, r"\(0, 1\]"), (5, 1.5, "1.5")])
def test_mistakes_are_named(grid: Grid, steps: int, start: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid.times(PROCESS, steps, start)


def test_no_more_steps_than_the_table() -> None:
    with pytest.raises(UserError, match="1001 sampling steps asked, but the process has 1000"):
        Trailing().times(PROCESS, 1001)
    with pytest.raises(UserError, match="the process has 300 from noise level 0.3"):
        Leading().times(PROCESS, 301, 0.3)
    with pytest.raises(UserError, match="offset"):
        Leading(offset=1).times(PROCESS, 1000)
    with pytest.raises(UserError, match="offset >= 0"):
        Leading(offset=-1)
