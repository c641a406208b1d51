"""A trained model as a user holds it: pictures from text, class, map, or another picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.classifier import LoadedClassifier, load_classifier
from ldm.checkpoints.lora import load_with_lora
from ldm.checkpoints.model import load_latent_diffusion
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.control import Control
from ldm.conditioning.inputs import ConditionInputs
from ldm.config.loader import build
from ldm.core.device import find_device
from ldm.core.errors import UserError, described, unknown
from ldm.core.family import Family
from ldm.core.precision import check_precision
from ldm.core.settings import Precision
from ldm.data.record import Box
from ldm.diffusion.grid import Grid
from ldm.first_stage.identity import IdentityConfig
from ldm.guidance.thresholded import Threshold
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.classifier_guide import ClassifierGuide
from ldm.pipelines.renderer import UNCONDITIONAL, Renderer
from ldm.pipelines.sampling import Sampling, is_number
from ldm.samplers.sampler import OnStep, Sampler

P = TypeVar("P", bound=Family)
CONTROLLED = {"text": "text", "choice": "class labels", "class_map": "semantic maps", "boxes": "boxes", "image": "low-resolution images"}


class SamplingOptions(TypedDict, total=False):
    """The sampling options of a call; see `Sampling`. A sampler or grid may be named by its kind and settings:
    "pc predictor=euler_maruyama corrections=0"."""

    sampler: str | Sampler | None
    grid: str | Grid | None
    steps: int | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    guidance_rescale: float | None
    threshold: Threshold | Literal["none"] | None
    num_images: int
    seed: int
    on_step: OnStep | None


@dataclass(frozen=True, kw_only=True, repr=False)
class LatentDiffusion(Renderer):
    """Both stages, frozen, on one device."""

    @staticmethod
    def from_pretrained(
        folder: Path | str,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        *,
        lora: Path | str | None = None,
        lora_scale: float = 1.0,
    ) -> LatentDiffusion:
        """A model from a checkpoint folder.

        Args:
            folder: of the checkpoint.
            device: auto (CUDA, else Apple's GPU, else the CPU), cpu, cuda, cuda:N or mps.
            precision: that the networks compute in; in half of it they take about half the memory.
            lora: folder of a LoRA that was trained on this checkpoint.
            lora_scale: how strongly it acts; 1 = as it was trained.

        Raises:
            UserError: not a checkpoint of both stages, or altered; see `ldm.checkpoints.model` and `lora`. Unknown precision, or one
                that does not run on the device; a device that is not there.
        """
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        chosen = find_device(str(device))
        check_precision(chosen, precision)
        if not is_number(lora_scale):
            raise UserError(f"lora_scale must be a number, got {described(lora_scale)}")
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

    def sampling(self, **options: Unpack[SamplingOptions]) -> Sampling:
        """How to sample; an option that is None or left out takes the checkpoint's default.

        Raises:
            UserError: unknown sampler or grid; a value of another type; a number out of range; more steps than the process has; no number
                of steps, where the checkpoint's own sampler needs none and this one does.
        """
        given = {name: value for name, value in options.items() if value is not None or name in ("num_images", "seed")}
        for name in given:
            if name not in SamplingOptions.__annotations__:
                raise unknown("sampling option", name, SamplingOptions.__annotations__)
        default = self.spec.sampling
        solver = _part(options.get("sampler"), Sampler, "sampler") or default.sampler  # type: ignore[type-abstract]
        if "steps" not in given and default.sampler.adaptive and not solver.adaptive:
            raise UserError(
                f"sampler {solver.kind!r} needs a number of steps, e.g. 50: the model names none, since its own, "
                f"{default.sampler.kind!r}, sizes its strides itself"
            )
        usual = {name: getattr(default, name) for name in ("steps", "guidance", "guidance_interval", "guidance_rescale", "threshold")}
        parts = {"sampler": solver, "grid": _part(options.get("grid"), Grid, "grid") or default.grid}  # type: ignore[type-abstract]
        how = Sampling(**{**usual, **given, **parts, **({"threshold": None} if options.get("threshold") == "none" else {})})
        if how.threshold is not None and not isinstance(self.spec.first_stage, IdentityConfig):
            raise UserError("a threshold is for models on pixels, which lie in [-1, 1]; this one draws latents, which have no such range")
        how.grid.times(self.spec.process, how.steps)  # refuses what no start could take
        return how

    def text_to_image(self, prompt: str, *, negative_prompt: str = "", **options: Unpack[SamplingOptions]) -> list[Image.Image]:
        """Images of a text.

        Args:
            prompt: what to draw.
            negative_prompt: what guidance leads away from; empty = nothing in particular.
            options: see `SamplingOptions`.

        Raises:
            UserError: empty prompt; a model without text conditioning; see `sampling`.
        """
        return to_pil(self.generate(self.text_inputs(prompt), self.sampling(**options), self.uncond(negative_prompt)))

    def sample(
        self,
        *,
        label: str | int | None = None,
        layout: Tensor | None = None,
        boxes: Sequence[Box] | None = None,
        cond: Mapping[str, Any] | None = None,
        negative_prompt: str = "",
        classifier: str | Path | LoadedClassifier | None = None,
        classifier_scale: float = 1.0,
        **options: Unpack[SamplingOptions],
    ) -> list[Image.Image]:
        """Images of a class, of a map (`layout`, (H, W) class indices), of boxes, of anything else that the model is conditioned on
        (`cond`, see `inputs`), of several of them, or of nothing in particular. A negative prompt is what guidance leads away from.

        A classifier guides to the class, see `guide`; the model is conditioned on it too if it was trained with labels.

        Raises:
            UserError: unknown label; a condition that the model was not trained with; see `guide` and `sampling`.
        """
        how = self.sampling(**options)
        if classifier is not None:
            how = replace(how, guide=self.guide(classifier, () if label is None else (label,), classifier_scale))
        inputs = self.inputs(cond or {}, label=label, layout=layout, boxes=boxes, is_guided=classifier is not None)
        return to_pil(self.generate(inputs, how, self.uncond(negative_prompt)))

    def guide(self, classifier: str | Path | LoadedClassifier, labels: Sequence[str | int], scale: float = 1.0) -> ClassifierGuide:
        """Guides image i to class labels[i], from the first again when they are used up.

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
        """The inputs of a prompt, for all conditioners that read text.

        Raises:
            UserError: empty prompt, or a model without text conditioning.
        """
        return ConditionInputs(count=1, values=self._given("text", prompt))

    def inputs(
        self,
        cond: Mapping[str, Any],
        *,
        label: str | int | None = None,
        layout: Tensor | None = None,
        boxes: Sequence[Box] | None = None,
        is_guided: bool = False,
    ) -> ConditionInputs:
        """The inputs of one image.

        Args:
            cond: values by the conditioner's name, or by NAME.FIELD for one of several fields; its `controls` give their type. Texts are
                read as on a command line.
            label, layout, boxes: values for the conditioners that are set by a class, a map of classes, and boxes, whatever their names.
            is_guided: whether a classifier guides to the label: then a model that was not trained with labels need not take it.

        Raises:
            UserError: no such conditioner; a value that it does not take; a model that was not trained with such a condition.
        """
        values: dict[str, Any] = {}
        if label is not None and (self.conditioners.controlled_by("choice") or not is_guided):
            values |= self._given("choice", label)
        if layout is not None:
            values |= self._given("class_map", layout)
        if boxes is not None:
            values |= self._given("boxes", boxes)
        parts = dict(self.conditioners.items())
        for name, value in _by_name(cond).items():
            if name not in parts:
                raise unknown("conditioner", name, parts)
            if name in values:
                raise UserError(f"condition {name!r} is given twice, by its kind (label, layout or boxes) and by its name: leave one out")
            values[name] = parts[name].of_user(value)
        return ConditionInputs(count=1, values=values)

    def uncond(self, negative_prompt: str = "") -> ConditionInputs:
        """What guidance leads away from: nothing in particular, or a negative prompt."""
        return self.text_inputs(negative_prompt) if negative_prompt else UNCONDITIONAL

    def _given(self, control: str, value: Any) -> dict[str, Any]:
        """A user's value for all conditioners that are set by a control of this kind.

        Raises:
            UserError: there are none.
        """
        return {name: part.of_user(value) for name, part in self.require(control).items()}

    def require(self, control: str) -> dict[str, Conditioner[Any]]:
        """The conditioners that are set by a control of this kind, by name.

        Raises:
            UserError: there are none.
        """
        parts = self.conditioners.controlled_by(control)
        if not parts:
            taken = ", ".join(f"{name} ({_script(part)})" for name, part in self.conditioners.items())
            taken = taken or "no condition (scripts/sample.py draws without one)"
            raise UserError(f"this model was not trained with {CONTROLLED[control]}; it takes {taken}")
        return parts


def _by_name(cond: Mapping[str, Any]) -> dict[str, Any]:
    """NAME.FIELD: value as NAME: {FIELD: value}.

    Raises:
        UserError: not a mapping of names; a condition that is given as a whole and by a field.
    """
    if not isinstance(cond, Mapping) or not all(isinstance(key, str) for key in cond):
        raise UserError(f"conditions are a mapping of names to values, e.g. {{'class': 'cat'}}, got {described(cond)}")
    found: dict[str, Any] = {}
    fields: dict[str, dict[str, Any]] = {}
    for key, value in cond.items():
        name, _, field = key.partition(".")
        if field:
            fields.setdefault(name, {})[field] = value
        else:
            found[name] = value
    for name in found.keys() & fields.keys():
        raise UserError(f"condition {name!r} is given twice, as a whole and by {name}.{next(iter(fields[name]))}: leave one out")
    return found | fields


def _part(given: object, family: type[P], name: str) -> P | None:
    if given is None or isinstance(given, family):
        return given
    if not isinstance(given, str):
        raise UserError(f"a {name} is a {family.__name__}, or named by its kind ({', '.join(family.kinds())}), got {described(given)}")
    return build(given, family, name)


def _script(part: Conditioner[Any]) -> str:
    """By which script and flag a user sets a conditioner."""
    whole = part.controls.get("")
    return Control.script if whole is None else whole.script
