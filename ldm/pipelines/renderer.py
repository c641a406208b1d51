"""Conditions to pictures, by both stages. No words, no files: those are `latent_diffusion`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.conditioner import Conditioners
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.precision import autocast
from ldm.core.random import Streams
from ldm.core.settings import Precision, height_width, in_pixels
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.first_stage.stage import FirstStage
from ldm.guidance.autoguidance import autoguidance
from ldm.guidance.classifier_free import classifier_free
from ldm.guidance.thresholded import thresholded
from ldm.pipelines.sampling import Guide, Sampling, is_number, shifted, start_std
from ldm.samplers.sampler import step_noise

PIXELS_AT_ONCE, MOST_AT_ONCE = 1 << 20, 64  # of pictures, and pictures, in a batch; the result does not depend on it


UNCONDITIONAL = ConditionInputs(count=1)

Wrap = Callable[[Denoise, Streams], Denoise]  # of a guided denoiser, and the pictures' random streams


@dataclass(frozen=True, kw_only=True, repr=False)
class Renderer:
    """Both stages, frozen, on one device."""

    spec: LatentDiffusionSpec
    first_stage: FirstStage
    network: nn.Module
    conditioners: Conditioners
    device: torch.device
    precision: Precision = "fp32"

    def __repr__(self) -> str:
        """One line: the networks' own would be a thousand."""
        spec, parameters = self.spec, sum(p.numel() for p in self.network.parameters())
        given = ", ".join(f"{name}: {part.kind}" for name, part in spec.conditioning.items()) or "nothing"
        return (
            f"<{type(self).__name__} {spec.name!r}: {in_pixels(spec.size)}, {spec.denoiser.kind} of {parameters / 1e6:.1f}M parameters, "
            f"first stage {spec.first_stage.kind}, conditioned on {given}; {self.precision} on {self.device}>"
        )

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.spec.latent_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self.first_stage.latent_channels, *self.latent_size

    def at_size(self, height: int | None = None, width: int | None = None) -> Self:
        """The same model, which draws images of another size; None = its own height, or width.

        Images much larger than those of training, or of a shape that was not among them, repeat their contents.

        Raises:
            UserError: a side that is no multiple of what both stages divide it by.
        """
        own = height_width(self.spec.size)
        size = own[0] if height is None else height, own[1] if width is None else width
        if size == own and (self.spec.buckets is None or height is width is None):
            return self
        for name, side in zip(("height", "width"), size, strict=True):
            if not is_number(side, Integral) or side < 1 or side % self.spec.size_multiple:
                raise UserError(f"{name} must be a multiple of {self.spec.size_multiple} for this model, got {side}")
        return replace(self, spec=replace(self.spec, size=size, buckets=None))

    @property
    def at_once(self) -> int:
        """Pictures in a batch: as many as keep a processor busy and do not fill its memory."""
        return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // math.prod(height_width(self.spec.size))))

    @torch.no_grad()
    def encode_condition(self, inputs: ConditionInputs, latent_size: tuple[int, int] | None = None) -> Condition:
        """The condition of one image, encoded once a call; for a latent of the model's own size unless another is named."""
        with self._autocast():
            condition: Condition = self.conditioners(inputs, latent_size or self.latent_size)
            return condition

    @torch.no_grad()
    def generate(
        self,
        cond: ConditionInputs,
        how: Sampling,
        uncond: ConditionInputs = UNCONDITIONAL,
        *,
        offset: int = 0,
        start: float = 1.0,
        start_latent: Tensor | None = None,
        wrap: Wrap | None = None,
    ) -> Tensor:
        """Pictures (num_images, C, H, W) of the model's size in [-1, 1], not clipped, on the CPU.

        Args:
            cond: of one image; all are given the same.
            how: see Sampling.
            uncond: of one image, what guidance leads away from.
            offset: number of the first picture, where the call is a part of a larger one.
            start: noise level in (0, 1] to begin at; this share of the steps is taken, at least one.
            start_latent: (1, C, h, w), what is noised to begin with; None = pure noise.
            wrap: what the guided denoiser is wrapped in, e.g. training-free inpainting.

        Raises:
            UserError: a picture that is not finite.
        """
        wanted = self.encode_condition(cond)
        unwanted = wanted if how.guidance == 1 else self.encode_condition(uncond)
        if _same(wanted, unwanted):  # nothing to lead away from: half the work
            how = replace(how, guidance=1.0)
        count = how.num_images
        conds, unconds, numbers = [wanted] * count, [unwanted] * count, range(offset, offset + count)
        images = self.render(conds, unconds, how, numbers=numbers, start=start, start_latent=start_latent, wrap=wrap)
        if not images.isfinite().all():
            raise UserError(f"the pictures came out as NaN or infinity in {self.precision}: use bf16 or fp32, or train the model longer")
        return images

    @torch.no_grad()
    def render(
        self,
        cond: Sequence[Condition],
        uncond: Sequence[Condition],
        how: Sampling,
        *,
        numbers: Sequence[int] | None = None,
        start: float = 1.0,
        start_latent: Tensor | None = None,
        start_noise: Tensor | None = None,
        wrap: Wrap | None = None,
    ) -> Tensor:
        """`generate` for encoded conditions, one a picture; picture i draws from stream (how.seed, numbers[i]).

        Args:
            numbers: of the pictures, where the call is a part of a larger one; None = from 0.
            start_noise: (pictures, C, h, w) of N(0, 1), the noise to start from; None = that of the seed, see `start_noise`.
        """
        process = self.spec.process
        start = max(start, process.t_first)
        times = how.grid.times(process, max(1, round(how.steps * start)), start)
        images = []
        starts = range(0, len(cond), self.at_once)
        for number, first in enumerate(starts):
            rows = range(first, min(first + self.at_once, len(cond)))
            own = rows if numbers is None else numbers[rows.start : rows.stop]
            streams = Streams.of(how.seed, "image", samples=own)
            drawn = streams.normal("start", self.latent_shape) if start_noise is None else start_noise[rows.start : rows.stop]
            noise = drawn.to(self.device)
            if start_latent is None:
                x = start_std(process, times[0]) * noise
            else:
                x = process.blend(Estimate(x0=start_latent.expand_as(noise), eps=noise), times[0])
            conditions = _joined(cond, rows), _joined(uncond, rows)
            denoise = self.guided(*conditions, how, own)
            if wrap is not None:
                denoise = wrap(denoise, streams)
            on_step = shifted(how.on_step, number, len(starts))
            latent = how.sampler.sample(denoise, x, times, process, step_noise(streams, x), on_step)
            images.append(self.decode(latent))
        return torch.cat(images)

    def guided(self, cond: Condition, uncond: Condition, how: Sampling, numbers: Sequence[int]) -> Denoise:
        """The denoiser of pictures of these numbers, with all guidance that `how` asks for."""
        denoise = classifier_free(self.denoiser, cond, uncond, how.guidance, how.guidance_interval, how.guidance_rescale)
        if how.guide is not None:
            denoise = how.guide(denoise, self.spec.process, numbers)
        if how.threshold is not None:
            denoise = thresholded(denoise, self.spec.process, percentile=None if how.threshold == "clip" else how.threshold)
        return denoise

    def start_noise(self, seed: int, number: int = 0) -> Tensor:
        """(1, C, h, w) of N(0, 1): what picture `number` of a seed starts from."""
        return Streams.of(seed, "image", samples=range(number, number + 1)).normal("start", self.latent_shape)

    def away_from(self, weaker: Renderer, cond: ConditionInputs, scale: float) -> Guide:
        """Autoguidance, for `Sampling.guide`: away from what a weaker model of the same task would draw under the same condition.

        Args:
            weaker: smaller, or trained for less long, e.g. a checkpoint that the run kept; of the same latents and process.
            cond: of one image, as for `generate`.
            scale: 1 = the weaker one is not evaluated; 2 is usual.

        Raises:
            UserError: a model of other latents or another process.
        """
        if (weaker.spec.normalization, weaker.spec.process) != (self.spec.normalization, self.spec.process):
            raise UserError("autoguidance needs two models of one first stage and one process; the weaker one has others")
        condition = weaker.encode_condition(cond)

        def guided(denoise: Denoise, process: NoiseProcess, rows: Sequence[int]) -> Denoise:
            return autoguidance(denoise, lambda x, t: weaker.denoiser(x, t, condition.repeated(len(x))), scale)

        return guided

    def decode(self, latent: Tensor, *, tile: int | None = None) -> Tensor:
        """(B, C, h, w) normalised latents to pictures (B, C, f h, f w) float32 in [-1, 1], not clipped, on the CPU.

        tile: see `FirstStage`.
        """
        with self._autocast():
            return self.first_stage.decode(latent, tile=tile).float().cpu()

    @property
    def denoiser(self) -> Denoiser:
        def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
            with self._autocast():
                out: Tensor = self.network(x, network_time, condition)
                return out

        return Denoiser(
            network=network,
            process=self.spec.process,
            prediction=self.spec.prediction,
            network_input=self.spec.network_input,
            learned_variance=self.spec.learned_variance,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.precision)


def _joined(conditions: Sequence[Condition], rows: range) -> Condition:
    chosen = [conditions[i] for i in rows]
    if all(c is chosen[0] for c in chosen):
        return chosen[0].repeated(len(chosen))
    return Condition.stack(chosen)


def _same(one: Condition, other: Condition) -> bool:
    """Whether two conditions, made by the same conditioners, are equal."""
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(Condition))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
