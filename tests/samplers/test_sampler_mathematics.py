"""Samplers: identities, the papers' formulas, the last step. Orders and marginals: test_orders.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import GaussianOptimal, Trailing, Uniform
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.euler import Euler
from ldm.samplers.euler_ancestral import EulerAncestral
from ldm.samplers.heun import Heun
from ldm.samplers.langevin import AnnealedLangevin
from ldm.samplers.ode import ODE
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.pndm import PNDM
from ldm.samplers.sampler import Sampler, step_noise

F64 = torch.float64
VARIANCE_PRESERVING = [
    DiscreteVP(),
    DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02),
    DiscreteVP(spacing="cosine"),
    DiscreteVP(zero_terminal_snr=True),
    VPSDE(),
]
PROCESSES = [*VARIANCE_PRESERVING, *(kind() for kind in NoiseProcess.kinds().values() if kind not in (DiscreteVP, VPSDE))]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
every_vp = pytest.mark.parametrize("process", VARIANCE_PRESERVING, ids=repr)
EULER_MARUYAMA = PredictorCorrector(predictor="euler_maruyama", corrections=0)
SAMPLERS = [kind() for kind in Sampler.kinds().values()] + [DDIM(eta=0.7), DDPM(variance="large"), Heun(s_churn=3.0)]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def start(*samples: int, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Streams]:
    streams = Streams.of("test", samples=samples)
    return streams.normal("start", shape).double(), streams


def at_ratios(process: NoiseProcess, *ratios: float) -> Tensor:
    """Times at which sigma / alpha has these values."""
    return process.time_at(-2 * torch.tensor(ratios, dtype=F64).log())


@every_process
def test_churn_goes_up_and_comes_down_again(process, gaussian) -> None:
    """For data at one point a step with churn has the same distribution as one without: deviation sigma_s."""
    world, (t, s) = gaussian(process, 2.0, 0.0), at_ratios(process, 2, 1)
    without, times = Heun(), []

    def denoise(x: Tensor, time: Tensor) -> Estimate:
        times.append(time[0])
        return world.denoise(x, time)

    def at(x: float, z: float, sampler: Heun) -> float:
        state, grid = torch.full((1, 1), x, dtype=F64), torch.stack([t, s])
        return sampler.sample(denoise, state, grid, process, lambda i: torch.full_like(state, z)).item()

    churned = Heun(s_churn=0.3, s_noise=1.0)
    a, c = at(1, 0, churned) - at(0, 0, churned), at(0, 1, churned) - at(0, 0, churned)
    assert (a * process.sigma(t)).item() ** 2 + c**2 == pytest.approx(process.sigma(s).item() ** 2, rel=1e-9)
    noise_ratio = process.sigma(times[0]) / process.alpha(times[0])
    assert noise_ratio.item() == pytest.approx(2 * 1.3, rel=1e-9)
    assert c > 0.1 * process.sigma(s)
    assert at(1, 1, Heun(s_churn=100)) != at(1, 0, Heun(s_churn=100))
    for off in (without, Heun(s_churn=0.3, s_tmin=2.1), Heun(s_churn=0.3, s_tmax=1.9)):
        assert at(1, 1, off) == at(1, 0, off) == at(1, 0, without)


def test_churn_is_divided_among_the_steps_and_bounded() -> None:
    """Karras et al. 2022, alg. 2: gamma = min(S_churn / N, sqrt(2) - 1); S_noise scales the added noise."""
    process, t = EDM(), torch.tensor(0.1, dtype=F64)
    x, z = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    for churn, steps, gamma in ((4.0, 40, 0.1), (4.0, 20, 0.2), (100.0, 20, math.sqrt(2) - 1)):
        got, t_hat = Heun(s_churn=churn, s_noise=1.5).churn(x, t, steps, process, lambda z=z: z)
        assert t_hat.item() == pytest.approx(0.1 * (1 + gamma), rel=1e-12)
        assert got.item() == pytest.approx(1.5 * 8 * math.sqrt((1 + gamma) ** 2 - 1), rel=1e-9)
    last = torch.ones((), dtype=F64)  # never beyond the noisiest time
    got, t_hat = Heun(s_churn=4.0).churn(x, last, 20, process, lambda z=z: z)
    assert t_hat == 1 and got == 0


def test_corrector_is_the_papers(gaussian) -> None:
    """Song et al. 2021, alg. 5: x + step g + sqrt(2 step) z with step = 2 (1 - beta_i) (r |z| / |g|)^2, after a predictor without noise."""
    process = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)
    world, (x, _) = gaussian(process, 0.5, 0.7), start(0, 1)
    z = torch.randn(2, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.501, 0.5], dtype=F64)

    def run(corrections: int) -> Tensor:
        return PredictorCorrector(corrections=corrections, snr=0.16).sample(
            world.denoise, x, times, process, lambda i, k=0: z if k else torch.zeros_like(x)
        )

    x_s, beta = run(0), 1e-4 + (0.02 - 1e-4) * 499 / 999  # of step 500
    mean, std = world.marginal(times[1], x)
    g = -(x_s - mean) / std**2
    step = 2 * (1 - beta) * (0.16 * z.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)) ** 2
    assert_close(run(1), x_s + step[:, None, None] * g + (2 * step).sqrt()[:, None, None] * z)


def test_predictors_are_the_papers(gaussian) -> None:
    """Without corrector, pc is its predictor. Song et al. 2021: eq. 46 for VP with beta_i written out, and for VE; Euler-Maruyama."""
    process = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)
    world, (x, _) = gaussian(process, 0.5, 0.7), start(0, 1)
    z = torch.randn(2, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))

    def one(sampler: Sampler, world, *times: float) -> tuple[Tensor, Tensor]:
        """x_s and the score at x_t."""
        grid = torch.tensor(times, dtype=F64)
        mean, std = world.marginal(grid[0], x)
        return sampler.sample(world.denoise, x, grid, world.process, lambda i: z), -(x - mean) / std**2

    got, score = one(PredictorCorrector(corrections=0), world, 0.5, 0.499)
    beta = 1e-4 + (0.02 - 1e-4) * 499 / 999
    assert_close(got, (2 - math.sqrt(1 - beta)) * x + beta * score + math.sqrt(beta) * z)

    got, score = one(PredictorCorrector(corrections=0), gaussian(EDM(sigma_max=10), 0.5, 0.7), 0.3, 0.2)
    assert_close(got, x + (3**2 - 2**2) * score + math.sqrt(3**2 - 2**2) * z)

    got, score = one(EULER_MARUYAMA, gaussian(VPSDE(), 0.5, 0.7), 0.5, 0.4)
    beta = 0.1 + 0.5 * 19.9
    assert_close(got, x + (beta * x / 2 + beta * score) * 0.1 + math.sqrt(beta * 0.1) * z)


@every_process
def test_samplers_that_are_equivalent(process, gaussian) -> None:
    """Euler in either frame is DDIM with eta 0, Euler ancestral is DDIM with its eta, and both at eta 1 are DDPM."""
    world, (x, streams) = gaussian(process, 0.5, 0.7), start(0, 1)
    grid, noise = at_ratios(process, 10, 5, 3, 2, 1, 0.5, 0.3, 0.1, 0.05), step_noise(streams, x)
    x = (process.alpha(grid[0]) ** 2 + process.sigma(grid[0]) ** 2).sqrt() * x

    def run(sampler: Sampler) -> Tensor:
        return sampler.sample(world.denoise, x, grid, process, noise)

    for one, same in (
        (Euler(), DDIM()),
        (Euler(frame="ratio"), DDIM()),
        (EulerAncestral(eta=0.0), DDIM()),
        (EulerAncestral(eta=0.6), DDIM(eta=0.6)),
        (EulerAncestral(), DDPM()),
        (DDIM(eta=1.0), DDPM()),
    ):
        assert_close(run(one), run(same), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(run(EulerAncestral(eta=0.6)), run(EulerAncestral()), atol=1e-2)


@every_vp
def test_large_variance_is_exact_for_standard_normal_data(process, gaussian, step_coefficients) -> None:
    """Ho et al. 2020, sec. 3.2: sigma_t^2 = beta_t is optimal for x0 ~ N(0, I). Then x_t is N(0, 1) at every t, for any stride."""
    world = gaussian(process, 0.0, 1.0)
    for t, s in ((0.9, 0.5), (0.5, 0.499), (1.0, 0.05)):
        a, c = step_coefficients(DDPM(variance="large"), world.denoise, process, t, s)
        assert a**2 + c**2 == pytest.approx(1, rel=1e-9)


@every_process
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=0.5), DDIM(eta=1.0)], ids=repr)
def test_small_variance_is_exact_for_one_point(process, sampler, gaussian, step_coefficients) -> None:
    """For data at one point x_s has the deviation sigma_s, for any share of fresh noise."""
    world = gaussian(process, 2.0, 0.0)
    for t, s in ((0.9, 0.5), (0.5, 0.499), (1.0, 0.05)):
        (a, c), (sigma_t, sigma_s) = (
            step_coefficients(sampler, world.denoise, process, t, s),
            process.sigma(torch.tensor([t, s], dtype=F64)),
        )
        assert (a * sigma_t).item() ** 2 + c**2 == pytest.approx(sigma_s.item() ** 2, rel=1e-9)


@every_vp
def test_eta_is_the_share_of_fresh_noise(process, gaussian, step_coefficients) -> None:
    """DDIM, eq. 16: c = eta sqrt((1 - bar_s) / (1 - bar_t)) sqrt(1 - bar_t / bar_s)."""
    world = gaussian(process, 0.5, 0.7)
    bar_t, bar_s = process.alpha(torch.tensor([0.8, 0.6], dtype=F64)).square().tolist()
    for eta in (0.0, 0.3, 1.0):
        _, c = step_coefficients(DDIM(eta=eta), world.denoise, process, 0.8, 0.6)
        assert c == pytest.approx(eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s), rel=1e-9)


def test_learned_variance_lies_between(gaussian, step_coefficients) -> None:
    """Nichol & Dhariwal 2021, eq. 15: exp(v log beta + (1 - v) log beta tilde), one v for each number."""
    process = DiscreteVP()
    world, (t, s) = gaussian(process, 0.5, 0.7), (0.6, 0.55)

    def fresh(v: float, variance: str | None = "learned") -> float:
        def denoise(x_t: Tensor, t: Tensor) -> Estimate:
            estimate = world.denoise(x_t, t)
            return Estimate(estimate.x0, estimate.eps, variance_logits=torch.full_like(x_t, v))

        return step_coefficients(DDPM(variance=variance), denoise, process, t, s)[1]

    small, large = fresh(0.3, "small"), fresh(0.3, "large")
    assert small < 0.99 * large
    for v in (0.0, 0.25, 1.0, 1.2):
        assert fresh(v) == pytest.approx(small ** (1 - v) * large**v, rel=1e-9)
        assert fresh(v, None) == fresh(v)  # by default the learned variance is used
    assert step_coefficients(DDPM(), world.denoise, process, t, s)[1] == small
    with pytest.raises(UserError, match="no learned variance: use ddpm with variance small or large"):
        step_coefficients(DDPM(variance="learned"), world.denoise, process, t, s)


def evaluations_in(sampler: Sampler, steps: int) -> int:
    """Number of denoiser calls of a sampler whose last step goes to data; a single step needs one."""
    match sampler:
        case Heun():
            return 2 * steps - 1
        case PredictorCorrector():
            return steps + sampler.corrections * (steps - 1)
        case PNDM():
            return steps + (steps > 1)
        case AnnealedLangevin():
            return sampler.rounds * steps + 1
        case _:
            return steps


@every_process
@every_sampler
def test_the_result_is_the_last_estimates_x0(process, sampler) -> None:
    """The last step goes to t = 0, where x is the estimated x0 without noise; for any grid and number of steps."""
    x, streams = start(0, 1)
    x = process.prior_std * x
    for grid, steps in ((Trailing(), 1), (Trailing(), 2), (Uniform(), 5), (GaussianOptimal(), 7)):
        seen: list[tuple[Tensor, Estimate]] = []

        def denoise(x_t: Tensor, t: Tensor) -> Estimate:
            alpha, sigma = process.scales(t, x_t)
            x0 = (x_t * 0.7).sin()
            seen.append((t, Estimate(x0, (x_t - alpha * x0) / sigma)))  # noqa: B023
            return seen[-1][1]  # noqa: B023

        got = sampler.sample(denoise, x, grid.times(process, steps), process, step_noise(streams, x))
        assert torch.equal(got, seen[-1][1].x0)
        assert all(t.shape == (2,) and (t > 0).all() for t, _ in seen)
        assert got.isfinite().all()
        times = grid.times(process, steps)
        ratio = process.sigma(times) / process.alpha(times)
        ddim_first = sampler.kind == "langevin" and ratio[0].isinf() or sampler.kind == "pndm" and ratio[0] > 10 * ratio[1].clamp(min=1)
        if sampler.kind != "ode" and not ddim_first:
            assert len(seen) == evaluations_in(sampler, steps)


@every_process
@every_sampler
def test_one_point_is_found(process, sampler, gaussian) -> None:
    x, streams = start(3, 4)
    world = gaussian(process, -0.8, 0.0)
    got = sampler.sample(world.denoise, x, Trailing().times(process, 5), process, step_noise(streams, x))
    assert_close(got, torch.full_like(x, -0.8), rtol=0, atol=1e-12)


def test_dpmpp_2m_is_first_order_without_past_estimates(gaussian, no_noise) -> None:
    """One step of DPM-Solver++ (Lu et al. 2022, eq. 14 with k = 1): sigma_s / sigma_t x_t - alpha_s (e^-h - 1) x0, which is DDIM's."""
    world, (x, _) = gaussian(DiscreteVP(), 1.5, 0.7), start(0)
    grid = torch.tensor([0.7, 0.5], dtype=F64)
    assert_close(
        DPMpp2M().sample(world.denoise, x, grid, world.process, no_noise), DDIM().sample(world.denoise, x, grid, world.process, no_noise)
    )


