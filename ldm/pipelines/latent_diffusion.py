"""A trained model as a user holds it: pictures from text, class, map, or another picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.classifier import LoadedClassifier, load_classifier
from ldm.checkpoints.lora import load_with_lora
from ldm.checkpoints.model import load_latent_diffusion
from ldm.conditioning.boxes import Boxes
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.semantic_map import SemanticMap
from ldm.config.loader import build
from ldm.core.errors import UserError, unknown
from ldm.core.family import Family
from ldm.core.precision import Precision
from ldm.data.record import Box
from ldm.diffusion.grid import Grid
from ldm.first_stage.identity import IdentityConfig
from ldm.guidance.thresholded import Threshold
from ldm.pipelines.canvas import as_pictures
from ldm.pipelines.classifier_guide import ClassifierGuide
from ldm.pipelines.renderer import Renderer
from ldm.pipelines.sampling import OnStep, Sampling
from ldm.samplers.sampler import Sampler

P = TypeVar("P", bound=Family)


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion(Renderer):
    """Both stages, frozen, on one device."""

    @staticmethod
    def from_pretrained(
        folder: Path | str,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        *,
        lora: Path | str | None = None,
        lora_scale: float = 1.0,
    ) -> LatentDiffusion:
        """A model from a checkpoint folder, on the GPU if there is one.

        Args:
            folder: of the checkpoint.
            device: another one.
            precision: that the networks compute in; in half of it they take about half the memory.
            lora: folder of a LoRA that was trained on this checkpoint.
            lora_scale: how strongly it acts; 1 = as it was trained.

        Raises:
            UserError: not a checkpoint of both stages, or altered; see `ldm.checkpoints.model` and `lora`. Unknown precision.
        """
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if lora is None:
            parts = load_latent_diffusion(folder, chosen, precision)
        else:
            parts = load_with_lora(folder, lora, lora_scale, chosen, precision)
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
        grid: str | Grid | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        threshold: Threshold | Literal["none"] | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Sampling:
        """How to sample; what is None is as the model's checkpoint says.

        A sampler or grid may be named by its kind and settings: "pc predictor=euler_maruyama corrections=0".

        Raises:
            UserError: unknown sampler or grid; a number out of range; more steps than the process has; no number of steps, where the
                checkpoint's own sampler needs none and this one does.
        """
        default = self.spec.sampling
        solver = _part(sampler, Sampler, "sampler") or default.sampler  # type: ignore[type-abstract]
        if steps is None and default.sampler.adaptive and not solver.adaptive:
            raise UserError(
                f"sampler {solver.kind!r} needs a number of steps, e.g. 50: the model names none, since its own, "
                f"{default.sampler.kind!r}, sizes its strides itself"
            )
        spacing = _part(grid, Grid, "grid") or default.grid  # type: ignore[type-abstract]
        how = Sampling(
            sampler=solver,
            grid=spacing,
            steps=default.steps if steps is None else steps,
            guidance=default.guidance if guidance is None else guidance,
            guidance_interval=default.guidance_interval if guidance_interval is None else guidance_interval,
            guidance_rescale=default.guidance_rescale if guidance_rescale is None else guidance_rescale,
            threshold=None if threshold == "none" else default.threshold if threshold is None else threshold,
            num_images=num_images,
            seed=seed,
            on_step=on_step,
        )
        if how.threshold is not None and not isinstance(self.spec.first_stage, IdentityConfig):
            raise UserError("a threshold is for models on pixels, which lie in [-1, 1]; this one draws latents, which have no such range")
        how.grid.times(self.spec.process, how.steps)  # refuses what no start could take
        return how

    def text_to_image(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        sampler: str | Sampler | None = None,
        grid: str | Grid | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of a text.

        Raises:
            UserError: empty prompt; a model without text conditioning; see `sampling`.
        """
        how = self.sampling(
            sampler=sampler, grid=grid, steps=steps, guidance=guidance, guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale, num_images=num_images, seed=seed, on_step=on_step,
        )  # fmt: skip
        return as_pictures(self.generate(self.text_inputs(prompt), how, self.untold(negative_prompt)))

    def sample(
        self,
        *,
        label: str | int | None = None,
        layout: Tensor | None = None,
        boxes: Sequence[Box] | None = None,
        classifier: str | Path | LoadedClassifier | None = None,
        classifier_scale: float = 1.0,
        sampler: str | Sampler | None = None,
        grid: str | Grid | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        num_images: int = 1,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of a class, of a map (`layout`, (H, W) class indices), of boxes, of several of them, or of nothing in particular.

        With a classifier it is this that leads to the class, see `guide`; the model is told it too if it was trained with labels.

        Raises:
            UserError: unknown label; a model that was not trained with what it is told; see `guide` and `sampling`.
        """
        how = self.sampling(
            sampler=sampler, grid=grid, steps=steps, guidance=guidance, guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale, num_images=num_images, seed=seed, on_step=on_step,
        )  # fmt: skip
        if classifier is not None:
            how = replace(how, guide=self.guide(classifier, () if label is None else (label,), classifier_scale))
        return as_pictures(self.generate(self.class_inputs(label, layout, boxes, is_led=classifier is not None), how))

    def guide(self, classifier: str | Path | LoadedClassifier, labels: Sequence[str | int], scale: float = 1.0) -> ClassifierGuide:
        """What leads picture i to class labels[i], from the first again when they are used up.

        Args:
            classifier: a checkpoint's folder, or what was loaded from one.
            labels: by the classifier's own names, or numbers.
            scale: see ClassifierGuide.

        Raises:
            UserError: not a classifier; one that does not fit the model; no label, or one that it does not know; scale out of range.
        """
        opened = classifier if isinstance(classifier, LoadedClassifier) else load_classifier(classifier, self.device)
        found = ClassifierGuide(classifier=opened, labels=tuple(opened.index_of(label) for label in labels), scale=scale)
        found.check(self.spec)
        return found

    def text_inputs(self, prompt: str) -> ConditionInputs:
        """What a prompt tells.

        Raises:
            UserError: empty prompt, or a model without text conditioning.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: say what to draw, or use scripts/sample.py for pictures of nothing in particular")
        if not any(part.reads_text for part in self.conditioners):
            raise UserError(f"this model was not trained with text; it takes {', '.join(self.conditioners.names) or 'no condition'}")
        return replace(self.untold(), captions=(prompt,))

    def class_inputs(
        self, label: str | int | None = None, layout: Tensor | None = None, boxes: Sequence[Box] | None = None, *, is_led: bool = False
    ) -> ConditionInputs:
        """What a class, a map, (H, W) class indices, and boxes tell; without any: nothing.

        Where a classifier leads to the label (`is_led`), a model that was not trained with labels need not be told it.

        Raises:
            UserError: unknown label; no box, or more than the model takes; a model that was not trained with what it is told.
        """
        told = self.untold()
        if label is not None and (self.knows_labels or not is_led):
            told = replace(told, labels=torch.tensor([self.part(ClassLabel, "class labels").index_of(label)]))
        if layout is not None:
            self.part(SemanticMap, "semantic maps")
            told = replace(told, maps=layout[None])
        if boxes is not None:
            most = self.part(Boxes, "boxes").config.max_boxes
            if not 1 <= len(boxes) <= most:
                raise UserError(f"this model takes 1 to {most} boxes, got {len(boxes)}")
            told = replace(told, boxes=torch.tensor(boxes, dtype=torch.float32)[None])
        return told

    def untold(self, negative_prompt: str = "") -> ConditionInputs:
        """What guidance leads away from: nothing, or a negative prompt."""
        return self.text_inputs(negative_prompt) if negative_prompt else self.nothing

    @property
    def knows_labels(self) -> bool:
        """Whether it was trained with class labels."""
        return any(isinstance(part, ClassLabel) for part in self.conditioners)

    def part(self, wanted: type[Conditioner], what: str) -> Any:
        """The model's conditioner of a class.

        Raises:
            UserError: it has none.
        """
        for conditioner in self.conditioners:
            if isinstance(conditioner, wanted):
                return conditioner
        raise UserError(f"this model was not trained with {what}; it takes {', '.join(self.conditioners.names) or 'no condition'}")


def _part(said: str | P | None, family: type[P], name: str) -> P | None:
    return build(said, family, name) if isinstance(said, str) else said
