"""How well a first stage gives pictures back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoints.model import load_first_stage
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.settings import in_pixels
from ldm.data.sample_transform import Split
from ldm.evaluation.dataset import AT_ONCE, DrawnFrom, Preprocessing, Result, held_out_images, training_images
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.stage import FirstStage
from ldm.losses.perceptual import SMALLEST_SIDE as LPIPS_SIDE
from ldm.losses.perceptual import Perceptual
from ldm.metrics import bootstrap, reconstruction
from ldm.metrics.features import SEEN, InceptionFeatures
from ldm.metrics.frechet import FrechetReference, paired_replicates
from ldm.metrics.neighbours import midpoints
from ldm.metrics.report import Metric
from ldm.pretrained import vgg_lpips

LATENT = "the posterior's mean"  # nothing is drawn


def evaluate_vae(
    model: str, place: str, split: Split, background: tuple[int, int, int] | None, count: int | None, world: World
) -> Result | None:
    """L1, PSNR, SSIM, LPIPS, and of grey and RGB pictures rFID and iFID, of the first stage in a checkpoint of either stage.

    Args:
        model: checkpoint folder.
        place: of the pictures.
        split: of the place.
        background: that transparent pictures are laid on; None = as the model was trained.
        count: pictures, at most; None = all.
        world: the processes, each of which gives some of the pictures back; the first has the result, the others None.

    Raises:
        UserError: no such model or data; a model without a first stage; fewer than 2 pictures.
    """
    first_stage, spec, _ = load_first_stage(model, world.device)
    if isinstance(spec.first_stage, IdentityConfig):
        raise UserError(f"checkpoint {model} works on pixels: it has no first stage to evaluate; evaluate it with: evaluate.py ldm")
    how = Preprocessing.of(spec, background)
    if split == "val":
        drawn = held_out_images(place, how, shared=False, count=count)
    else:
        drawn = training_images(place, how, count)
    metrics = _image_metrics(first_stage, drawn, how, world)
    if how.channels in SEEN:
        metrics += _frechet(first_stage, drawn, world)
    if not world.is_first:
        return None
    about = {
        "model": {
            "checkpoint": model,
            "name": spec.name,
            "latent": f"{spec.normalization.channels} channels, downsampling factor {spec.normalization.downsampling_factor}",
        },
        "data": {"reconstructed": drawn.plain()},
        "reconstruction": f"of {LATENT}",
        "preprocessing": how.plain(),
    }
    return Result(about=about, metrics=metrics)


@torch.no_grad()
def reconstructions(first_stage: FirstStage, drawn: DrawnFrom, device: torch.device, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and what the first stage makes of them, (B, C, H, W) each, on the CPU; not clipped; each process has its own."""
    for images in drawn.batches(world):
        yield images, first_stage.decode(first_stage.encode(images.to(device))).float().cpu()


@torch.no_grad()
def _image_metrics(first_stage: FirstStage, drawn: DrawnFrom, how: Preprocessing, world: World) -> list[Metric]:
    lpips = Perceptual(vgg_lpips()).to(world.device) if min(how.smallest) >= LPIPS_SIDE else None

    def measured() -> Iterator[dict[str, Tensor]]:
        for images, given in reconstructions(first_stage, drawn, world.device, world):
            one = {"l1": reconstruction.l1(images, given), "psnr": reconstruction.psnr(images, given)}
            if min(how.smallest) >= reconstruction.SMALLEST_SIDE:
                one["ssim"] = reconstruction.ssim(images, given)
            if lpips is not None:
                one["lpips"] = lpips(images.to(world.device), given.clamp(-1, 1).to(world.device)).cpu()
            yield one

    found: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": [], "lpips": []}
    with tqdm(total=drawn.count, desc="reconstructing", unit="picture", dynamic_ncols=True, disable=not world.is_first) as bar:
        for one in world.in_turn(measured()):
            for name, values in one.items():
                found[name].append(values)
            bar.update(len(one["l1"]))

    def metric(name: str, title: str, better: Literal["lower", "higher"], about: str) -> Metric:
        values = torch.cat(found[name]).double() if found[name] else None
        return Metric(
            name=name,
            title=title,
            value=None if values is None else values.mean().item(),
            interval=None if values is None else bootstrap.of_mean(values),
            pictures=drawn.count,
            better=better,
            about=about if values is not None else f"pictures of {in_pixels(how.smallest)} are too small for it",
        )

    return [
        metric("l1", "L1, of values in [-1, 1]", "lower", "mean absolute error of reconstructions clipped to [-1, 1]; mean over pictures"),
        metric("psnr", "PSNR, dB", "higher", "of reconstructions clipped to [-1, 1]; mean over pictures"),
        metric("ssim", "SSIM", "higher", "Wang et al. 2004, Gaussian window of 11 pixels and std 1.5; mean over pictures"),
        metric("lpips", "LPIPS (VGG)", "lower", "Zhang et al. 2018, v0.1; mean over pictures"),
    ]


def _frechet(first_stage: FirstStage, drawn: DrawnFrom, world: World) -> list[Metric]:
    """rFID and iFID, of grey and RGB pictures, which are all that Inception sees; from the first process, none from the others."""
    inception = InceptionFeatures(world.device)
    reference = drawn.features(inception, "pictures", world)
    decoded = (given for _, given in reconstructions(first_stage, drawn, world.device, world))
    given = drawn.in_order(inception.of(decoded, drawn.count, "reconstructions", world))
    between = drawn.in_order(inception.of(_decoded_midpoints(first_stage, drawn, world), drawn.count, "pictures between two", world))
    if not world.is_first:
        return []

    def metric(name: str, title: str, features: Tensor, about: str) -> Metric:
        value = FrechetReference(reference).distance(features)
        few = bootstrap.has_interval(drawn.count)
        replicates = paired_replicates(reference, features, bootstrap.draws(drawn.count), progress=True) if few else None
        return Metric(
            name=name,
            title=title,
            value=value,
            interval=None if replicates is None else bootstrap.around(value, replicates),
            pictures=drawn.count,
            better="lower",
            about=f"{about}; interval: pictures redrawn together with what was made of them",
        )

    return [
        metric("rfid", "rFID", given, "FID of the reconstructions to the same pictures"),
        metric(
            "ifid",
            "iFID",
            between,
            "Xu et al. 2026: FID to the same pictures of latents half-way to their nearest neighbour among them (L2, normalised latents)",
        ),
    ]


@torch.no_grad()
def _decoded_midpoints(first_stage: FirstStage, drawn: DrawnFrom, world: World) -> Iterator[Tensor]:
    """Each process decodes its own, once all have all latents. A picture that is alone in its size stays as it is."""
    between = []
    for numbers in drawn.by_size(range(drawn.count)).values():
        parts = [numbers[first : first + AT_ONCE] for first in range(0, len(numbers), AT_ONCE)][world.rank :: world.size]
        own = (first_stage.encode(drawn.images(part).to(world.device)).float().cpu() for part in parts)
        latents = torch.cat(list(world.in_turn(own)))
        between += (midpoints(latents) if len(latents) > 1 else latents).split(AT_ONCE)
    for some in between[world.rank :: world.size]:
        yield first_stage.decode(some.to(world.device)).float().cpu()
