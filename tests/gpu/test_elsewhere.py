"""Training, sampling and evaluation where tensors do not lie on the CPU, float64 is not there and mixtures are refused: to the CPU's bits.

Conditioners by themselves: tests/conditioning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasks
import torch
from elsewhere import CPU, PLACE, There
from PIL import Image
from test_gpu_sampling import ALL, KINDS, SAMPLERS, Gaussian, drawn
from test_gpu_training import StandIn
from torch import Tensor
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.app.frozen_first_stage import latent_cache
from ldm.core.distributed import World
from ldm.core.random import Streams
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.diffusion.grid import Trailing
from ldm.diffusion.importance import ImportanceSteps
from ldm.diffusion.likelihood import bound_times, flow_density, pixel_flow_density, variational_bound
from ldm.diffusion.objective import Objective
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.weighting import Constant
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.pipelines.edit import image_to_image, inpaint
from ldm.pipelines.sampling import start_std
from ldm.pipelines.upscaling import upscale
from ldm.samplers.sampler import Sampler, step_noise
from ldm.training.latents import LatentData

NEARLY = 1e-4
DDIM_STEPS = {"steps": 3, "num_images": 2, "seed": 1}


def same(here: Tensor, there: Tensor, tolerance: float = 0.0) -> None:
    """One lies elsewhere, and has the bits of the other; nearly, if an adaptive solver's times are float32 there."""
    assert isinstance(here, There) and not isinstance(there, There)
    assert_close(here.cpu(), there, rtol=tolerance, atol=tolerance, equal_nan=True)


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a sum": lambda x, y: x + y,
    "a sum in place": lambda x, y: x.add_(y),
    "a number changed by a tensor elsewhere": lambda x, y: torch.zeros(()).add_(x[0]),
    "a list": lambda x, y: torch.cat([x, y]),
    "numbers in a list": lambda x, y: torch.stack([x[0], y[0]]),
    "an argument by name": lambda x, y: torch.where(condition=x > 0, input=x, other=y),
    "a layer's weights": lambda x, y: torch.nn.Linear(3, 2)(x),
    "an index elsewhere": lambda x, y: y[x.long()],
    "a value put in": lambda x, y: x.index_put_((torch.tensor([0, 1, 2]),), y),
    "a comparison": lambda x, y: torch.equal(x, y),
    "a CPU's generator": lambda x, y: torch.randn(3, device=x.device, generator=torch.Generator()),
    "a CPU's generator in place": lambda x, y: x.normal_(generator=torch.Generator()),
}
LACKING: dict[str, Callable[[Tensor], object]] = {
    "float64": lambda x: x.double(),
    "float64, made there": lambda x: torch.zeros(3, device=x.device, dtype=torch.float64),
    "float64, brought there": lambda x: torch.zeros(3, dtype=torch.float64).to(x.device),
    "NumPy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
def test_the_device_refuses_mixtures(elsewhere: torch.device, mixed: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match="same device|on the CPU|a generator of mps"):
        mixed(torch.ones(3, device=elsewhere), torch.ones(3))


@pytest.mark.parametrize("wanted", LACKING.values(), ids=LACKING)
def test_the_device_lacks_what_an_apple_gpu_lacks(elsewhere: torch.device, wanted: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match="which has no float64|to NumPy"):
        wanted(torch.ones(3, device=elsewhere))


def test_the_device_computes_and_takes_gradients(elsewhere: torch.device) -> None:
    x = torch.ones(3).to(elsewhere).requires_grad_()
    layer = torch.nn.Linear(3, 2).to(elsewhere)
    loss = (layer(x) * torch.tensor(2.0)).square().sum()
    loss.backward()
    assert x.grad is not None and all(isinstance(part, There) for part in (loss, x.grad, *layer.parameters()))
    assert {part.device for part in (x, loss, x.grad, layer.weight.grad, x[:2], x[torch.tensor([0, 2])])} == {PLACE}
    assert x.cpu().device == CPU and not isinstance(x.cpu(), There) and x.to("cpu", torch.float64).dtype == torch.float64


def with_vq(world: World, config: Any) -> Any:
    first_stage = VQAutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, num_codes=24, code_channels=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "FIRST_STAGE", first_stage)
        return tasks.autoencoder_task(world, config)


def with_everything_learned(world: World, config: Any) -> Any:
    """Steps drawn by their losses, a learned variance, the bound as loss."""
    plain = tasks.diffusion_task(world, config)
    process = DiscreteVP(num_steps=8, beta_last=0.5)
    spec = replace(plain.model.spec, process=process, learned_variance=True)
    conditioners = spec.build_conditioners()
    parts = tasks.DiffusionParts(
        spec=spec,
        first_stage=tasks.FIRST_STAGE.build().eval().requires_grad_(False),
        first_stage_weights={},
        network=spec.build_network(conditioners),
        conditioners=conditioners,
    )
    objective = Objective(
        process=process,
        prediction=spec.prediction,
        weighting=Constant(),
        density=ImportanceSteps(history=1).begin(process),
        loss="vlb",
        learned_variance=True,
    )
    data = LatentData(train_set=tasks.DrawnPictures())
    return tasks.DiffusionTask(parts, objective, data, config, drop_all=0.1, prompts=(), seed=0, world=world)


