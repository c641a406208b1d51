"""Solvers on data with a known solution: orders of convergence on every process, and the distribution of the results."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.grid import Trailing
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE
from ldm.samplers.euler import Euler
from ldm.samplers.euler_ancestral import EulerAncestral
from ldm.samplers.heun import Heun
from ldm.samplers.langevin import AnnealedLangevin
from ldm.samplers.ode import ODE
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.pndm import PNDM
from ldm.samplers.sampler import Counted
from ldm.samplers.unipc import UniPC

F64 = torch.float64
PROCESSES = [*(kind() for kind in NoiseProcess.kinds().values()), DiscreteVP(spacing="cosine"), DiscreteVP(zero_terminal_snr=True)]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
EULER_MARUYAMA = PredictorCorrector(predictor="euler_maruyama", corrections=0)


def at_ratios(process: NoiseProcess, *ratios: float) -> Tensor:
    """Times at which sigma / alpha has these values."""
    return process.time_at(-2 * torch.tensor(ratios, dtype=F64).log())


def even_in_log_snr(process: NoiseProcess, most: float, least: float, steps: int) -> Tensor:
    return at_ratios(process, *torch.logspace(math.log10(most), math.log10(least), steps + 1, dtype=F64).tolist())


@every_process
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize(
    "sampler, order",
    [(DDIM(), 1), (Euler(), 1), (Euler(frame="ratio"), 1), (Heun(), 2), (Heun(frame="ratio"), 2), (DPMpp2M(), 2), (UniPC(), 3)],
    ids=repr,
)
def test_converges_on_the_flow_at_its_order(process, sampler, order, data, gaussian, mixture, no_noise) -> None:
    """UniPC-p has order p + 1 (Zhao et al. 2023, theorem 3.1)."""
    world = gaussian(process, -0.5, 0.4) if data == "gaussian" else mixture(process)
    first, last = at_ratios(process, 8, 0.1)
    x = (process.alpha(first) ** 2 + process.sigma(first) ** 2).sqrt() * torch.tensor([[1.0], [-0.5]], dtype=F64)

    def error(steps: int) -> float:
        grid = even_in_log_snr(process, 8, 0.1, steps)
        off = sampler.sample(world.denoise, x, grid, process, no_noise) - world.flow(x, first, last)
        return (off.abs().max() / process.alpha(last)).item()

    assert error(64) < 0.03
    assert abs(math.log2(error(32) / error(64)) - order) < 0.2


@every_process
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_pndm_is_second_order_on_even_steps_in_t(process, data, gaussian, mixture, no_noise) -> None:
    """If sigma / alpha is linear in t, as in EDM, its weights are Adams and Bashforth's: third order, limited by its first steps."""
    world = gaussian(process, 1.5, 0.5) if data == "gaussian" else mixture(process)
    first, last = at_ratios(process, 5, 0.2)
    mean, std = gaussian(process, 1.5, 0.5).marginal(first, torch.zeros((), dtype=F64))
    x = (mean - 0.8 * std).reshape(1, 1)

    def error(steps: int) -> float:
        grid = torch.linspace(first, last, steps + 1, dtype=F64)
        return abs(PNDM().sample(world.denoise, x, grid, process, no_noise) - world.flow(x, first, last)).item()

    assert error(64) < 1e-3
    assert math.log2(error(32) / error(64)) > (2.8 if isinstance(process, EDM) else 1.9)


@pytest.mark.parametrize("process", [DiscreteVP(spacing="cosine"), DiscreteVP(spacing="cosine", zero_terminal_snr=True)], ids=repr)
def test_pndm_starts_at_nearly_zero_snr(process, gaussian, no_noise) -> None:
    """From sigma / alpha = 20,291 it would magnify the difference of two eps by that factor; the std was 12 times too large at 20 steps."""
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    for steps in (10, 20, 50):
        got = PNDM().sample(gaussian(process, 0.3, 0.5).denoise, x, Trailing().times(process, steps), process, no_noise)
        assert_close(got, torch.tensor([[0.3], [0.8]], dtype=F64), rtol=0, atol=0.4 / steps)


