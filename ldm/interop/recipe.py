"""What a foreign checkpoint is a checkpoint of, in our words, before any weight is read; and what comes of it: one of our folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ldm.checkpoints.model import AutoencoderSpec, LatentDiffusionSpec, SamplingDefaults, write_autoencoder, write_latent_diffusion
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.diffusion.grid import Leading
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest
from ldm.interop.diffusers.unet import SizedUNet
from ldm.samplers.ddim import DDIM

MAX_FILE_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """A first stage by itself.

    Attributes:
        size: pictures' side, in pixels.
        scale, shift: of its latents, see LatentNormalization.
    """

    size: int
    first_stage: FirstStageConfig
    scale: float = 1.0
    shift: float = 0.0

    def of_size(self, size: int) -> AutoencoderRecipe:
        return replace(self, size=size)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Both stages.

    Attributes:
        scale_is_stored: whether the latents' scale stands in the weights file only.
        conditioning: as in LatentDiffusionSpec, by the names that imported models get: text, class, map, mask, boxes, small.
        sampling: where the source says how it is sampled; None = as published, see `usual_sampling`.
    """

    autoencoder: AutoencoderRecipe
    scale_is_stored: bool = False
    unet: SizedUNet
    conditioning: dict[str, ConditionerConfig]
    process: DiscreteVP
    prediction: Prediction
    sampling: SamplingDefaults | None = None

    def of_size(self, size: int) -> Recipe:
        return replace(self, autoencoder=self.autoencoder.of_size(size))

    def with_scale(self, scale: float) -> Recipe:
        return replace(self, autoencoder=replace(self.autoencoder, scale=scale))


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint of ours, not yet written.

    Attributes:
        spec: of both stages, or of the first.
        notes: what the user should know: which weights were taken, what was passed over.
        parts: the tensors of each, by our names.
    """

    spec: LatentDiffusionSpec | AutoencoderSpec
    first_stage: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    conditioner: dict[str, Tensor]
    notes: tuple[str, ...]

    def write(self, folder: Path, source: str) -> None:
        """The folder, whole or not at all; `source` is what it was made of, for its card."""
        card = "\n".join([f"# {self.spec.name}", "", f"Imported from `{source}`. Its licence is that of the source.", ""])
        card += "".join(f"- {note}\n" for note in self.notes)
        if isinstance(self.spec, AutoencoderSpec):
            write_autoencoder(folder, self.spec, self.first_stage, card, MAX_FILE_BYTES)
        else:
            write_latent_diffusion(folder, self.spec, self.first_stage, self.denoiser, self.conditioner, card, MAX_FILE_BYTES)


def assembled(
    recipe: Recipe,
    name: str,
    first_stage: dict[str, Tensor],
    denoiser: dict[str, Tensor],
    conditioner: dict[str, Tensor],
    frozen: Mapping[str, str],
    notes: tuple[str, ...],
) -> Imported:
    """Our checkpoint of a recipe and its weights, by our names."""
    spec = LatentDiffusionSpec(
        name=name,
        size=recipe.autoencoder.size,
        first_stage=recipe.autoencoder.first_stage,
        normalization=_normalization(recipe.autoencoder, first_stage),
        denoiser=recipe.unet.config,
        process=recipe.process,
        prediction=recipe.prediction,
        conditioning=recipe.conditioning,
        sampling=recipe.sampling or usual_sampling(recipe.conditioning),
        frozen=dict(frozen),
    )
    return Imported(spec=spec, first_stage=first_stage, denoiser=denoiser, conditioner=conditioner, notes=notes)


def assembled_autoencoder(recipe: AutoencoderRecipe, name: str, first_stage: dict[str, Tensor], notes: tuple[str, ...]) -> Imported:
    """The same of a first stage."""
    spec = AutoencoderSpec(name=name, size=recipe.size, first_stage=recipe.first_stage, normalization=_normalization(recipe, first_stage))
    return Imported(spec=spec, first_stage=first_stage, denoiser={}, conditioner={}, notes=notes)


def _normalization(recipe: AutoencoderRecipe, weights: dict[str, Tensor]) -> LatentNormalization:
    config = recipe.first_stage
    digest = weights_digest(weights) if weights else ""
    return LatentNormalization(
        channels=config.latent_channels,
        downsampling_factor=config.downsampling_factor,
        shift=(recipe.shift,),
        scale=(recipe.scale,),
        digest=digest,
    )


def usual_sampling(conditioning: Mapping[str, ConditionerConfig]) -> SamplingDefaults:
    """As the published scripts sample: 50 steps of DDIM, with their guidance."""
    scales = {ClipPretrainedConfig: 7.5, BertScratchConfig: 5.0, ClassLabelConfig: 3.0}
    guidance = next((scales[type(config)] for config in conditioning.values() if type(config) in scales), 1.0)
    return SamplingDefaults(sampler=DDIM(), steps=50, guidance=guidance, grid=Leading(offset=1))
