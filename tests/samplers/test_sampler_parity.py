"""Whole trajectories compared with diffusers', with the same network, table and noise."""

from __future__ import annotations

from types import ModuleType

import diffusers
import numpy
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import Karras, Leading, Trailing, Uniform
from ldm.diffusion.network_input import TableIndex
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE
from ldm.samplers.euler import Euler
from ldm.samplers.euler_ancestral import EulerAncestral
from ldm.samplers.heun import Heun
from ldm.samplers.pndm import PNDM
from ldm.samplers.sampler import Sampler
from ldm.samplers.unipc import UniPC

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),  # the peer's own
]

STEPS = 20
PEER_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
PEER_BETAS = {"linear": "linear", "sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
every_prediction = pytest.mark.parametrize("prediction", [Prediction.of_kind(name)() for name in PEER_NAMES], ids=lambda p: p.kind)
eps_or_v = pytest.mark.parametrize("prediction", [Prediction.of_kind(name)() for name in ("eps", "v")], ids=lambda p: p.kind)
HO = DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02)
every_table = pytest.mark.parametrize("process", [DiscreteVP(), HO, DiscreteVP(spacing="cosine")], ids=repr)


def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
    """A nonlinear function of x and network_time."""
    return (x * 0.8 + network_time[:, None, None, None] / 700).sin()


def noise(step: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(100 + step))


def peer_settings(process: DiscreteVP, prediction: Prediction) -> dict[str, object]:
    return {
        "num_train_timesteps": process.num_steps,
        "beta_start": process.beta_first,
        "beta_end": process.beta_last,
        "beta_schedule": PEER_BETAS[process.spacing],
        "prediction_type": PEER_NAMES[prediction.kind],
    }


def peer(scheduler, x: Tensor, **each) -> Tensor:
    """The peer's result from x, given in the peer's variables; `each` makes the extra arguments of each step from its number."""
    for i, timestep in enumerate(scheduler.timesteps):
        extra = {name: value(i) for name, value in each.items()}
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, timestep.to(x.dtype).expand(len(x)), Condition()), timestep, x, **extra).prev_sample
    return x


def steps_of(scheduler, **settings):
    scheduler.set_timesteps(**(settings or {"num_inference_steps": STEPS}))
    return scheduler