@every_process
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_ode_keeps_its_tolerance(process, tolerance, mixture, no_noise) -> None:
    """The error stays within the tolerance, and the number of steps has no effect."""
    world, grid = mixture(process), at_ratios(process, 8, 1, 0.1)
    x = (process.alpha(grid[0]) ** 2 + process.sigma(grid[0]) ** 2).sqrt() * torch.tensor([[1.0], [-0.5]], dtype=F64)
    counted, sampler = Counted(world.denoise), ODE(rtol=tolerance, atol=tolerance)
    got = sampler.sample(counted, x, grid, process, no_noise)
    assert torch.equal(sampler.sample(world.denoise, x, grid[[0, 2]], process, no_noise), got)
    off = ((got - world.flow(x, grid[0], grid[-1])) / process.alpha(grid[-1])).abs().max()
    assert tolerance / 1000 < off < 10 * tolerance
    assert counted.evaluations < (60 if tolerance == 1e-4 else 200)


@every_process
def test_ode_solves_down_to_the_data(process, gaussian, no_noise) -> None:
    """It ends with x0 at the least noise that networks are trained at; that noise, relative to the data's std, is its error."""
    world, grid = gaussian(process, -0.5, 0.4), torch.cat([at_ratios(process, 8), torch.zeros(1, dtype=F64)])
    mean, std = world.marginal(grid[0], torch.zeros((), dtype=F64))
    x = (mean + torch.tensor([[1.0], [-2.0]], dtype=F64) * std).reshape(2, 1)
    first = torch.tensor(process.t_first, dtype=F64)
    rest = (process.sigma(first) / process.alpha(first) / 0.4).item() ** 2
    got = ODE().sample(world.denoise, x, grid, process, no_noise)
    assert_close(got, world.flow(x, *grid), rtol=0, atol=rest + 1e-4)


@every_process
@pytest.mark.parametrize(
    "sampler, order",
    [
        (DDPM(), 1),
        (DDIM(eta=0.5), 1),
        (EulerAncestral(), 1),
        (PredictorCorrector(corrections=0), 1),
        (EULER_MARUYAMA, 1),
        (DPMpp2MSDE(), 2),
        (Heun(s_churn=8.0), 2),
        (Heun(s_churn=8.0, frame="ratio"), 2),
    ],
    ids=repr,
)
def test_stochastic_samplers_have_the_marginals(process, sampler, order, gaussian, sampled_moments) -> None:
    """The exact mean and deviation of the results converge to those of x_s at the sampler's (weak) order."""
    world, last = gaussian(process, -0.5, 0.4), at_ratios(process, 0.1)[0]
    mean, std = world.marginal(last, torch.zeros((), dtype=F64))

    def error(steps: int) -> float:
        got_mean, got_std = sampled_moments(sampler, world, even_in_log_snr(process, 8, 0.1, steps), draws=steps)
        return (abs(got_mean - mean) + abs(got_std - std)).item()

    assert error(80) < (0.04 if order == 1 else 3e-3) * std
    assert order - 0.15 < math.log2(error(40) / error(80)) < order + 0.4


@every_process
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(),
        DDIM(eta=0.5),
        EulerAncestral(),
        PredictorCorrector(corrections=0),
        PredictorCorrector(snr=0.1),
        EULER_MARUYAMA,
        DPMpp2MSDE(),
        Heun(s_churn=8.0),
        AnnealedLangevin(rounds=4, step_size=0.05),
    ],
    ids=repr,
)
def test_stochastic_samplers_draw_the_mixture(process, sampler, mixture) -> None:
    """If x has its distribution, its distribution function is uniform in [0, 1]: mean 1/2, variance 1/12, and half below 1/2.

    The images have many numbers, as the corrector takes their norms.
    """
    world, grid, shape = mixture(process), even_in_log_snr(process, 8, 0.1, 400), (4, 5000)
    random, count = torch.Generator().manual_seed(2), 20_000

    def noise(*_: int) -> torch.Tensor:
        return torch.randn(shape, dtype=F64, generator=random)

    means, std = world.components(noise(), grid[0])
    x = means[torch.randint(2, shape, generator=random)] + std * noise()
    got = sampler.sample(world.denoise, x, grid, process, noise)
    quantile = world.cdf(got, grid[-1])
    assert quantile.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / count) ** 0.5 + 0.004)
    assert quantile.var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180 / count) ** 0.5 + 0.002)
    assert (quantile < 0.5).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / count**0.5 + 0.004)


