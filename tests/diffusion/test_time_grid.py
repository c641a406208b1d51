"""Grids: their times, against published lists of timesteps, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.grid import GaussianOptimal, Grid, Karras, Leading, LogSNR, Shifted, Trailing, Uniform
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.time_density import LogitNormal

F64 = torch.float64
PROCESS = DiscreteVP()
PROCESSES = [*(kind() for kind in NoiseProcess.kinds().values()), DiscreteVP(spacing="cosine"), DiscreteVP(zero_terminal_snr=True)]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
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


@every_process
@every_grid
@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("steps", [1, 2, 3, 50, 599])
def test_falls_from_the_start_to_0(grid: Grid, steps: int, start: float, process: NoiseProcess) -> None:
    times = grid.times(process, steps, start)
    assert len(times) == steps + 1
    assert times[-2] >= process.t_first * (1 - 1e-9)  # no network is trained below
    assert (times.diff() < 0).all()
    assert times[-1] == 0 and times[0] <= start
    if grid.kind != "leading":
        assert times[0] == start


@pytest.mark.parametrize("grid", [Trailing(), Leading()])
def test_a_start_is_the_nearest_step_and_at_least_the_first(grid: Grid) -> None:
    for start, index in {0.6004: 599, 0.5996: 599, 0.0016: 1, 0.0005: 0, 1e-5: 0}.items():
        assert indices(grid.times(PROCESS, 1, start)) == [index if grid.kind == "trailing" else 0]


def test_all_steps_are_the_whole_table() -> None:
    for grid in (Trailing(), Leading()):
        assert indices(grid.times(PROCESS, 1000)) == list(range(999, -1, -1))


@every_grid
@pytest.mark.parametrize("steps, start, message", [(0, 1.0, "at least 1"), (-3, 1.0, "got -3"), (5, 0.0, r"\(0, 1\]"), (5, 1.5, "1.5")])
def test_mistakes_are_named(grid: Grid, steps: int, start: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid.times(PROCESS, steps, start)


def test_no_more_steps_than_the_table() -> None:
    with pytest.raises(UserError, match="1001 sampling steps requested, but the process has 1000"):
        Trailing().times(PROCESS, 1001)
    with pytest.raises(UserError, match="the process has 300 from noise level 0.3"):
        Leading().times(PROCESS, 301, 0.3)
    with pytest.raises(UserError, match="offset"):
        Leading(offset=1).times(PROCESS, 1000)
    with pytest.raises(UserError, match="offset >= 0"):
        Leading(offset=-1)


def levels(process: NoiseProcess, times: torch.Tensor) -> torch.Tensor:
    """sigma / alpha at all times but the last."""
    return (process.sigma(times[:-1]) / process.alpha(times[:-1])).float()


def test_karras_et_als_noise_levels() -> None:
    """Karras et al. 2022, eq. 5, in EDM's own range: 80 to 0.002 in 18 steps, as its CIFAR-10 table has them."""
    got = levels(EDM(), Karras().times(EDM(), 18))
    assert got[[0, 17]].tolist() == pytest.approx([80.0, 0.002], rel=1e-6)
    assert got[[1, 9, 16]].tolist() == pytest.approx([57.586, 1.9233, 0.0075280], rel=1e-4)
    even = (got.double() ** (1 / 7)).diff()
    assert_close(even, even[:1].expand(17), rtol=1e-4, atol=0)


def test_karras_of_rho_1_is_even_in_the_noise_level() -> None:
    got = levels(EDM(), Karras(rho=1.0).times(EDM(), 18))
    assert_close(got, torch.linspace(80, 0.002, 18), rtol=1e-4, atol=1e-5)


@every_process
def test_log_snr_is_even_down_to_the_least_noise(process: NoiseProcess) -> None:
    times = LogSNR().times(process, 20, 0.9)
    steps = process.log_snr(times[:-1]).diff()
    assert_close(steps, steps[:1].expand(19), rtol=1e-5, atol=0)
    last = times[-2]
    if process.log_snr(torch.tensor(process.t_first, dtype=F64)) > 14:  # far below a level of 8 bits, where steps have no visible effect
        assert (process.sigma(last) / process.alpha(last)).item() == pytest.approx(1e-3, rel=1e-6)
    else:
        assert last.item() == pytest.approx(process.t_first, rel=1e-9)


