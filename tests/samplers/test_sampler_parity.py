"""Whole trajectories beside diffusers', with the same network, table and noise."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.grid import Leading, Trailing
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M

pytestmark = pytest.mark.parity

STEPS = 20
PEER_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
PEER_BETAS = {"linear": "linear", "sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
every_prediction = pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
every_table = pytest.mark.parametrize("process", [DiscreteVP(), DiscreteVP(spacing="linear"), DiscreteVP(spacing="cosine")], ids=repr)


def network(x: Tensor, clock: Tensor, condition: Condition) -> Tensor:
    """Something curved that depends on the clock."""
    return (x * 0.8 + clock[:, None, None, None] / 700).sin()


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
    scheduler.set_timesteps(STEPS)
    for i, timestep in enumerate(scheduler.timesteps):
        extra = {name: value(i) for name, value in each.items()}
        x = scheduler.step(network(x, timestep.float().expand(len(x)), Condition()), timestep, x, **extra).prev_sample
    return x


@pytest.fixture
def peers_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the peer's DDPM draw ours, one a step."""
    steps = iter(range(STEPS))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise(next(steps)))
    yield


@every_table
def test_tables(process: DiscreteVP) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule=PEER_BETAS[process.spacing], beta_start=8.5e-4, beta_end=1.2e-2)
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
    assert_close(ours, peer(scheduler, x), rtol=1e-4, atol=1e-4)


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
    assert_close(ours, peer(scheduler, x, **each), rtol=1e-4, atol=1e-4)

    scheduler = diffusers.DDIMScheduler(**settings, clip_sample=False, timestep_spacing="trailing")
    ours = DDIM(eta=eta).sample(denoise, x, Trailing().times(process, STEPS), process, noise)
    assert_close(ours, peer(scheduler, x, **each), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # the peer's own
@every_table
@every_prediction
def test_dpmpp_2m(process: DiscreteVP, prediction: Prediction) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **peer_settings(process, prediction),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    denoise = Denoiser(network=network, process=process, prediction=prediction).bind(Condition())
    x = noise(-1)
    ours = DPMpp2M().sample(denoise, x, Trailing().times(process, STEPS), process, noise)
    assert_close(ours, peer(scheduler, x), rtol=1e-4, atol=1e-4)
