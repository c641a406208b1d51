"""Sampling on a GPU against the CPU: every sampler, every process and conditioner, half precision, the same seed twice, editing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.precision import Precision
from ldm.core.random import Streams
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import Trailing
from ldm.diffusion.process import NoiseProcess
from ldm.pipelines.edit import image_to_image, inpaint
from ldm.pipelines.sampling import start_std
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.heun import Heun
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.sampler import Sampler, step_noise

CPU = torch.device("cpu")
KINDS = sorted(Sampler.kinds())
VARIANTS = [DDIM(eta=0.7), DDPM(variance="large"), Heun(s_churn=3.0), PredictorCorrector(predictor="euler_maruyama", corrections=2)]
SAMPLERS = [*(kind() for kind in Sampler.kinds().values()), *VARIANTS]
ALL = ("text", "class", "mask", "map", "boxes", "small")
LEVEL = 2 / 255  # of 8 bits, in [-1, 1]
Models = Callable[..., LatentDiffusion]


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of data N(0.5, 0.7^2), each number by itself."""

    process: NoiseProcess

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.process.scales(t, x_t)
        off = (x_t - alpha * 0.5) / (alpha**2 * 0.49 + sigma**2)
        return Estimate(x0=0.5 + alpha * 0.49 * off, eps=sigma * off)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_takes_the_cpus_steps(device: torch.device, sampler: Sampler) -> None:
    """In float64 with an exact denoiser, on every process: what is left is where times, scales, tables and noise come to lie."""

    def drawn(process: NoiseProcess, there: torch.device) -> Tensor:
        streams, grid = Streams.of("test", samples=range(3)), Trailing().times(process, 8, 0.9)
        x = start_std(process, grid[0]) * streams.normal("start", (2, 4)).double().to(there)
        return sampler.sample(Gaussian(process), x, grid, process, step_noise(streams, x))

    for kind in NoiseProcess.kinds().values():
        process = kind()
        x0 = drawn(process, device)
        assert x0.device.type == device.type
        tolerance = 10 * sampler.rtol if sampler.adaptive else 1e-9  # whose strides may differ by a rounding
        assert_close(x0.cpu(), drawn(process, CPU), rtol=tolerance, atol=tolerance, msg=lambda text, kind=kind: f"{kind.kind}: {text}")


@pytest.fixture(scope="module")
def model_on(tiny: Callable[..., Path]) -> Models:
    """`model_on(device, precision, *conditioners)`: a tiny model of both stages, by default with every conditioner."""

    @functools.cache
    def model(device: torch.device, precision: Precision = "fp32", *conditioners: str) -> LatentDiffusion:
        return LatentDiffusion.from_pretrained(tiny(*(conditioners or ALL)), device, precision)

    return model


def everything(model: LatentDiffusion) -> ConditionInputs:
    """A value for every conditioner."""
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    hole = torch.zeros(1, 1, 16, 16)
    hole[:, :, 4:12, 6:] = 1
    return model.inputs(
        {
            "text": "a red heart",
            "class": "dog",
            "mask": (image, hole),
            "map": torch.arange(4).repeat(8, 2),
            "boxes": [[2.0, 0.1, 0.2, 0.6, 0.7]],
            "small": image[:, :, ::2, ::2],
        }
    )


def drawn(model: LatentDiffusion, sampler: str, count: int = 3) -> Tensor:
    settings = " rtol=1e-4 atol=1e-4" if Sampler.of_kind(sampler).adaptive else ""
    how = model.sampling(sampler=sampler + settings, steps=6, guidance=2.0, num_images=count, seed=3)
    return model.generate(everything(model), how)


@pytest.mark.parametrize("sampler", KINDS)
def test_a_sampler_draws_the_cpus_pictures(device: torch.device, model_on: Models, sampler: str) -> None:
    """By the network in float32, conditioned on everything, with guidance: to two levels of 255, four where the strides are adaptive."""
    levels = 4 if Sampler.of_kind(sampler).adaptive else 2
    assert_close(drawn(model_on(device), sampler), drawn(model_on(CPU), sampler), rtol=0, atol=levels * LEVEL)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("precision, levels", [("bf16", 2.0), ("fp16", 0.4)])
