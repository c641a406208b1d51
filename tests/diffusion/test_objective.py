"""The loss: its random draws, its weights, and the network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.core.shapes import over
from ldm.diffusion.network_input import EDMInput, NetworkInput, TableIndex, Time
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import (
    EDMPrediction,
    EpsPrediction,
    Prediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.ve_sde import VESDE
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.diffusion.time_density import LogitNormal, LogNormal, Power, TimeDensity, UniformSteps, UniformTime
from ldm.diffusion.weighting import SNR, Constant, EDMWeighting, MinSNR, Sigmoid, Weighting

F64 = torch.float64
every_prediction = pytest.mark.parametrize("prediction", [kind() for kind in Prediction.kinds().values()], ids=lambda p: p.kind)
every_weighting = pytest.mark.parametrize("weighting", [kind() for kind in Weighting.kinds().values()], ids=lambda w: w.kind)
every_density = pytest.mark.parametrize("density", [kind() for kind in TimeDensity.kinds().values()], ids=lambda d: d.kind)
every_process = pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda p: p.kind)
UNCOND = Condition()
ZERO_END = DiscreteVP(zero_terminal_snr=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Always(TimeDensity):
    """One time for all; not a registered kind."""

    t: float

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        return torch.full((len(streams),), self.t, dtype=F64)


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(3))


def streams(count: int) -> Streams:
    return Streams.of(0, "train", 17, samples=range(count))


def zero_network(x_t: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
    return torch.zeros_like(x_t)


def perfect(process: NoiseProcess, prediction: Prediction, network_input: NetworkInput, x0: Tensor):
    """A network that is given x0 and recovers t and eps from its input."""

    def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        network_time = network_time.double()
        match network_input:
            case TableIndex():
                t = (network_time + 1) / process.num_steps
            case Time():
                t = network_time / (process.num_steps - 1)
            case EDMInput():
                t = process.time_at(-8 * network_time)
                x = x * over((process.sigma(t) ** 2 + 0.25 * process.alpha(t) ** 2).sqrt(), x)
        alpha, sigma = (over(scale, x) for scale in (process.alpha(t), process.sigma(t)))
        return prediction.target(x0.double(), (x.double() - alpha * x0) / sigma, alpha, sigma)

    return network


def no_loss(objective: Objective, x0: Tensor) -> None:
    network = perfect(objective.process, objective.prediction, objective.network_input, x0)
    assert objective(network, x0, UNCOND, streams(8)).max() < (2e-8 if objective.loss == "l2" else 2e-4)
    assert objective(zero_network, x0, UNCOND, streams(8)).min() > 1e-3


@pytest.mark.parametrize("loss", ["l2", "l1"])
@every_weighting
@every_prediction
def test_a_perfect_network_has_no_loss(prediction: Prediction, weighting: Weighting, loss: str) -> None:
    """Data at one point: eps follows from x_t, so a perfect network's loss is 0; that of a network of zeros is not."""
    x0 = images(1).expand(8, -1, -1, -1)
    no_loss(Objective(process=DiscreteVP(), prediction=prediction, weighting=weighting, loss=loss), x0)


FED = [
    pytest.param(process, network_input, density, id=f"{process.kind}-{network_input.kind}-{density.kind}")
    for process in (kind() for kind in NoiseProcess.kinds().values())
    for network_input in (kind() for kind in NetworkInput.kinds().values())
    for density in (kind() for kind in TimeDensity.kinds().values())
    if (process.kind, network_input.kind) != ("rectified_flow", "edm")  # refused: no finite network_time
    and (density.on_chain or network_input.kind != "table_index")  # its network_time is constant below the first step
]


@pytest.mark.parametrize("process, network_input, density", FED)
def test_a_perfect_network_has_no_loss_for_any_input(process: NoiseProcess, network_input: NetworkInput, density: TimeDensity) -> None:
    x0 = images(1).expand(8, -1, -1, -1)
    objective = Objective(process=process, prediction=VelocityPrediction(), density=density, network_input=network_input)
    network = perfect(process, objective.prediction, network_input, x0)
    t = density.draw(streams(8), process)
    rounding = 1e-7 / process.noise_share(t).clamp(max=0.1)  # of eps, in float32's x_t
    assert (objective(network, x0, UNCOND, streams(8)).sqrt() < 1e-4 + 4 * rounding).all()
    assert objective(zero_network, x0, UNCOND, streams(8)).min() > 0.5


