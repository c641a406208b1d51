"""The denoiser: one network, whatever it predicts, read alike; its clock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.network_input import TableIndex
from ldm.diffusion.prediction import EpsPrediction, Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP

F64 = torch.float64
PROCESS = DiscreteVP()


def picture() -> Tensor:
    return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
def test_networks_that_mean_the_same_are_read_the_same(prediction: Prediction, dtype: torch.dtype) -> None:
    """A network that believes in x0 = its condition's vector says so in any prediction's terms, and in any precision."""
    t = torch.tensor([0.3, 0.6, 1.0], dtype=F64)
    told = torch.tensor([[0.5], [-1.0], [2.0]])

    def believer(x_t: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        x0 = condition.vector[:, :, None, None].expand_as(x_t)
        alpha, sigma = PROCESS.scales((clock.double() + 1) / 1000, x_t)
        return prediction.target(x0, (x_t - alpha * x0) / sigma, alpha, sigma).to(dtype)

    x_t = picture()
    got = Denoiser(network=believer, process=PROCESS, prediction=prediction).bind(Condition(vector=told))(x_t, t)
    # Near pure noise an eps error is multiplied by sigma / alpha = 14.6.
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert_close(got.x0, told[:, :, None, None].expand_as(x_t), rtol=0, atol=tolerance)
    assert got.x0.dtype == got.eps.dtype == torch.float32
    assert_close(PROCESS.blend(got, t), x_t, rtol=1e-4, atol=1e-4)


def test_clock_is_the_tables_index_as_a_float() -> None:
    """t = (k + 1) / N gives k, to the bit, for every step; between steps it lies between; below the first it stays 0."""
    for n in (1000, 300, 7):
        process = DiscreteVP(num_steps=n)
        t = torch.arange(1, n + 1, dtype=F64) / n
        _, clock = TableIndex()(picture(), t, process)
        assert torch.equal(clock, torch.arange(n, dtype=torch.float32))
    _, clock = TableIndex()(picture(), torch.tensor([0.0125, 0.00001]), PROCESS)
    assert_close(clock, torch.tensor([11.5, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_network_sees_float32_and_the_sampler_its_own(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def watch(x_t: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        seen.extend((x_t.dtype, clock.dtype))
        return x_t

    got = Denoiser(network=watch, process=PROCESS, prediction=EpsPrediction()).bind(Condition())(
        picture().to(dtype), torch.tensor([0.5] * 3)
    )
    assert seen == [torch.float32, torch.float32]
    assert got.x0.dtype == got.eps.dtype == dtype


def test_toward_is_a_line() -> None:
    a, b = (Estimate(torch.tensor(x), torch.tensor(e)) for x, e in ((1.0, -1.0), (3.0, 0.0)))
    assert a.toward(b, 0) == a
    assert a.toward(b, 1) == b
    assert a.toward(b, 2.5) == Estimate(torch.tensor(6.0), torch.tensor(1.5))


def test_an_ill_posed_pair_is_refused() -> None:
    with pytest.raises(UserError, match="zero_terminal_snr"):
        Denoiser(network=lambda x, clock, c: x, process=DiscreteVP(zero_terminal_snr=True), prediction=EpsPrediction())