@every_sampler
def test_an_image_is_the_same_alone_and_in_a_batch(sampler, gaussian) -> None:
    process = DiscreteVP()
    world, grid = gaussian(process, 0.5, 0.7), Trailing().times(process, 12)

    def draw(*samples: int) -> torch.Tensor:
        x, streams = start(*samples)
        return sampler.sample(world.denoise, x, grid, process, step_noise(streams, x))

    together, within = draw(5, 6, 7), 1e-4 if sampler.kind == "ode" else 1e-12
    assert_close(draw(6)[0], together[1], rtol=0, atol=within)
    assert_close(draw(7, 5)[0], together[2], rtol=0, atol=within)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_each_step_has_its_own_noise() -> None:
    x, streams = start(0, shape=(1000,))
    noise = step_noise(streams, x.float())
    assert noise(3).dtype == torch.float32
    assert torch.equal(noise(3), noise(3))
    assert abs((noise(3) * noise(4)).mean()) < 0.15
    assert torch.equal(noise(3, 0), noise(3)) and torch.equal(noise(3, 2), noise(3, 2))
    assert all(abs((noise(3, 1) * other).mean()) < 0.15 for other in (noise(3), noise(3, 2), noise(4, 1), noise(1, 3)))
    assert abs((noise(0) * x).mean()) < 0.15