def test_half_precision_draws_the_cpus_pictures(
    device: torch.device, model_on: Models, sampler: str, precision: Precision, levels: float
) -> None:
    """The float32 ones, on average over the pixels; fp16 has three bits more than bf16."""
    half, whole = drawn(model_on(device, precision), sampler), drawn(model_on(CPU), sampler)
    error = (half - whole).abs().mean().item()
    assert 0 < error < levels * LEVEL  # and it is another precision
    assert half.dtype == torch.float32 and half.isfinite().all()


@pytest.mark.parametrize("sampler", KINDS)
def test_a_picture_depends_on_seed_and_number_only(device: torch.device, model_on: Models, sampler: str) -> None:
    """The same call on the same device to the bit; alone or in a batch to a level, since kernels may sum in another order."""
    model, levels = model_on(device), 3 if Sampler.of_kind(sampler).adaptive else 1
    together = drawn(model, sampler)
    assert torch.equal(drawn(model, sampler), together)
    assert_close(drawn(model, sampler, count=1), together[:1], rtol=0, atol=levels * LEVEL)
    assert (together[0] - together[1]).abs().max() > 20 * LEVEL


def levels_of(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


@pytest.mark.parametrize("conditioner", ["mask", "class"])
def test_painting_keeps_what_is_not_painted(device: torch.device, model_on: Models, conditioner: str) -> None:
    """Trained to inpaint, or with the known pixels put back at each step: bit-identical outside, and inside the CPU's painting."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    hole = np.zeros((40, 30), dtype=np.uint8)
    hole[10:25, 8:20] = 255
    picture, mask = Image.fromarray(pixels), Image.fromarray(hole)

    def painted(there: torch.device) -> np.ndarray:
        model = model_on(there, "fp32", conditioner)
        return levels_of(inpaint(model, picture, mask, model.sampling(steps=4, num_images=2, seed=1)))

    here = painted(device)
    assert (here[:, hole == 0] == pixels[hole == 0]).all()
    assert np.abs(here - painted(CPU)).max() <= 2
    assert (here[:, hole > 0] != pixels[hole > 0]).any()


def test_an_image_is_changed_as_on_the_cpu(device: torch.device, model_on: Models) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8))

    def changed(there: torch.device) -> np.ndarray:
        model = model_on(there, "fp32", "text")
        return levels_of(image_to_image(model, picture, 0.6, model.sampling(steps=6), "a red heart", "a house"))

    assert np.abs(changed(device) - changed(CPU)).max() <= 2


def test_a_classifier_leads_as_on_the_cpu(device: torch.device, tiny: Callable[..., Path], tiny_classifier: Callable[..., Path]) -> None:
    """In pixel space, clipped; the guide's gradient is taken at every step."""
    folder, classifier = tiny(first_stage="identity"), tiny_classifier()

    def guided(there: torch.device) -> Tensor:
        model = LatentDiffusion.from_pretrained(folder, there)
        how = model.sampling(steps=4, num_images=2, threshold="clip")
        return model.generate(model.inputs({}), replace(how, guide=model.guide(classifier, ("dog", "owl"), 4.0)))

    assert_close(guided(device), guided(CPU), rtol=0, atol=2 * LEVEL)


def test_tiles_are_decoded_as_on_the_cpu(device: torch.device, model_on: Models) -> None:
    latent = Streams.of(0, samples=range(1)).normal("latent", (2, 24, 20))

    def decoded(there: torch.device) -> Tensor:
        with torch.no_grad():
            return model_on(there).decode(latent.to(there), tile=16)

    assert_close(decoded(device), decoded(CPU), rtol=0, atol=LEVEL / 2)