LOSSES = {
    "lpips": AutoencoderLossConfig(perceptual_weight=1.0, disc_start=1, disc_layers=1, disc_channels=8, learn_logvar=True),
    "vanilla": AutoencoderLossConfig(perceptual_weight=0.0, disc_start=1, disc_layers=1, disc_channels=8, disc_loss="vanilla", pixel="l2"),
    "mirrored": AutoencoderLossConfig(
        perceptual_weight=1.0, disc_start=2, disc_layers=1, disc_channels=8, equivariance_weight=0.5, equivariance_mirror=True
    ),
}
MORE_TASKS: dict[str, Callable[[World, Any], Any]] = {
    **{name: functools.partial(tasks.autoencoder_task, loss=loss) for name, loss in LOSSES.items()},
    "vq": with_vq,
    "everything learned": with_everything_learned,
}


@pytest.mark.parametrize("which", [*tasks.TASKS, *MORE_TASKS])
def test_a_task_trains_evaluates_and_goes_on(which: str, tmp_path: Path, elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, saved, opened again, one more: weights, averages, numbers, sample grid and files are the CPU's."""
    monkeypatch.setattr(tasks.RunFolder, "draw_curves", lambda self: None)
    made = {**tasks.TASKS, **MORE_TASKS}[which]

    def trained(device: torch.device) -> tuple[dict[str, Tensor], list[dict[str, float]], dict[str, float], Tensor]:
        world, config = World(0, 1, device), tasks.train_config(steps=4, accumulate=2)
        more = {"lpips": StandIn()} if which in ("lpips", "mirrored") else {}
        run = tasks.RunFolder(tmp_path / device.type, True)
        numbers = []
        for first, last in ((1, 3), (4, 4)):
            task = made(world, config, **more)
            engine, batches = tasks._Engine(task, config, run, 0, world), task.batches(first)
            assert engine.restore() == first - 1
            found = [engine.step(step, next(batches)) for step in range(first, last + 1)]
            numbers += [dict(zip(one.names, one.values.tolist(), strict=True)) for one in found]
            engine.save(last)
        with torch.no_grad():
            evaluation, grid = task.evaluate(nullcontext()).metrics, task.sample_grid(nullcontext())
        modules = {**task.trained, **{f"average of {name}": average.module for name, average in task.averaged.items()}}
        weights = {f"{name}.{leaf}": p.detach() for name, module in modules.items() for leaf, p in module.named_parameters()}
        return weights, numbers, evaluation, grid

    here, there = trained(elsewhere), trained(CPU)
    assert here[1:3] == there[1:3] and here[0].keys() == there[0].keys()
    for name, weight in here[0].items():
        same(weight, there[0][name])
    assert_close(here[3].cpu(), there[3], rtol=0, atol=0)
    files = list((tmp_path / "cpu" / "checkpoint").glob("*.safetensors"))
    assert files and all(file.read_bytes() == (tmp_path / elsewhere.type / "checkpoint" / file.name).read_bytes() for file in files)


def test_latents_are_cached(elsewhere: torch.device, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        PICTURE.rotate(90 * number).save(tmp_path / "photos" / f"{number}.png")
    config = DataConfig(train=str(tmp_path / "photos"), size=tasks.SIZE)
    items = []
    for device in (elsewhere, CPU):
        torch.manual_seed(0)
        first_stage = tasks.FIRST_STAGE.build().eval().requires_grad_(False).to(device)
        world = World(0, 1, device)
        cache = latent_cache(tmp_path / device.type, open_dataset(config, "train", 0), first_stage, config, world, keeps_pixels=True)
        assert cache is not None
        items.append([cache.item(i, 0)[1:] for i in range(3)])
    assert_close(items[0], items[1], rtol=0, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_sampler_takes_the_cpus_steps_on_every_process(elsewhere: torch.device, sampler: Sampler) -> None:
    def taken(process: NoiseProcess, device: torch.device) -> Tensor:
        streams, grid = Streams.of("test", samples=range(3)), Trailing().times(process, 8, 0.9)
        x = start_std(process, grid[0]) * streams.normal("start", (2, 4)).to(device)
        return sampler.sample(Gaussian(process), x, grid, process, step_noise(streams, x))

    for kind in NoiseProcess.kinds().values():
        same(taken(kind(), elsewhere), taken(kind(), CPU), NEARLY if sampler.adaptive else 0)


@pytest.mark.parametrize("sampler", KINDS)
def test_a_model_draws_the_cpus_pictures(elsewhere: torch.device, sampler: str, tiny: Callable[..., Path]) -> None:
    """Conditioned on everything, with guidance."""
    here, there = (drawn(LatentDiffusion.from_pretrained(tiny(*ALL), device), sampler) for device in (elsewhere, CPU))
    assert not isinstance(here, There)
    assert_close(here, there, rtol=0, atol=NEARLY if Sampler.of_kind(sampler).adaptive else 0)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
HOLE = Image.fromarray(np.pad(np.full((15, 12), 255, dtype=np.uint8), ((10, 15), (8, 10))))
PIPELINES: dict[str, tuple[tuple[str, ...], str, Callable[[LatentDiffusion], list[Image.Image]]]] = {
    "text": (("text",), "kl", lambda m: m.text_to_image("a red heart", negative_prompt="a house", guidance_rescale=0.5, **DDIM_STEPS)),
    "codebook": (("class",), "vq", lambda m: m.sample(label="dog", guidance_interval=(0.1, 5.0), **DDIM_STEPS)),
    "inpainting, trained": (("mask",), "kl", lambda m: inpaint(m, PICTURE, HOLE, m.sampling(**DDIM_STEPS))),
    "inpainting, untrained": (("class",), "kl", lambda m: inpaint(m, PICTURE, HOLE, m.sampling(**DDIM_STEPS))),
    "image to image": (("text",), "kl", lambda m: image_to_image(m, PICTURE, 0.6, m.sampling(**DDIM_STEPS), "a heart", "a house")),
    "enlarging in tiles": (("small",), "kl", lambda m: upscale(m, PICTURE.crop((0, 0, 19, 13)), m.sampling(**DDIM_STEPS))),
    "clipped": ((), "identity", lambda m: m.sample(threshold="clip", **DDIM_STEPS)),
    "thresholded": ((), "identity", lambda m: m.sample(threshold=0.9, **DDIM_STEPS)),
}


@pytest.mark.parametrize("conditioners, first_stage, call", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_draws_the_cpus_pictures(
    elsewhere: torch.device,
    conditioners: tuple[str, ...],
    first_stage: str,
    call: Callable[[LatentDiffusion], list[Image.Image]],
    tiny: Callable[..., Path],
) -> None:
    folder = tiny(*conditioners, first_stage=first_stage)
    here, there = (call(LatentDiffusion.from_pretrained(folder, device)) for device in (elsewhere, CPU))
    assert [image.tobytes() for image in here] == [image.tobytes() for image in there] and len(here) == 2


def test_guides_lead_as_on_the_cpu(elsewhere: torch.device, tiny: Callable[..., Path], tiny_classifier: Callable[..., Path]) -> None:
    """A classifier, and a weaker model."""

    def guided(device: torch.device) -> tuple[Tensor, ...]:
        model = LatentDiffusion.from_pretrained(tiny(first_stage="identity"), device)
        how, cond = model.sampling(**DDIM_STEPS), model.inputs({})
        guides = (model.guide(tiny_classifier(), ("dog", "owl"), 4.0), model.away_from(model, cond, 2.0))
        return tuple(model.generate(cond, replace(how, guide=guide)) for guide in guides)

    assert_close(guided(elsewhere), guided(CPU), rtol=0, atol=0)


def test_tiles_are_decoded_as_on_the_cpu(elsewhere: torch.device, tiny: Callable[..., Path]) -> None:
    latent = Streams.of(0, samples=range(1)).normal("latent", (2, 24, 20))
    models = {device: LatentDiffusion.from_pretrained(tiny(), device) for device in (elsewhere, CPU)}
    with torch.no_grad():
        here, there = (model.decode(latent.to(device), tile=16) for device, model in models.items())
        assert_close(here, there, rtol=0, atol=0)
        for device, model in models.items():
            images = torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16).to(device)
            assert model.first_stage.encode(images).device.type == device.type


@pytest.mark.parametrize("process", [kind() for kind in NoiseProcess.kinds().values()], ids=lambda process: process.kind)
def test_likelihoods_are_the_cpus(elsewhere: torch.device, process: NoiseProcess) -> None:
    def bits(device: torch.device) -> tuple[Tensor, ...]:
        streams, denoise = Streams.of("bits", samples=range(2)), Gaussian(process)
        x0 = ((streams.normal("x", (2, 4)).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1).to(device)
        found = variational_bound(denoise, x0, bound_times(process, 6), process, step_noise(streams, x0))
        flow = flow_density(denoise, x0, process, torch.ones_like(x0), tolerance=1e-3)
        pixels = pixel_flow_density(denoise, x0, process, streams, tolerance=1e-3)
        return found.prior, found.steps, flow.bits, pixels.bits

    for here, there, tolerance in zip(bits(elsewhere), bits(CPU), (0, 0, NEARLY, NEARLY), strict=True):
        same(here, there, tolerance)