def test_a_step_draws_its_own_noise(gaussian) -> None:
    """And the one that lands on data for none."""
    process, (x, streams), drawn = DiscreteVP(), start(0), []
    draw = step_noise(streams, x)

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return draw(step)

    DDIM(eta=1.0).sample(gaussian(process, 0, 1).denoise, x, Uniform().times(process, 4), process, noise)
    assert drawn == [0, 1, 2]


def test_progress_is_reported_after_each_step(gaussian) -> None:
    process = DiscreteVP()
    x, streams = start(0)
    reported: list[tuple[int, int]] = []
    grid = Uniform().times(process, 3)
    DDIM().sample(
        gaussian(process, 0, 1).denoise, x, grid, process, step_noise(streams, x), lambda now: reported.append((now.done, now.steps))
    )
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_mistakes_are_named(gaussian) -> None:
    process = DiscreteVP(num_steps=10)
    x, streams = start(0)
    world, noise = gaussian(process, 0, 1), step_noise(streams, x)
    with pytest.raises(UserError, match="at least 1, got 0"):
        DDIM().sample(world.denoise, x, torch.zeros(1), process, noise)
    with pytest.raises(UserError, match="at least 1, got 0"):
        ODE().sample(world.denoise, x, torch.zeros(1), process, noise)
    with pytest.raises(UserError, match="at most the process's 10 steps, got 11"):
        DDPM().sample(world.denoise, x, Uniform().times(process, 11), process, noise)
    with pytest.raises(UserError, match="Did you mean 'ddim'"):
        Sampler.of_kind("dim")