def test_plain_loss_of_a_zero_network_is_the_targets_mean_square() -> None:
    """L_simple (Ho et al. 2020, eq. 14) is the mean of eps^2 for an output of 0: the noise is the stream's, unscaled."""
    x0, eps = images(5), streams(5).normal("noise", (2, 4, 4))
    plain = Objective(process=DiscreteVP(), prediction=EpsPrediction())
    assert_close(plain(zero_network, x0, UNCOND, streams(5)), eps.square().flatten(1).mean(1))
    absolute = Objective(process=DiscreteVP(), prediction=EpsPrediction(), loss="l1")
    assert_close(absolute(zero_network, x0, UNCOND, streams(5)), eps.abs().flatten(1).mean(1))
    clean = Objective(process=DiscreteVP(), prediction=X0Prediction())
    assert_close(clean(zero_network, x0, UNCOND, streams(5)), x0.square().flatten(1).mean(1))


def test_network_gets_x_t_and_the_tables_index() -> None:
    """x_t = sqrt(alpha_bar[k]) x0 + sqrt(1 - alpha_bar[k]) eps with k = network_time, a whole number from 0 to N - 1."""
    process, x0, seen = DiscreteVP(), images(40), []

    def watch(x_t: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        seen.append((x_t, network_time))
        return torch.zeros_like(x_t)

    Objective(process=process, prediction=VPrediction())(watch, x0, UNCOND, streams(40))
    (x_t, network_time), eps = seen[0], streams(40).normal("noise", (2, 4, 4))
    assert x_t.dtype == network_time.dtype == torch.float32
    assert torch.equal(network_time, network_time.round())
    betas = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=F64) ** 2
    bar = (1 - betas).cumprod(0)[network_time.long()][:, None, None, None]
    assert_close(x_t, (bar.sqrt() * x0 + (1 - bar).sqrt() * eps).float())


def test_every_step_is_drawn_equally_often() -> None:
    t = UniformSteps().draw(streams(4000), DiscreteVP(num_steps=4))
    counts = torch.bincount((t * 4).long(), minlength=5)
    assert counts[0] == 0 and counts.sum() == 4000
    assert (counts[1:] - 1000).abs().max() < 110  # 4 standard deviations


def test_a_sample_has_the_same_loss_alone_and_in_a_batch() -> None:
    x0 = images(6)
    objective = Objective(process=DiscreteVP(), prediction=VPrediction(), weighting=MinSNR())
    together = objective(lambda x, network_time, c: x.tanh(), x0, UNCOND, streams(6))
    alone = [objective(lambda x, network_time, c: x.tanh(), x0[i : i + 1], UNCOND, streams(6).part(i, i + 1)) for i in range(6)]
    assert_close(together, torch.cat(alone))
    assert together.unique().numel() == 6


def test_output_in_half_precision_is_compared_in_full() -> None:
    x0 = images(3).bfloat16()
    objective = Objective(process=DiscreteVP(), prediction=X0Prediction())
    got = objective(lambda x, network_time, c: (x > 0).bfloat16(), x0, UNCOND, streams(3))
    assert got.dtype == torch.float32
    assert_close(got, objective(lambda x, network_time, c: (x > 0).float(), x0.float(), UNCOND, streams(3)))
    got = objective(lambda x, network_time, c: x.tanh(), x0, UNCOND, streams(3))
    assert_close(got, objective(lambda x, network_time, c: x.tanh(), x0.float(), UNCOND, streams(3)))


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


def test_min_snr_as_published() -> None:
    """Hang et al. 2023, sec. 3.4: of eps min(snr, gamma) / snr, of v min(snr, gamma) / (snr + 1), of x0 min(snr, gamma)."""
    published = MinSNR(gamma=5, as_published=True)
    for prediction, scale in ((EpsPrediction(), lambda snr: snr), (VPrediction(), lambda snr: snr + 1), (X0Prediction(), torch.ones_like)):
        snr, got = weight(published, prediction, DiscreteVP())
        assert_close(got, snr.clamp(max=5) / scale(snr))
    with pytest.raises(UserError, match="'min_snr' is 0 at zero SNR"):
        Objective(process=DiscreteVP(zero_terminal_snr=True), prediction=VPrediction(), weighting=published)


