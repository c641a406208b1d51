"""Autoguidance, classifier guidance, thresholding: identities and cases with an exact answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.guidance.autoguidance import autoguidance
from ldm.guidance.classifier_guided import classifier_guided
from ldm.guidance.thresholded import thresholded

F64 = torch.float64
PROCESSES = [*(kind() for kind in NoiseProcess.kinds().values()), DiscreteVP(zero_terminal_snr=True)]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
X_T = 3 * torch.randn(4, 2, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=F64)
MEANS, STD = torch.tensor([-1.0, 0.5, 2.0], dtype=F64), 0.4  # of each class's numbers


def denoiser_of(process: NoiseProcess, x0_of) -> Denoise:
    """A denoiser with this x0."""

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.scales(t, x_t)
        x0 = x0_of(x_t)
        return Estimate(x0, (x_t - alpha * x0) / sigma, variance_logits=0.1 * x_t)

    return denoise


class Classes:
    """Three classes of equal probability; each number of an image of class y is N(MEANS[y], STD^2). Its functions are exact."""

    def __init__(self, process: NoiseProcess) -> None:
        self.process = process

    def of_class(self, x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """x0 of images whose class has this mean, (B, 1, 1, 1)."""
        alpha, sigma = self.process.scales(t, x_t)
        return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * mean)

    def classify(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Bayes: log p(x_t | y), (B, 3)."""
        alpha, sigma = self.process.scales(t, x_t)
        off = (x_t[:, None] - alpha[:, None] * MEANS[None, :, None, None, None]) ** 2
        return -(off / (alpha**2 * STD**2 + sigma**2)[:, None] / 2).flatten(2).sum(2)

    def denoise(self, x_t: Tensor, t: Tensor) -> Estimate:
        """The estimate for an image of unknown class."""
        p = self.classify(x_t, t).softmax(1)
        x0 = sum(p[:, y, None, None, None] * self.of_class(x_t, t, mean) for y, mean in enumerate(MEANS))
        return denoiser_of(self.process, lambda _: x0)(x_t, t)


@every_process
def test_bayes_classifier_at_scale_1_gives_the_class(process: NoiseProcess) -> None:
    """p(x | y) ~ p(x) p(y | x), exactly, also under no_grad."""
    world, labels = Classes(process), torch.tensor([0, 1, 2, 2])
    guided = classifier_guided(world.denoise, world.classify, labels, 1.0, process)
    with torch.no_grad():
        got, plain = guided(X_T, T), world.denoise(X_T, T)
    wanted = world.of_class(X_T, T, MEANS[labels][:, None, None, None])
    assert_close(got.x0, wanted, rtol=1e-9, atol=1e-9)
    assert (got.x0 - plain.x0).abs().amax((1, 2, 3)).max() > 0.1
    assert_close(process.blend(got, T), X_T)
    assert not got.x0.requires_grad


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_classifier_guides_where_gradients_are_switched_off(switched_off) -> None:
    process = DiscreteVP()
    world, labels = Classes(process), torch.tensor([0, 1, 2, 2])

    def classify(x: Tensor, t: Tensor) -> Tensor:
        return world.classify(x, t) * t[:, None]

    expected = classifier_guided(world.denoise, classify, labels, 3.0, process)(X_T, T).x0
    with switched_off():
        got = classifier_guided(world.denoise, classify, labels + 0, 3.0, process)(X_T + 0, T + 0).x0
    assert torch.equal(got, expected)


@every_process
def test_classifier_guidance_is_linear_in_its_scale(process: NoiseProcess) -> None:
    """Dhariwal & Nichol 2021, alg. 2: eps - scale sigma grad log p, the gradient taken here by differences."""
    world, labels = Classes(process), torch.tensor([0, 1, 2, 2])
    plain = world.denoise(X_T, T)
    got = classifier_guided(world.denoise, world.classify, labels, 3.0, process)(X_T, T)
    step = torch.zeros_like(X_T)
    step[:, 0, 1, 2] = 1e-5

    def log_p(x: Tensor) -> Tensor:
        return world.classify(x, T).log_softmax(1)[torch.arange(4), labels]

    slope = (log_p(X_T + step) - log_p(X_T - step)) / 2e-5
    assert_close(got.eps[:, 0, 1, 2], plain.eps[:, 0, 1, 2] - 3.0 * process.sigma(T) * slope, rtol=1e-5, atol=1e-7)
    assert got.variance_logits is plain.variance_logits or torch.equal(got.variance_logits, plain.variance_logits)
    assert classifier_guided(world.denoise, world.classify, labels, 0.0, process) == world.denoise