@pytest.mark.parametrize("process", [RectifiedFlow(), DiscreteVP(zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("sampler", [Euler(frame="ratio"), Heun(frame="ratio"), EULER_MARUYAMA], ids=repr)
def test_a_start_at_zero_snr_is_refused_where_it_is_singular(process, sampler, gaussian, no_noise) -> None:
    x, _ = start(0)
    with pytest.raises(UserError, match="cannot start at zero SNR.*: use (frame `flow`|reverse_diffusion)"):
        sampler.sample(gaussian(process, 0, 1).denoise, x, Trailing().times(process, 5), process, no_noise)


@pytest.mark.parametrize(
    "sampler, wrong, message",
    [
        (DDIM, {"eta": 1.5}, "ddim needs 0 <= eta <= 1, got 1.5"),
        (DDPM, {"variance": "huge"}, "unknown ddpm variance 'huge'; allowed: large, learned, small"),
        (Euler, {"frame": "ratios"}, "unknown euler frame 'ratios'; allowed: flow, ratio. Did you mean 'ratio'"),
        (EulerAncestral, {"eta": -0.1}, "euler_ancestral needs 0 <= eta <= 1, got -0.1"),
        (Heun, {"frame": "x"}, "unknown heun frame 'x'; allowed: flow, ratio"),
        (Heun, {"s_churn": -1.0}, "s_churn -1.0"),
        (Heun, {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin 2.0, s_tmax 1.0"),
        (Heun, {"s_noise": 0.0}, "s_noise > 0"),
        (PredictorCorrector, {"predictor": "euler"}, "unknown pc predictor 'euler'; allowed: euler_maruyama, reverse_diffusion"),
        (PredictorCorrector, {"snr": 0.0}, "snr > 0, got 1 and 0.0"),
        (PredictorCorrector, {"corrections": -1}, "corrections >= 0"),
        (AnnealedLangevin, {"rounds": 0}, "rounds >= 1"),
        (AnnealedLangevin, {"step_size": 2.0}, "step_size < 2, got 10 and 2.0"),
        (ODE, {"rtol": 0.0}, "rtol > 0 and atol > 0, got 0.0"),
    ],
)
def test_wrong_settings_are_named(sampler: type[Sampler], wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sampler(**wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "sampler, extreme",
    [(DDIM, {"eta": 0.0}), (DDIM, {"eta": 1.0}), (EulerAncestral, {"eta": 0.0}), (EulerAncestral, {"eta": 1.0}), (Heun, {"s_churn": 0.0}),
     (Heun, {"s_tmin": 1.0, "s_tmax": 1.0}), (PredictorCorrector, {"corrections": 0}), (AnnealedLangevin, {"rounds": 1})],
)  # fmt: skip
def test_extreme_settings_are_allowed(sampler: type[Sampler], extreme: dict[str, object]) -> None:
    sampler(**extreme)  # type: ignore[call-arg]