@pytest.mark.parametrize("process", [RectifiedFlow(), DiscreteVP(zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("grid", [Karras(), LogSNR()], ids=lambda g: g.kind)
def test_without_signal_levels_begin_at_the_chains_next_step(process: NoiseProcess, grid: Grid) -> None:
    """The first time is the noisiest; its infinite level is replaced by step N - 1's, so the second time lies below step N - 1."""
    times = grid.times(process, 10)
    assert times[0] == 1
    assert 0.3 < times[1] < 0.999


def deviation(process: NoiseProcess, grid: Grid | torch.Tensor, steps: int, std: float) -> float:
    """Standard deviation of DDIM's samples for data of N(0, std^2), computed exactly: each step is a factor on x."""
    times = grid if isinstance(grid, torch.Tensor) else grid.times(process, steps)
    alpha, sigma = process.alpha(times), process.sigma(times)
    result = (alpha[0] ** 2 * std**2 + sigma[0] ** 2).sqrt().item()
    for i in range(steps):
        variance = alpha[i] ** 2 * std**2 + sigma[i] ** 2
        result *= ((alpha[i + 1] * alpha[i] * std**2 + sigma[i + 1] * sigma[i]) / variance).item()
    return result


@every_process
@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_gaussian_optimal_is_optimal(process: NoiseProcess, std: float) -> None:
    """Its closed form, std cos(total / n)^n; better than the other grids, and than itself with any one time moved."""
    grid, steps = GaussianOptimal(sigma_data=std), 6
    one = torch.ones((), dtype=F64)
    total = math.atan2(process.sigma(one).item(), std * process.alpha(one).item())
    best = deviation(process, grid, steps, std)
    assert best == pytest.approx(std * math.cos(total / steps) ** steps, rel=1e-9)
    for other in (Uniform(), Trailing(), Karras(), LogSNR()):
        assert deviation(process, other, steps, std) < best + 1e-9
    for i in range(1, steps):
        for nudge in (0.97, 1.03):
            moved = grid.times(process, steps)
            moved[i] *= nudge
            assert deviation(process, moved, steps, std) < best


def test_gaussian_optimal_lies_near_align_your_steps() -> None:
    """Sabour et al. 2024: the table's indices that were found for Stable Diffusion 1.5; here by a formula."""
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    got = indices(GaussianOptimal(sigma_data=1.5).times(PROCESS, 10))
    assert max(abs(a - b) for a, b in zip(got, published, strict=True)) <= 30


@pytest.mark.parametrize("grid", [Karras(), LogSNR(), GaussianOptimal()], ids=lambda g: g.kind)
def test_no_steps_below_the_least_noise(grid: Grid) -> None:
    assert grid.times(PROCESS, 1, PROCESS.t_first).tolist() == [PROCESS.t_first, 0]
    with pytest.raises(UserError, match="2 sampling steps requested from noise level 0.001, but the last step is at 0.001: use 1"):
        grid.times(PROCESS, 2, PROCESS.t_first)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="rho > 0, got 0"):
        Karras(rho=0.0)
    with pytest.raises(UserError, match="sigma_data > 0, got -1"):
        GaussianOptimal(sigma_data=-1.0)


def test_a_shift_multiplies_the_noise_levels_of_a_flow() -> None:
    """And training has the same shift with logit-normal times whose mean is its logarithm."""
    flow = RectifiedFlow()

    def noise(times: torch.Tensor) -> torch.Tensor:
        return flow.sigma(times) / flow.alpha(times)

    even, shifted, later = (Shifted(shift=s).times(flow, 8, start) for s, start in ((1.0, 1.0), (3.0, 1.0), (3.0, 0.6)))
    assert_close(even, Uniform().times(flow, 8))
    assert_close(noise(shifted[1:]), 3 * noise(even[1:]))
    assert (later[0], later[-1]) == (0.6, 0) and len(later) == 9 and (later.diff() < 0).all()
    streams = Streams.of(0, "shift", samples=range(64))
    plain, moved = (LogitNormal(mean=mean).draw(streams, flow) for mean in (0.0, math.log(3)))
    assert_close(noise(moved), 3 * noise(plain))