@pytest.mark.parametrize("prediction", [VPrediction(), X0Prediction()], ids=lambda p: p.kind)
@pytest.mark.parametrize("weighting", [Constant(), MinSNR(), EDMWeighting(sigma_data=1.0)], ids=lambda w: w.kind)
def test_the_noisiest_step_is_trained_with_zero_terminal_snr(weighting: Weighting, prediction: Prediction) -> None:
    """The published min(snr, gamma) / (snr + 1) on v is 0 there, where sampling starts. The weight must be 1 there, and finite."""
    snr, got = weight(weighting, prediction, ZERO_END)
    assert snr[-1] == 0
    assert_close(got[-1], torch.ones((), dtype=F64))
    assert got.isfinite().all()

    output = torch.zeros(4, 2, 4, 4, requires_grad=True)
    objective = Objective(process=ZERO_END, prediction=prediction, weighting=weighting, density=Always(t=1.0))
    loss = objective(lambda x, network_time, c: output, images(4), UNCOND, streams(4))
    loss.sum().backward()
    assert_close(loss, (images(4)).square().flatten(1).mean(1))  # v = -x0 there
    assert output.grad.abs().mean() > 0.01


@pytest.mark.parametrize("process", [ZERO_END, RectifiedFlow()], ids=lambda p: p.kind)
@pytest.mark.parametrize("weighting", [SNR(), Sigmoid()], ids=lambda w: w.kind)
def test_a_weighting_that_does_not_train_the_noisiest_step_is_refused(weighting: Weighting, process: NoiseProcess) -> None:
    with pytest.raises(UserError, match=f"'{weighting.kind}' is 0 at zero SNR"):
        Objective(process=process, prediction=VPrediction(), weighting=weighting)


def test_snr_is_the_plain_loss_of_eps_and_sigma_squared_on_the_score() -> None:
    _, got = weight(SNR(), EpsPrediction(), DiscreteVP())
    assert_close(got, torch.ones_like(got))
    _, got = weight(SNR(), ScorePrediction(), VESDE())
    assert_close(got, VESDE().sigma(torch.arange(1, 1001, dtype=F64) / 1000) ** 2)


def test_edm_weighting_is_the_published_one_and_1_on_its_output() -> None:
    """Karras et al. 2022, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0."""
    _, on_x0 = weight(EDMWeighting(sigma_data=0.5), X0Prediction(), EDM())
    sigma = 80 * torch.arange(1, 1001, dtype=F64) / 1000
    assert_close(on_x0, (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    for process in (EDM(), DiscreteVP(), RectifiedFlow()):
        _, got = weight(EDMWeighting(sigma_data=0.7), EDMPrediction(sigma_data=0.7), process)
        assert_close(got, torch.ones_like(got))


def test_sigmoid_is_a_step_on_eps() -> None:
    """Kingma & Gao 2023: sigmoid(k - log-SNR) on eps, k = 2: 1/2 at snr = e^2."""
    snr, got = weight(Sigmoid(), EpsPrediction(), DiscreteVP())
    assert_close(got, 1 / (1 + snr * math.exp(-2)))
    assert Sigmoid(shift=1.0).of_output(torch.ones(()), torch.tensor(math.exp(-0.5))).item() == pytest.approx(0.5)


@pytest.mark.parametrize("weighting", [SNR(), Sigmoid(), EDMWeighting()], ids=lambda w: w.kind)
@every_prediction
def test_a_weighting_is_of_x0_whatever_is_predicted(weighting: Weighting, prediction: Prediction) -> None:
    t = torch.arange(1, 1001, dtype=F64) / 1000
    gain = prediction.x0_gain(DiscreteVP().alpha(t), DiscreteVP().sigma(t))
    assert_close(weighting.of_output(DiscreteVP().log_snr(t), gain) / gain**2, weight(weighting, X0Prediction(), DiscreteVP())[1])


@every_process
@every_density
def test_times_stay_where_the_process_is_trained(density: TimeDensity, process: NoiseProcess) -> None:
    t = density.draw(streams(500), process)
    assert t.dtype == F64 and t.unique().numel() > 50
    assert (t >= process.t_first).all() and (t <= process.t_last).all()
    assert_close(t[100:200], density.draw(streams(500).part(100, 200), process), rtol=1e-12, atol=0)


def test_densities_have_their_moments() -> None:
    """4 standard deviations of 4000 draws."""
    t = UniformTime().draw(streams(4000), VPSDE())
    assert_close(torch.histc(t, 4, 0, 1), torch.full((4,), 1000.0, dtype=F64), rtol=0, atol=110)
    cubed = Power(exponent=2).draw(streams(4000), DiscreteVP()) ** 3  # of the density 3 t^2
    assert_close(torch.histc(cubed, 4, 0, 1), torch.full((4,), 1000.0, dtype=F64), rtol=0, atol=110)
    assert_close(Power(exponent=0).draw(streams(100), DiscreteVP()), UniformSteps().draw(streams(100), DiscreteVP()))
    late = UniformTime().draw(streams(1000), RectifiedFlow(num_steps=4))  # from its first time, 1/4, to its last
    assert 0.25 <= late.min() < 0.26 and 0.99 < late.max() <= 1
    log_sigma = EDM().sigma(LogNormal().draw(streams(4000), EDM())).log()  # Karras et al. 2022: P_mean -1.2, P_std 1.2
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.076)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.054)
    logit = LogitNormal(mean=0.5, std=0.8).draw(streams(4000), RectifiedFlow()).logit()
    assert logit.mean().item() == pytest.approx(0.5, abs=0.051)
    assert logit.std().item() == pytest.approx(0.8, abs=0.036)


