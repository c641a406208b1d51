"""The denoiser: the same estimate for every prediction kind, the network's input, and the learned variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.network_input import EDMInput, NetworkInput, TableIndex, Time
from ldm.diffusion.prediction import EpsPrediction, Prediction, VelocityPrediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow

F64 = torch.float64
PROCESS = DiscreteVP()


def image() -> Tensor:
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
def test_every_prediction_of_the_same_x0_gives_the_same_estimate(prediction: Prediction, dtype: torch.dtype) -> None:
    """A network whose x0 is its condition's vector, expressed in each prediction kind and in two precisions."""
    t = torch.tensor([0.3, 0.6, 1.0], dtype=F64)
    vector = torch.tensor([[0.5], [-1.0], [2.0]])

    def network(x_t: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        x0 = condition.vector[:, :, None, None].expand_as(x_t)
        alpha, sigma = PROCESS.scales((network_time.double() + 1) / 1000, x_t)
        return prediction.target(x0, (x_t - alpha * x0) / sigma, alpha, sigma).to(dtype)

    x_t = image()
    got = Denoiser(network=network, process=PROCESS, prediction=prediction).bind(Condition(vector=vector))(x_t, t)
    # Near pure noise an eps error is multiplied by sigma / alpha = 14.6.
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert_close(got.x0, vector[:, :, None, None].expand_as(x_t), rtol=0, atol=tolerance)
    assert got.x0.dtype == got.eps.dtype == torch.float32
    assert_close(PROCESS.blend(got, t), x_t, rtol=1e-4, atol=1e-4)


def test_network_time_is_the_tables_index_as_a_float() -> None:
    """t = (k + 1) / N gives k, to the bit, for every step; times between steps give fractions; below the first step it is 0."""
    for n in (1000, 300, 7):
        process = DiscreteVP(num_steps=n)
        t = torch.arange(1, n + 1, dtype=F64) / n
        _, network_time = TableIndex()(image(), t, process)
        assert torch.equal(network_time, torch.arange(n, dtype=torch.float32))
    _, network_time = TableIndex()(image(), torch.tensor([0.0125, 0.00001]), PROCESS)
    assert_close(network_time, torch.tensor([11.5, 0.0]))


def test_time_is_the_published_network_time_of_continuous_processes() -> None:
    """Song et al. 2021: 999 t."""
    x, network_time = Time()(image(), torch.tensor([1e-5, 0.5, 1.0], dtype=F64), RectifiedFlow())
    assert_close(network_time, torch.tensor([0.00999, 499.5, 999.0]))
    assert torch.equal(x, image())


def test_edm_feeds_the_published_input() -> None:
    """Karras et al. 2022, table 1: c_in = 1 / sqrt(sigma^2 + 0.5^2), ln(sigma) / 4; at sigma = 80 the network_time is 1.0955."""
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=F64)
    x, network_time = EDMInput()(image(), sigma / 80, EDM())
    assert_close(x, image() * ((sigma**2 + 0.25) ** -0.5).float()[:, None, None, None])
    assert_close(network_time, (sigma.log() / 4).float())
    assert network_time[2].item() == pytest.approx(1.0955, abs=1e-4)


@pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)
def test_edm_feeds_unit_variance_of_any_process(process: NoiseProcess) -> None:
    t = torch.tensor([0.01, 0.3, 0.99], dtype=F64)
    x0, eps = 0.7 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)), torch.randn(3, 20_000)
    x, _ = EDMInput(sigma_data=0.7)(process.blend(Estimate(x0, eps), t), t, process)
    assert_close(x.std(dim=1), torch.ones(3), rtol=0, atol=0.025)  # 5 standard deviations


@pytest.mark.parametrize("network_input", [kind() for kind in NetworkInput.kinds().values()], ids=lambda i: i.kind)
@pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)
def test_every_network_time_is_finite_and_rises_with_noise(network_input: NetworkInput, process: NoiseProcess) -> None:
    t = torch.linspace(process.t_first, 1 - 1e-3, 50, dtype=F64)
    network_time = network_input(torch.zeros(50, 1), t, process)[1]
    assert network_time.isfinite().all() and (network_time.diff() > 0).all()


def test_an_infinite_network_time_is_refused() -> None:
    with pytest.raises(UserError, match="'edm' has no finite network_time .* 'rectified_flow' ends: use 'time'"):
        Denoiser(network=lambda x, network_time, c: x, process=RectifiedFlow(), prediction=VelocityPrediction(), network_input=EDMInput())
    with pytest.raises(UserError, match="sigma_data > 0"):
        EDMInput(sigma_data=-1)


def test_the_second_half_of_the_channels_is_the_variance() -> None:
    """Half of (1 + output), as the published code reads it: -1 is the posterior's own, 1 that of q(x_t | x_s)."""
    x_t, t = image(), torch.tensor([0.3, 0.6, 1.0], dtype=F64)
    second_half = torch.tensor([-1.0, 1.0, 0.0])[:, None, None, None].expand(3, 1, 2, 2)

    def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        return torch.cat([x.tanh(), second_half], dim=1)

    got = Denoiser(network=network, process=PROCESS, prediction=EpsPrediction(), learned_variance=True).bind(Condition())(x_t, t)
    plain = Denoiser(network=lambda x, network_time, c: x.tanh(), process=PROCESS, prediction=EpsPrediction()).bind(Condition())(x_t, t)
    assert torch.equal(got.x0, plain.x0) and torch.equal(got.eps, plain.eps)
    assert plain.variance_logits is None
    assert_close(got.variance_logits, torch.tensor([0.0, 1.0, 0.5])[:, None, None, None].expand(3, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_network_gets_float32_and_the_sampler_its_own_dtype(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def watch(x_t: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        seen.extend((x_t.dtype, network_time.dtype))
        return x_t

    got = Denoiser(network=watch, process=PROCESS, prediction=EpsPrediction()).bind(Condition())(image().to(dtype), torch.tensor([0.5] * 3))
    assert seen == [torch.float32, torch.float32]
    assert got.x0.dtype == got.eps.dtype == dtype


def test_toward_is_a_line() -> None:
    a, b = (Estimate(torch.tensor(x), torch.tensor(e)) for x, e in ((1.0, -1.0), (3.0, 0.0)))
    assert a.toward(b, 0) == a
    assert a.toward(b, 1) == b
    assert a.toward(b, 2.5) == Estimate(torch.tensor(6.0), torch.tensor(1.5))
    learned = Estimate(b.x0, b.eps, variance_logits=torch.tensor(0.3))
    assert a.toward(learned, 2.5).variance_logits is learned.variance_logits


def test_an_ill_posed_pair_is_refused() -> None:
    with pytest.raises(UserError, match="zero_terminal_snr"):
        Denoiser(network=lambda x, network_time, c: x, process=DiscreteVP(zero_terminal_snr=True), prediction=EpsPrediction())
