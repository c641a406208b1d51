"""A trained model as a user holds it: pictures from text, class, map, or another picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.model import LatentDiffusionSpec, load_latent_diffusion
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.conditioner import Conditioner, Conditioners
from ldm.conditioning.inpaint_mask import InpaintMask
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.semantic_map import SemanticMap
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.grid import Grid, Trailing
from ldm.first_stage.stage import FirstStage
from ldm.guidance.classifier_free import classifier_free
from ldm.pipelines.canvas import as_pictures
from ldm.samplers.sampler import Sampler, step_noise

OnStep = Callable[[int, int], None]
AT_ONCE = 16  # pictures a batch; the result does not depend on it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one call samples.

    Attributes:
        sampler: the solver.
        steps: solver steps from pure noise; a start from a noised picture takes its share of them.
        guidance: classifier-free scale; 1 = plain conditional.
        num_images: pictures.
        seed: picture i depends on (seed, i) only.
        grid: where the solver stops on the way.
        on_step: told (steps done, steps in all).
    """

    sampler: Sampler
    steps: int
    guidance: float
    num_images: int = 1
    seed: int = 0
    grid: Grid = Trailing()
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.num_images < 1:
            raise UserError(f"the number of images must be at least 1, got {self.num_images}")
        if not self.guidance >= 0:
            raise UserError(f"guidance must be 0 or more (1 = no guidance, 4 = usual), got {self.guidance}")


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """Both stages, frozen, on one device."""

    spec: LatentDiffusionSpec
    first_stage: FirstStage
    network: nn.Module
    conditioners: Conditioners
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @staticmethod
    def from_pretrained(
        folder: Path | str, device: str | torch.device | None = None, precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ) -> LatentDiffusion:
        """A model from a checkpoint folder, on the GPU if there is one.

        Raises:
            UserError: not a checkpoint of both stages, or altered; see `ldm.checkpoints.model`.
        """
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        parts = load_latent_diffusion(folder, chosen)
        return LatentDiffusion(
            spec=parts.spec,
            first_stage=parts.first_stage,
            network=parts.network,
            conditioners=parts.conditioners,
            device=chosen,
            precision=precision,
        )

    def sampling(
        self,
        *,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Sampling:
        """How to sample; what is None is as the model's checkpoint says.

        Raises:
            UserError: unknown sampler; a number out of range.
        """
        default = self.spec.sampling
        solver = Sampler.of_kind(sampler)() if isinstance(sampler, str) else sampler or default.sampler
        assert isinstance(solver, Sampler)
        return Sampling(
            sampler=solver,
            steps=default.steps if steps is None else steps,
            guidance=default.guidance if guidance is None else guidance,
            num_images=num_images,
            seed=seed,
            on_step=on_step,
        )

    def text_to_image(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of a text.

        Raises:
            UserError: empty prompt; a model without text conditioning; see `sampling`.
        """
        how = self.sampling(sampler=sampler, steps=steps, guidance=guidance, num_images=num_images, seed=seed, on_step=on_step)
        return as_pictures(self.generate(self.text_inputs(prompt), how, self.untold(negative_prompt)))

    def sample(
        self,
        *,
        label: str | int | None = None,
        layout: Tensor | None = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of a class, of a map (`layout`, (H, W) class indices), of both, or of nothing in particular.

        Raises:
            UserError: unknown label; a model that was not trained with labels or maps; see `sampling`.
        """
        how = self.sampling(sampler=sampler, steps=steps, guidance=guidance, num_images=num_images, seed=seed, on_step=on_step)
        told = ConditionInputs(
            count=1,
            labels=None if label is None else torch.tensor([self.part(ClassLabel, "class labels").index_of(label)]),
            maps=None if layout is None else self.part(SemanticMap, "semantic maps") and layout[None],
            grey_latent=self.grey_latent(),
        )
        return as_pictures(self.generate(told, how))

    def text_inputs(self, prompt: str) -> ConditionInputs:
        """What a prompt tells.

        Raises:
            UserError: empty prompt, or a model without text conditioning.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: say what to draw, or use scripts/sample.py for pictures of nothing in particular")
        self.check_text()
        return ConditionInputs(count=1, captions=(prompt,), grey_latent=self.grey_latent())

    def untold(self, negative_prompt: str = "") -> ConditionInputs:
        """What guidance leads away from: nothing, or a negative prompt."""
        if not negative_prompt:
            return ConditionInputs(count=1, grey_latent=self.grey_latent())
        self.check_text()
        return ConditionInputs(count=1, captions=(negative_prompt,), grey_latent=self.grey_latent())

    def check_text(self) -> None:
        """Refuses a model that reads no text."""
        if not any(part.reads_text for part in self.conditioners):
            raise UserError(f"this model was not trained with text; it takes {', '.join(self.conditioners.names) or 'no condition'}")

    def part(self, wanted: type[Conditioner], what: str) -> Any:
        """The model's conditioner of a class.

        Raises:
            UserError: it has none.
        """
        for conditioner in self.conditioners:
            if isinstance(conditioner, wanted):
                return conditioner
        raise UserError(f"this model was not trained with {what}; it takes {', '.join(self.conditioners.names) or 'no condition'}")

    @property
    def paints_masks(self) -> bool:
        """Whether it was trained to inpaint; else inpainting is training-free."""
        return any(isinstance(part, InpaintMask) for part in self.conditioners)

    @property
    def latent_size(self) -> tuple[int, int]:
        side = self.spec.size // self.first_stage.ratio
        return side, side

    @torch.no_grad()
    def grey_latent(self) -> Tensor | None:
        """The normalised latent (C, h, w) of a grey picture, which is what `inpaint_mask` is told as "nothing"."""
        return grey_latent(self.first_stage, self.spec.size, self.device) if self.paints_masks else None

    @torch.no_grad()
    def tell(self, inputs: ConditionInputs) -> Condition:
        """The condition of one picture, encoded once a call."""
        with self._autocast():
            return self.conditioners(inputs, self.latent_size)

    @torch.no_grad()
    def generate(
        self,
        told: ConditionInputs,
        how: Sampling,
        untold: ConditionInputs | None = None,
        *,
        start: float = 1.0,
        start_latent: Tensor | None = None,
        known: Callable[[Denoise, Streams], Denoise] | None = None,
    ) -> Tensor:
        """Pictures (num_images, C, size, size) in [-1, 1], not clipped, on the CPU.

        Args:
            told: of one picture; all are told the same.
            how: see Sampling.
            untold: of one picture, what guidance leads away from; None = nothing told.
            start: noise level to begin at; below 1 with `start_latent` (1, C, h, w).
            known: wraps the guided denoiser, e.g. training-free inpainting; gets the pictures' random streams.
        """
        wanted, unwanted = self.tell(told), self.tell(untold or self.untold())
        return self.render([wanted] * how.num_images, [unwanted] * how.num_images, how, start=start, start_latent=start_latent, known=known)

    @torch.no_grad()
    def render(
        self,
        told: Sequence[Condition],
        untold: Sequence[Condition],
        how: Sampling,
        *,
        start: float = 1.0,
        start_latent: Tensor | None = None,
        known: Callable[[Denoise, Streams], Denoise] | None = None,
    ) -> Tensor:
        """`generate` for encoded conditions, one a picture; picture i draws from stream (how.seed, i)."""
        process = self.spec.process
        steps = max(1, round(how.steps * start))
        times = how.grid.times(process, steps, start)
        shape = (self.first_stage.latent_channels, *self.latent_size)
        pictures = []
        starts = range(0, len(told), AT_ONCE)
        for number, first in enumerate(starts):
            rows = range(first, min(first + AT_ONCE, len(told)))
            streams = Streams.of(how.seed, "image", samples=rows)
            noise = streams.normal("start", shape).to(self.device)
            x = process.blend(Estimate(x0=torch.zeros_like(noise) if start_latent is None else start_latent.expand_as(noise), eps=noise), times[0])
            if start_latent is None:
                x = noise
            denoise = classifier_free(self.denoiser, _joined(told, rows), _joined(untold, rows), how.guidance)
            if known is not None:
                denoise = known(denoise, streams)
            on_step = _shifted(how.on_step, number, len(starts))
            latent = how.sampler.sample(denoise, x, times, process, step_noise(streams, x), on_step)
            with self._autocast():
                pictures.append(self.first_stage.decode(latent).float().cpu())
        return torch.cat(pictures)

    @property
    def denoiser(self) -> Denoiser:
        def network(x: Tensor, clock: Tensor, condition: Condition) -> Tensor:
            with self._autocast():
                return self.network(x, clock, condition)

        return Denoiser(network=network, process=self.spec.process, prediction=self.spec.prediction)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])


def grey_latent(first_stage: FirstStage, size: int, device: torch.device) -> Tensor:
    """(C, h, w): the normalised latent of a grey picture of size x size."""
    return first_stage.encode(torch.zeros(1, first_stage.image_channels, size, size, device=device))[0]


def _joined(conditions: Sequence[Condition], rows: range) -> Condition:
    chosen = [conditions[i] for i in rows]
    if all(c is chosen[0] for c in chosen):
        return chosen[0].repeated(len(chosen))
    return Condition.stack(chosen)


def _shifted(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """Progress over several batches."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, count * steps)