def test_on_the_flow_log_normal_and_logit_normal_are_one() -> None:
    """sigma / alpha = t / (1 - t)."""
    ratio, logit = LogNormal(mean=0.3, std=1.1), LogitNormal(mean=0.3, std=1.1)
    assert_close(ratio.draw(streams(100), RectifiedFlow()), logit.draw(streams(100), RectifiedFlow()))


@every_prediction
def test_min_snr_caps_the_x0_weight(prediction: Prediction) -> None:
    process = DiscreteVP()
    t = torch.arange(1, 1001, dtype=F64) / 1000
    gain = prediction.x0_gain(process.alpha(t), process.sigma(t))
    on_x0 = MinSNR(gamma=3).of_output(process.log_snr(t), gain) / gain**2
    assert on_x0.max().item() == pytest.approx(3)
    assert (on_x0 <= torch.maximum(Constant().of_output(process.log_snr(t), gain) / gain**2, process.log_snr(t).exp()) + 1e-9).all()


def test_l1_and_l2_weight_the_same_error() -> None:
    x0, ones = images(4), {"process": DiscreteVP(), "prediction": VPrediction(), "density": Always(t=0.05)}
    constant, capped = (Objective(**ones, weighting=w, loss="l1") for w in (Constant(), MinSNR()))
    squared, capped_squared = (Objective(**ones, weighting=w) for w in (Constant(), MinSNR()))
    ratio = capped(zero_network, x0, UNCOND, streams(4)) / constant(zero_network, x0, UNCOND, streams(4))
    snr = DiscreteVP().log_snr(torch.tensor(0.05)).exp().float()
    ratio_squared = capped_squared(zero_network, x0, UNCOND, streams(4)) / squared(zero_network, x0, UNCOND, streams(4))
    assert_close(ratio_squared, (5 / (snr + 1)).expand(4))
    assert_close(ratio**2, ratio_squared)
    assert ratio.max() < 0.9


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'eps' is undefined at zero SNR"):
        Objective(process=ZERO_END, prediction=EpsPrediction())
    with pytest.raises(UserError, match="unknown loss 'huber'; allowed: l1, l2"):
        Objective(process=DiscreteVP(), prediction=EpsPrediction(), loss="huber")
    with pytest.raises(UserError, match="gamma > 0"):
        MinSNR(gamma=0)
    with pytest.raises(UserError, match="sigma_data > 0"):
        EDMWeighting(sigma_data=0)
    for density in (LogNormal, LogitNormal):
        with pytest.raises(UserError, match="std > 0"):
            density(std=0)
    with pytest.raises(UserError, match="exponent >= 0"):
        Power(exponent=-1)
    with pytest.raises(UserError, match="one sigma_data, got 0.5, 1"):
        Objective(process=EDM(), prediction=EDMPrediction(), weighting=EDMWeighting(sigma_data=1), network_input=EDMInput())
    with pytest.raises(UserError, match="no finite network_time"):
        Objective(process=RectifiedFlow(), prediction=VelocityPrediction(), network_input=EDMInput())


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"learned_variance": True}, "no loss term"),
        ({"vlb_weight": 0.001}, "set learned_variance"),
        ({"vlb_weight": 0.001, "loss": "vlb", "learned_variance": True}, "leave vlb_weight null"),
        ({"vlb_weight": 0.0, "learned_variance": True}, "above 0"),
        ({"vlb_weight": 0.001, "learned_variance": True, "density": UniformTime()}, "density to uniform or importance"),
        ({"loss": "vlb", "density": LogNormal()}, "density to uniform or importance"),
        ({"loss": "vlb", "weighting": MinSNR()}, "weighting to constant"),
    ],
)
def test_inconsistent_settings_of_the_bound_are_refused(parts: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(process=DiscreteVP(), prediction=EpsPrediction(), **parts)