@pytest.mark.parametrize("process", [RectifiedFlow(), DiscreteVP(zero_terminal_snr=True)], ids=repr)
def test_classifier_guidance_is_zero_on_pure_noise(process: NoiseProcess) -> None:
    world, end = Classes(process), torch.ones(4, dtype=F64)
    denoise = denoiser_of(process, lambda x: x.sin())
    got = classifier_guided(denoise, lambda x, t: x.flatten(1)[:, :3], torch.tensor([0, 1, 2, 2]), 2.0, process)(X_T, end)
    assert torch.equal(got.x0, X_T.sin()) and world.denoise(X_T, end).x0.isfinite().all()


def test_autoguidance_is_the_line_from_bad_through_good() -> None:
    """Karras et al. 2024, eq. 4."""
    process, calls = DiscreteVP(), []
    good, bad = denoiser_of(process, torch.sin), denoiser_of(process, lambda x: calls.append(1) or x.cos())
    assert autoguidance(good, bad, 1.0)(X_T, T).x0.equal(X_T.sin()) and not calls
    assert_close(autoguidance(good, bad, 0.0)(X_T, T).x0, X_T.cos())
    got = autoguidance(good, bad, 2.5)(X_T, T)
    assert_close(got.x0, X_T.cos() + 2.5 * (X_T.sin() - X_T.cos()))
    assert_close(process.blend(got, T), X_T)
    assert_close(got.variance_logits, 0.1 * X_T)


@every_process
def test_clipping_keeps_x_t(process: NoiseProcess) -> None:
    got = thresholded(denoiser_of(process, lambda x: x / 2), process, limit=1.2)(X_T, T)
    assert_close(got.x0, (X_T / 2).clamp(-1.2, 1.2))
    assert ((X_T / 2).abs() > 1.2).any() and ((X_T / 2).abs() < 1.2).any()
    assert_close(process.blend(got, T), X_T)
    assert_close(got.variance_logits, 0.1 * X_T)


def test_dynamic_thresholding_scales_each_sample_by_its_own_quantile() -> None:
    """Saharia et al. 2022, sec. 2.3: s = max(quantile of |x0|, 1); x0 clipped at s, divided by s."""
    process = DiscreteVP()
    x0 = torch.linspace(-1, 1, 21, dtype=F64).reshape(1, 1, 3, 7) * torch.tensor([0.5, 2.0, 4.0], dtype=F64)[:, None, None, None]
    x_t, t = torch.zeros_like(x0), T[:3]
    got = thresholded(denoiser_of(process, lambda _: x0), process, percentile=0.9)(x_t, t)
    assert_close(got.x0[0], x0[0])  # within the range already
    for row, scale in ((1, 2.0), (2, 4.0)):
        s = 0.9 * scale  # of 21 values of |x0|, each but 0 twice: the quantile 0.9 is the 19th
        assert_close(got.x0[row], x0[row].clamp(-s, s) / s)
    assert_close(process.blend(got, t), x_t, rtol=0, atol=1e-12)

    whole_range = thresholded(denoiser_of(process, lambda _: x0), process, limit=0.8, percentile=1.0)(x_t, t)
    assert_close(whole_range.x0, torch.stack([x0[0], 0.8 * x0[1] / 2, 0.8 * x0[2] / 4]))


def test_guidance_composes() -> None:
    """Thresholding of classifier guidance of autoguidance applies each in turn."""
    process, labels = DiscreteVP(), torch.tensor([0, 1, 2, 2])
    world = Classes(process)
    inner = autoguidance(world.denoise, denoiser_of(process, torch.tanh), 1.5)
    middle = classifier_guided(inner, world.classify, labels, 2.0, process)
    got = thresholded(middle, process)(X_T, T)
    assert_close(got.x0, middle(X_T, T).x0.clamp(-1, 1))
    shift = world.of_class(X_T, T, MEANS[labels][:, None, None, None]) - world.denoise(X_T, T).x0
    assert_close(middle(X_T, T).x0 - inner(X_T, T).x0, 2 * shift)


@pytest.mark.parametrize(
    "wrong, message", [({"limit": 0.0}, "limit > 0, got 0.0"), ({"percentile": 99.5}, "percentile in (0, 1], got 99.5")]
)
def test_mistakes_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        thresholded(denoiser_of(DiscreteVP(), torch.sin), DiscreteVP(), **wrong)
    assert message in str(caught.value)
