"""The loss: what it draws, what it weighs, what it shows the network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.network_input import NetworkInput
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import EpsPrediction, Prediction, VPrediction, X0Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.time_density import TimeDensity, UniformSteps
from ldm.diffusion.weighting import Constant, MinSNR, Weighting

F64 = torch.float64
NOTHING = Condition()
ZERO_END = DiscreteVP(zero_terminal_snr=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Always(TimeDensity):
    """One time for all; not a registered kind."""

    t: float

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        return torch.full((len(streams),), self.t, dtype=F64)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(3))


def streams(count: int) -> Streams:
    return Streams.of(0, "train", 17, samples=range(count))


def silent(x_t: Tensor, clock: Tensor, condition: Condition) -> Tensor:
    return torch.zeros_like(x_t)


@pytest.mark.parametrize("density", [kind() for kind in TimeDensity.kinds().values()], ids=lambda d: d.kind)
@pytest.mark.parametrize("network_input", [kind() for kind in NetworkInput.kinds().values()], ids=lambda i: i.kind)
@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("weighting", [kind() for kind in Weighting.kinds().values()], ids=lambda w: w.kind)
@pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
def test_who_knows_the_point_has_no_loss(
    prediction: Prediction, weighting: Weighting, loss: str, network_input: NetworkInput, density: TimeDensity
) -> None:
    """Data at one point: eps can be read off x_t, so a perfect network's loss is 0; a silent one's is not."""
    process = DiscreteVP()
    x0 = pictures(1).expand(8, -1, -1, -1)

    def perfect(x_t: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = process.scales((clock.double() + 1) / process.num_steps, x_t)
        return prediction.target(x0, (x_t - alpha * x0) / sigma, alpha, sigma)

    objective = Objective(
        process=process, prediction=prediction, weighting=weighting, density=density, network_input=network_input, loss=loss
    )
    assert objective(perfect, x0, NOTHING, streams(8)).max() < (1e-8 if loss == "l2" else 1e-4)
    assert objective(silent, x0, NOTHING, streams(8)).min() > 1e-3


def test_plain_loss_of_a_silent_network_is_the_targets_size() -> None:
    """L_simple (Ho et al. 2020, eq. 14) is the mean of eps^2 for an output of 0: the noise is the stream's, unscaled."""
    x0, eps = pictures(5), streams(5).normal("noise", (2, 4, 4))
    plain = Objective(process=DiscreteVP(), prediction=EpsPrediction())
    assert_close(plain(silent, x0, NOTHING, streams(5)), eps.square().flatten(1).mean(1))
    absolute = Objective(process=DiscreteVP(), prediction=EpsPrediction(), loss="l1")
    assert_close(absolute(silent, x0, NOTHING, streams(5)), eps.abs().flatten(1).mean(1))
    clean = Objective(process=DiscreteVP(), prediction=X0Prediction())
    assert_close(clean(silent, x0, NOTHING, streams(5)), x0.square().flatten(1).mean(1))


def test_network_sees_the_blend_at_the_tables_index() -> None:
    """x_t = sqrt(alpha_bar[k]) x0 + sqrt(1 - alpha_bar[k]) eps with k the whole number on the network's clock, 0 to N - 1."""
    process, x0, seen = DiscreteVP(), pictures(40), []

    def watch(x_t: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        seen.append((x_t, clock))
        return torch.zeros_like(x_t)

    Objective(process=process, prediction=VPrediction())(watch, x0, NOTHING, streams(40))
    (x_t, clock), eps = seen[0], streams(40).normal("noise", (2, 4, 4))
    assert x_t.dtype == clock.dtype == torch.float32
    assert torch.equal(clock, clock.round())
    betas = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=F64) ** 2
    bar = (1 - betas).cumprod(0)[clock.long()][:, None, None, None]
    assert_close(x_t, (bar.sqrt() * x0 + (1 - bar).sqrt() * eps).float())


def test_every_step_is_drawn_alike() -> None:
    t = UniformSteps().draw(streams(4000), DiscreteVP(num_steps=4))
    counts = torch.bincount((t * 4).long(), minlength=5)
    assert counts[0] == 0 and counts.sum() == 4000
    assert (counts[1:] - 1000).abs().max() < 110  # 4 standard deviations


def test_a_sample_has_the_same_loss_alone_and_in_a_batch() -> None:
    x0 = pictures(6)
    objective = Objective(process=DiscreteVP(), prediction=VPrediction(), weighting=MinSNR())
    together = objective(lambda x, clock, c: x.tanh(), x0, NOTHING, streams(6))
    alone = [objective(lambda x, clock, c: x.tanh(), x0[i : i + 1], NOTHING, streams(6).part(i, i + 1)) for i in range(6)]
    assert_close(together, torch.cat(alone))
    assert together.unique().numel() == 6