@pytest.mark.parametrize("process", [RectifiedFlow(), DiscreteVP(zero_terminal_snr=True)], ids=repr)
def test_pc_starts_at_zero_snr(process, gaussian) -> None:
    """One step from pure noise to a time of low SNR has that time's mean and deviation."""
    world = gaussian(process, -0.5, 0.4)
    grid = torch.tensor([1.0, process.time_at(torch.tensor(-4.0, dtype=F64)).item()], dtype=F64)
    x = torch.randn(4, 5000, dtype=F64, generator=torch.Generator().manual_seed(0))
    got = PredictorCorrector(corrections=0).sample(world.denoise, x, grid, process, lambda *_: torch.zeros_like(x))
    mean, std = world.marginal(grid[-1], torch.zeros((), dtype=F64))
    assert got.mean().item() == pytest.approx(mean.item(), abs=0.03)
    assert got.std().item() == pytest.approx(std.item(), rel=0.03)


@every_process
def test_langevin_walks_to_its_levels_distribution(process, gaussian, sampled_moments) -> None:
    """The walk at one level is an AR(1) whose variance is v / (1 - delta r^2 / (4 v)), v that of x_t / alpha; then x / alpha is kept."""
    world, grid = gaussian(process, -0.5, 0.4), at_ratios(process, 0.6, 0.5)
    got_mean, got_std = sampled_moments(AnnealedLangevin(rounds=80, step_size=0.3), world, grid, draws=80)
    v = 0.4**2 + 0.6**2
    wanted = math.sqrt(v / (1 - 0.3 * 0.6**2 / (4 * v)))
    assert got_mean / process.alpha(grid[-1]).item() == pytest.approx(-0.5, rel=1e-9)
    assert got_std / process.alpha(grid[-1]).item() == pytest.approx(wanted, rel=1e-3)


@every_process
def test_annealing_leads_to_the_data(process, gaussian, sampled_moments) -> None:
    """Many short steps and close levels: the data's distribution, from a distant start."""
    world = gaussian(process, -0.5, 0.4)
    grid = torch.cat([even_in_log_snr(process, 4, 0.05, 11), torch.zeros(1, dtype=F64)])
    got_mean, got_std = sampled_moments(AnnealedLangevin(rounds=60, step_size=0.1), world, grid, draws=720)
    assert got_mean == pytest.approx(-0.5, rel=1e-6)
    assert got_std == pytest.approx(0.4, rel=0.08)


@every_process
def test_corrector_leads_to_the_distribution(process, gaussian) -> None:
    """Many Langevin steps at one time remove a wrong initial deviation. The images have many numbers, as norms are taken of them."""
    world, grid = gaussian(process, -0.5, 0.4), at_ratios(process, 0.65, 0.6)
    draws = torch.Generator().manual_seed(0)
    x = torch.zeros(4, 2000, dtype=F64)
    sampler = PredictorCorrector(corrections=60, snr=0.2)
    got = sampler.sample(world.denoise, x, grid, process, lambda *_: torch.randn(x.shape, dtype=F64, generator=draws))
    mean, std = world.marginal(grid[-1], torch.zeros((), dtype=F64))
    assert got.mean().item() == pytest.approx(mean.item(), abs=0.03 * std.item())
    assert got.std().item() == pytest.approx(std.item(), rel=0.04)