@pytest.fixture
def peers_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the peer's samplers use our noise, one draw per step."""
    steps = iter(range(STEPS))
    for room in ("ddpm", "euler_ancestral_discrete", "euler_discrete"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{room}.randn_tensor", lambda *_, **__: noise(next(steps)))


class Double:
    """torch or numpy for a peer that uses float32 explicitly: it gets float64."""

    def __init__(self, library: ModuleType) -> None:
        self.wrapped, self.float32 = library, library.float64

    def __getattr__(self, name: str) -> object:
        return getattr(self.wrapped, name)


class DoubleIndex(TableIndex):
    """Gives the network a float64 input too."""

    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        return x_t, super().__call__(x_t, t, process)[1].double()


@pytest.fixture
def peers_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the peer's samplers that work on x / alpha compute in float64.

    The cosine table starts at sigma / alpha = 20,291, where float32's rounding is larger than the tolerance.
    """
    for room in ("euler_ancestral_discrete", "euler_discrete", "heun_discrete"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{room}.torch", Double(torch))
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{room}.np", Double(numpy))


@every_table
def test_tables(process: DiscreteVP) -> None:
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=PEER_BETAS[process.spacing], beta_start=process.beta_first, beta_end=process.beta_last
    )
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert_close(process.alpha(t).square().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=0)


def test_table_of_zero_terminal_snr() -> None:
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=1.2e-2, rescale_betas_zero_snr=True)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    got = DiscreteVP(zero_terminal_snr=True).alpha(t)
    assert_close(got.float(), scheduler.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6)


@every_table
@every_prediction
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(process: DiscreteVP, prediction: Prediction, variance: str, peers_noise: None) -> None:
    scheduler = diffusers.DDPMScheduler(**peer_settings(process, prediction), variance_type=f"fixed_{variance}", clip_sample=False)
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x = noise(-1)
    ours = DDPM(variance=variance).sample(denoise, x, Leading().times(process, STEPS), process, noise)
    assert_close(ours, peer(steps_of(scheduler), x), rtol=1e-4, atol=1e-4)


@every_table
@every_prediction
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(process: DiscreteVP, prediction: Prediction, eta: float) -> None:
    settings = peer_settings(process, prediction)
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x = noise(-1)
    each = {"eta": lambda i: eta, "variance_noise": noise if eta else lambda i: None}
    scheduler = diffusers.DDIMScheduler(**settings, clip_sample=False, timestep_spacing="leading", steps_offset=0)
    ours = DDIM(eta=eta).sample(denoise, x, Leading().times(process, STEPS), process, noise)
    assert_close(ours, peer(steps_of(scheduler), x, **each), rtol=1e-4, atol=1e-4)

    scheduler = diffusers.DDIMScheduler(**settings, clip_sample=False, timestep_spacing="trailing")
    ours = DDIM(eta=eta).sample(denoise, x, Trailing().times(process, STEPS), process, noise)
    assert_close(ours, peer(steps_of(scheduler), x, **each), rtol=1e-4, atol=1e-4)


@every_table
@every_prediction
@pytest.mark.parametrize(
    "sampler, algorithm, draws",
    [(DPMpp2M(), "dpmsolver++", {}), (DPMpp2MSDE(), "sde-dpmsolver++", {"variance_noise": noise})],
    ids=["dpmpp_2m", "dpmpp_2m_sde"],
)
def test_dpmpp_2m_and_its_sde(process: DiscreteVP, prediction: Prediction, sampler: Sampler, algorithm: str, draws: dict) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **peer_settings(process, prediction),
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x = noise(-1)
    ours = sampler.sample(denoise, x, Trailing().times(process, STEPS), process, noise)
    assert_close(ours, peer(steps_of(scheduler), x, **draws), rtol=1e-4, atol=1e-4)


IN_RATIO_FRAME: dict[str, tuple[Sampler, str]] = {
    "euler": (Euler(frame="ratio"), "EulerDiscreteScheduler"),
    "euler_ancestral": (EulerAncestral(), "EulerAncestralDiscreteScheduler"),
    "heun": (Heun(frame="ratio"), "HeunDiscreteScheduler"),
}


@every_table
@eps_or_v
@pytest.mark.parametrize("sampler, name", IN_RATIO_FRAME.values(), ids=IN_RATIO_FRAME)
def test_k_diffusions(
    process: DiscreteVP, prediction: Prediction, sampler: Sampler, name: str, peers_noise: None, peers_double: None
) -> None:
    """The peer integrates x / alpha over sigma / alpha; alpha = 1 at the end."""
    scheduler = steps_of(getattr(diffusers, name)(**peer_settings(process, prediction), timestep_spacing="trailing"))
    denoise = Denoiser(network=network, process=process, prediction=prediction, network_input=DoubleIndex()).bind(Condition())
    x, grid = noise(-1).double(), Trailing().times(process, STEPS)
    ours = sampler.sample(denoise, x, grid, process, noise)
    assert_close(ours, peer(scheduler, x / process.alpha(grid[0])), rtol=1e-4, atol=1e-4)


def test_churn(peers_noise: None) -> None:
    """The peer's Euler has Karras et al.'s churn, but evaluates its network before adding the noise; so this network's eps is constant."""
    process, x, eps = DiscreteVP(), noise(-1), noise(-2)
    settings = peer_settings(process, Prediction.of_kind("eps")())
    scheduler = steps_of(diffusers.EulerDiscreteScheduler(**settings, timestep_spacing="trailing"))
    churn = {"s_churn": 3.0, "s_tmin": 0.3, "s_tmax": 9.0, "s_noise": 1.01}
    grid, drawn = Trailing().times(process, STEPS), iter(range(STEPS))

    def constant_eps(x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x)
        return Estimate((x - sigma * eps) / alpha, eps)

    ours = Heun(frame="ratio", **churn).sample(constant_eps, x, grid, process, lambda i: noise(next(drawn)))
    state = x / process.alpha(grid[0]).float()
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(state, timestep)
        state = scheduler.step(eps, timestep, state, **churn).prev_sample
    assert_close(ours, state, rtol=1e-4, atol=1e-4)
    assert 3 < next(drawn) < STEPS - 1


KARRAS_PEERS = [(Euler(frame="ratio"), "EulerDiscreteScheduler"), (Heun(frame="ratio"), "HeunDiscreteScheduler")]


@pytest.mark.parametrize("sampler, name", KARRAS_PEERS, ids=lambda part: part if isinstance(part, str) else "")
def test_karras_grid(sampler: Sampler, name: str, peers_double: None) -> None:
    """The peer's noise levels, and its fractional timesteps."""
    process, prediction = DiscreteVP(), Prediction.of_kind("eps")()
    scheduler = getattr(diffusers, name)(**peer_settings(process, prediction), timestep_spacing="linspace", use_karras_sigmas=True)
    grid = Karras().times(process, STEPS)
    levels = process.sigma(grid) / process.alpha(grid)
    assert_close(levels, steps_of(scheduler).sigmas.unique().flip(0), rtol=1e-4, atol=1e-6)

    denoise = Denoiser(network=network, process=process, prediction=prediction, network_input=DoubleIndex()).bind(Condition())
    x = noise(-1).double()
    ours = sampler.sample(denoise, x, grid, process, noise)
    assert_close(ours, peer(steps_of(scheduler), x / process.alpha(grid[0])), rtol=1e-4, atol=1e-4)


@every_table
@every_prediction
def test_unipc(process: DiscreteVP, prediction: Prediction) -> None:
    settings = peer_settings(process, prediction)
    scheduler = diffusers.UniPCMultistepScheduler(**settings, timestep_spacing="trailing", final_sigmas_type="zero")
    assert (scheduler.config.solver_order, scheduler.config.solver_type, scheduler.config.predict_x0) == (2, "bh2", True)
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x = noise(-1)
    ours = UniPC().sample(denoise, x, Trailing().times(process, STEPS), process, noise)
    assert_close(ours, peer(steps_of(scheduler), x), rtol=1e-4, atol=1e-4)


@every_table
def test_pndm(process: DiscreteVP) -> None:
    """Stable Diffusion's PLMS: no Runge-Kutta steps, offset 1, and its last step ends at the table's first, not at data.

    With a v prediction the peer averages v, not eps as in the paper, so only eps is compared.
    """
    prediction = Prediction.of_kind("eps")()
    settings = peer_settings(process, prediction)
    scheduler = diffusers.PNDMScheduler(**settings, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, timestep_spacing="leading")
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x, grid = noise(-1), Leading(offset=1).times(process, STEPS)
    grid[-1] = 1 / process.num_steps
    ours = PNDM().sample(denoise, x, grid, process, noise)
    assert_close(ours, peer(steps_of(scheduler), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frame", ["flow", "ratio"])
def test_flow_matching_euler(frame: str) -> None:
    """The network gives the velocity eps - x0; the peer's sigma is t, and its timestep 1000 t. Frame `ratio` from the second step on."""
    process, x = RectifiedFlow(), noise(-1)

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        velocity = network(x_t, 1000 * t.float(), Condition())
        alpha, sigma = process.scales(t, x_t)
        return Estimate(x_t - sigma * velocity, x_t + alpha * velocity)

    grid = Uniform().times(process, STEPS)
    grid = grid if frame == "flow" else grid[1:]
    scheduler = steps_of(diffusers.FlowMatchEulerDiscreteScheduler(), sigmas=grid[:-1].tolist())
    ours = Euler(frame=frame).sample(denoise, x, grid, process, noise)
    assert_close(ours, peer(scheduler, x), rtol=1e-4, atol=1e-4)