def test_output_in_half_precision_is_compared_in_full() -> None:
    x0 = pictures(3).bfloat16()
    objective = Objective(process=DiscreteVP(), prediction=X0Prediction())
    got = objective(lambda x, clock, c: (x > 0).bfloat16(), x0, NOTHING, streams(3))
    assert got.dtype == torch.float32
    assert_close(got, objective(lambda x, clock, c: (x > 0).float(), x0.float(), NOTHING, streams(3)))
    got = objective(lambda x, clock, c: x.tanh(), x0, NOTHING, streams(3))
    assert_close(got, objective(lambda x, clock, c: x.tanh(), x0.float(), NOTHING, streams(3)))


def weight(weighting: Weighting, prediction: Prediction, process: NoiseProcess) -> tuple[Tensor, Tensor]:
    """snr and the weight on the output at every step."""
    t = torch.arange(1, process.num_steps + 1, dtype=F64) / process.num_steps
    gain = prediction.x0_gain(process.alpha(t), process.sigma(t))
    return process.log_snr(t).exp(), weighting.of_output(process.log_snr(t), gain)


def test_min_snr_on_eps_is_the_published_one() -> None:
    """Hang et al. 2023, sec. 3.4: min(snr, gamma) / snr on eps."""
    snr, got = weight(MinSNR(gamma=5), EpsPrediction(), DiscreteVP())
    assert_close(got, snr.clamp(max=5) / snr)


def test_min_snr_on_v_and_x0_by_their_formulas() -> None:
    snr, got = weight(MinSNR(gamma=5), VPrediction(), DiscreteVP())
    assert_close(got, (5 / (snr + 1)).clamp(max=1))
    snr, got = weight(MinSNR(gamma=5), X0Prediction(), DiscreteVP())
    assert_close(got, snr.clamp(min=1, max=5))


@pytest.mark.parametrize("prediction", [VPrediction(), X0Prediction()], ids=lambda p: p.kind)
@pytest.mark.parametrize("weighting", [kind() for kind in Weighting.kinds().values()], ids=lambda w: w.kind)
def test_the_noisiest_step_is_taught_with_zero_terminal_snr(weighting: Weighting, prediction: Prediction) -> None:
    """The trap: min(snr, gamma) / (snr + 1) on v is 0 there, and sampling starts there. The weight must be whole, and never grow to it."""
    snr, got = weight(weighting, prediction, ZERO_END)
    assert snr[-1] == 0
    assert_close(got[-1], torch.ones((), dtype=F64))
    assert got.isfinite().all()

    output = torch.zeros(4, 2, 4, 4, requires_grad=True)
    objective = Objective(process=ZERO_END, prediction=prediction, weighting=weighting, density=Always(t=1.0))
    loss = objective(lambda x, clock, c: output, pictures(4), NOTHING, streams(4))
    loss.sum().backward()
    assert_close(loss, (pictures(4)).square().flatten(1).mean(1))  # v = -x0 there
    assert output.grad.abs().mean() > 0.01


@pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
def test_min_snr_caps_the_x0_weight(prediction: Prediction) -> None:
    process = DiscreteVP()
    t = torch.arange(1, 1001, dtype=F64) / 1000
    gain = prediction.x0_gain(process.alpha(t), process.sigma(t))
    on_x0 = MinSNR(gamma=3).of_output(process.log_snr(t), gain) / gain**2
    assert on_x0.max().item() == pytest.approx(3)
    assert (on_x0 <= torch.maximum(Constant().of_output(process.log_snr(t), gain) / gain**2, process.log_snr(t).exp()) + 1e-9).all()


def test_l1_and_l2_weigh_the_same_error() -> None:
    x0, ones = pictures(4), {"process": DiscreteVP(), "prediction": VPrediction(), "density": Always(t=0.05)}
    constant, capped = (Objective(**ones, weighting=w, loss="l1") for w in (Constant(), MinSNR()))
    squared, capped_squared = (Objective(**ones, weighting=w) for w in (Constant(), MinSNR()))
    ratio = capped(silent, x0, NOTHING, streams(4)) / constant(silent, x0, NOTHING, streams(4))
    snr = DiscreteVP().log_snr(torch.tensor(0.05)).exp().float()
    ratio_squared = capped_squared(silent, x0, NOTHING, streams(4)) / squared(silent, x0, NOTHING, streams(4))
    assert_close(ratio_squared, (5 / (snr + 1)).expand(4))
    assert_close(ratio**2, ratio_squared)
    assert ratio.max() < 0.9


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'eps' says nothing"):
        Objective(process=ZERO_END, prediction=EpsPrediction())
    with pytest.raises(UserError, match="unknown loss 'huber'; allowed: l1, l2"):
        Objective(process=DiscreteVP(), prediction=EpsPrediction(), loss="huber")
    with pytest.raises(UserError, match="gamma > 0"):
        MinSNR(gamma=0)
