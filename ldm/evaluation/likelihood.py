"""bits/dim: what a picture costs under a model. The mathematics is `ldm.diffusion.likelihood`'s and `ldm.metrics.latent_bound`'s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.likelihood import bound_times, draw_probe, flow_density, mean_and_error, pixel_flow_density, variational_bound
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import AT_ONCE, DrawnFrom
from ldm.evaluation.likelihood_task import LikelihoodConfig, LikelihoodTask, shown_on
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.stage import FirstStage
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.guidance.thresholded import thresholded
from ldm.metrics import bootstrap
from ldm.metrics.features import as_shown
from ldm.metrics.latent_bound import DecoderNoise, latent_bound
from ldm.metrics.report import Metric

NOISE_IMAGES = 256  # that the decoder's noise is measured on
Row = tuple[str, str, str]  # name, title, about
PIXEL_ROWS: tuple[Row, ...] = (
    ("bits_per_dim", "Bits/dim, flow", "of pixels, by the probability flow, uniformly dequantised (Song et al. 2021)"),
    ("bits_per_dim_bound", "Bits/dim, bound", "of pixels, the chain's variational bound (Ho et al. 2020, eq. 5): the next three together"),
    ("bits_per_dim_prior", "  prior, L_T", "what is left of the picture at t = 1"),
    ("bits_per_dim_steps", "  steps, sum of L_t-1", "the steps between"),
    ("bits_per_dim_data", "  data, L_0", "the last step, to a level of each pixel value"),
)
LATENT_ROWS: tuple[Row, ...] = (
    ("bits_per_dim", "Bits/dim, bound of both stages", "of pixels: the next two, less the third"),
    ("bits_per_dim_reconstruction", "  picture given its latent", "-log2 P(x | z) under the decoder's noise"),
    ("bits_per_dim_latent", "  latent, by the flow", "-log2 of stage two's density of the raw latent"),
    ("bits_per_dim_entropy", "  latent, what it chose freely", "entropy of the encoder's q(z | x); subtracted"),
)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """What was found: rows of the table, and how it was computed, for the JSON."""

    metrics: list[Metric]
    about: dict[str, Any]


def bits_per_dim(conditions: EvaluationConditions, training: DrawnFrom, config: LikelihoodConfig, seed: int, is_held_out: bool) -> Bits:
    """Of the first pictures of `conditions`, each under its own; no guidance.

    Args:
        conditions: of the evaluated pictures.
        training: the training pictures; a decoder's noise is measured on the last of them all, however few are compared with.
        config: see LikelihoodConfig.
        seed: of all noise. Picture i depends on (seed, i) only, but for the flow's steps, which a batch takes together.
        is_held_out: whether the evaluated pictures are not among the training pictures.

    Raises:
        UserError: a chain that the process does not have; no training pictures besides the evaluated ones; a VQ first stage; a model of
            16-bit pictures.
    """
    model, count = conditions.model, min(config.count, conditions.source.count)
    if model.spec.depth > 8:
        raise UserError("bits/dim is of pictures on 256 levels, but this model was trained with data.depth=16: leave out --bits-per-dim")
    about: dict[str, Any] = {
        "pictures": count,
        "unit": "bits a pixel value, of 256 levels",
        "conditioned_on": list(conditions.given) or "nothing: unconditional",
        "guidance": "none, whatever the pictures were made with",
    }
    task = LikelihoodTask(conditions=conditions, count=count, config=config, seed=seed, about=about)
    if isinstance(model.spec.first_stage, IdentityConfig):
        rows, parts = PIXEL_ROWS, _of_pixels(task)
    else:
        if config.steps is not None or config.variance is not None:
            raise UserError(
                "--bound-steps and --bound-variance are for models on pixels; on latents, the flow and the first stage bound it"
            )
        if isinstance(model.spec.first_stage, VQAutoencoderConfig):
            raise UserError(
                "--bits-per-dim is for models on pixels or on a KL autoencoder's latents: a VQ first stage draws no latent, so stage two's "
                "density does not bound a picture's probability"
            )
        stored = len(training.data)
        noise = _decoder_noise(model.first_stage, training, stored if is_held_out else stored - count, task)
        rows, parts = LATENT_ROWS, _of_latents(task, noise)
    about["standard_error"] = {name: mean_and_error(parts[name])[1] for name, _, _ in rows}
    metrics = [
        Metric(
            name=name,
            title=title,
            value=mean_and_error(parts[name])[0],
            interval=bootstrap.of_mean(parts[name]),
            pictures=count,
            better="lower" if name in ("bits_per_dim", "bits_per_dim_bound") else "",
            about=text,
        )
        for name, title, text in rows
    ]
    return Bits(metrics=metrics, about=about)


def _of_pixels(task: LikelihoodTask) -> dict[str, Tensor]:
    """(count,) for each name in PIXEL_ROWS."""
    process, config = task.process, task.config
    times, has_own = bound_times(process, config.steps), task.conditions.model.spec.learned_variance
    if has_own and config.variance is not None:
        raise UserError("--bound-variance is for models that do not learn their variance; this one has its own")
    variance = "learned" if has_own else config.variance or "small"
    steps = len(times) - 1
    task.about["bound"] = {"steps": steps, "variance": variance, "x0": "clipped to [-1, 1]"}
    terms = []
    with tqdm(total=-(-task.count // AT_ONCE) * steps, desc="bits/dim, bound", unit="step", dynamic_ncols=True) as bar:
        for x0, denoise, streams in task.batches():
            clipped = shown_on(bar, thresholded(denoise, process), counts_steps=True)
            terms.append(variational_bound(clipped, x0, times, process, _Noise(streams, x0), fixed_logits=float(variance == "large")))

    found = []
    with tqdm(total=task.count, desc="bits/dim, flow", unit="picture", dynamic_ncols=True) as bar:
        for x0, denoise, streams in task.batches():
            watched = shown_on(bar, denoise, counts_steps=False)
            found.append(pixel_flow_density(watched, x0, process, streams, config.probe, task.first, config.tolerance))
            bar.update(len(x0))
    task.say_flow(found)
    parts = {
        "bits_per_dim": [one.bits for one in found],
        "bits_per_dim_bound": [one.total for one in terms],
        "bits_per_dim_prior": [one.prior for one in terms],
        "bits_per_dim_steps": [one.steps[:, :-1].sum(1) for one in terms],
        "bits_per_dim_data": [one.steps[:, -1] for one in terms],
    }
    return _joined(parts)


@torch.no_grad()
def _of_latents(task: LikelihoodTask, noise: DecoderNoise) -> dict[str, Tensor]:
    """(count,) for each name in LATENT_ROWS."""
    first_stage, config = task.conditions.model.first_stage, task.config
    found, bounds = [], []
    with tqdm(total=task.count, desc="bits/dim, flow", unit="picture", dynamic_ncols=True) as bar:
        for images, denoise, streams in task.batches():
            mean, std = first_stage.moments(images)
            latent = first_stage.normalise(mean + std * streams.normal("posterior", mean.shape[1:]).to(mean))
            probe = draw_probe(config.probe, streams, latent)
            watched = shown_on(bar, denoise, counts_steps=False)
            found.append(flow_density(watched, latent, task.process, probe, task.first, config.tolerance))
            decoded = first_stage.decode(latent)
            bounds.append(latent_bound(images, decoded, noise, std, found[-1].bits, first_stage.normalization.scale))
            bar.update(len(images))
    task.say_flow(found)
    parts = {
        "bits_per_dim": [one.total for one in bounds],
        "bits_per_dim_reconstruction": [one.reconstruction for one in bounds],
        "bits_per_dim_latent": [one.latent for one in bounds],
        "bits_per_dim_entropy": [one.entropy for one in bounds],
    }
    return _joined(parts)


@torch.no_grad()
def _decoder_noise(first_stage: FirstStage, training: DrawnFrom, besides: int, task: LikelihoodTask) -> DecoderNoise:
    """By the errors of the last training pictures, of which `besides` are not evaluated; their latents are drawn.

    No checkpoint says it: published first stages do not learn it, and none of ours stores its loss.

    Raises:
        UserError: all training pictures are evaluated.
    """
    count = min(NOISE_IMAGES, besides)
    if count < 1:
        raise UserError(
            "the decoder's noise is measured on training pictures that are not evaluated, and none is left: lower --bits-per-dim"
        )
    device = task.conditions.model.device
    absolute, square = [], []
    with tqdm(total=count, desc="decoder's noise", unit="picture", dynamic_ncols=True) as bar:
        stored = len(training.data)
        for numbers in replace(training, count=stored).groups(range(stored - count, stored)):
            images = as_shown(training.images(numbers)).to(device)
            drawn = Streams.of(task.seed, "decoder noise", samples=numbers).normal("posterior", first_stage.latent_shape(images))
            error = (first_stage.decode(first_stage.encode(images, drawn.to(device))) - images).cpu().double().flatten(1)
            absolute.append(error.abs().mean(1))
            square.append(error.square().mean(1))
            bar.update(len(images))
    noise = DecoderNoise.fitted(torch.cat(absolute).mean().item(), torch.cat(square).mean().item())
    task.about["decoder_noise"] = {
        "kind": noise.kind,
        "scale": noise.scale,
        "measured_on": f"{count} training pictures that are not evaluated, their latents drawn",
        "rule": "one for all pixel values, likeliest of laplace (scale: mean absolute error) and gaussian (scale: standard deviation)",
    }
    return noise


@dataclass(frozen=True)
class _Noise:
    """N(0, I) like x0 for each step of the bound's chain."""

    streams: Streams
    x0: Tensor

    def __call__(self, step: int) -> Tensor:
        return self.streams.normal(f"bound-{step}", self.x0.shape[1:]).to(self.x0)


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(batches).cpu().double() for name, batches in parts.items()}
