"""A foreign model described by our configs, and our checkpoint made of it: without it each format would assemble checkpoints by itself.

The recipe is known before any weight is read, so that weights can be checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ldm.checkpoints.model import AutoencoderSpec, LatentDiffusionSpec, SamplingDefaults, write_autoencoder, write_latent_diffusion
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.core.settings import Size
from ldm.diffusion.grid import Leading
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_digest, weights_digest
from ldm.interop.diffusers.unet import SizedUNet
from ldm.samplers.ddim import DDIM

MAX_FILE_BYTES = 4 << 30
IMPORTED = "Imported from"  # stands in the card of a checkpoint that was
GUIDANCE = {"clip_pretrained": 7.5, "bert_scratch": 5.0, "class_label": 3.0}  # of the published scripts, by kind of conditioner


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """A first stage by itself.

    Attributes:
        size: of the images in pixels, (height, width) or the side of a square.
        scale, shift: of its latents, see `LatentNormalization`.
    """

    size: Size
    first_stage: FirstStageConfig
    scale: float = 1.0
    shift: float = 0.0

    def of_size(self, size: int) -> AutoencoderRecipe:
        return replace(self, size=size)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Both stages.

    Attributes:
        scale_is_stored: whether the latents' scale is in the weights file only.
        conditioning: as in `LatentDiffusionSpec`; imported models have the names text, class, map, mask, boxes, small.
        sampling: sampling settings in the source; None = it has none, see `published_sampling`.
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
        first_stage, denoiser, conditioner: the tensors of each part, by our names.
        notes: for the user: which weights were chosen, which were passed over.
    """

    spec: LatentDiffusionSpec | AutoencoderSpec
    first_stage: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    conditioner: dict[str, Tensor]
    notes: tuple[str, ...]

    def write(self, folder: Path, source: str) -> None:
        """Writes the folder, whole or not at all; `source` is the name of the imported file, for the card."""
        card = "\n".join([f"# {self.spec.name}", "", f"{IMPORTED} `{source}`. Its licence is that of the source.", ""])
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
    """Our checkpoint of both stages, from a recipe and weights by our names."""
    spec = LatentDiffusionSpec(
        name=name,
        size=recipe.autoencoder.size,
        first_stage=recipe.autoencoder.first_stage,
        normalization=_normalization(recipe.autoencoder, first_stage),
        denoiser=recipe.unet.config,
        process=recipe.process,
        prediction=recipe.prediction,
        conditioning=recipe.conditioning,
        sampling=recipe.sampling or published_sampling(recipe.conditioning),
        frozen=dict(frozen),
    )
    return Imported(spec=spec, first_stage=first_stage, denoiser=denoiser, conditioner=conditioner, notes=notes)


def assembled_autoencoder(recipe: AutoencoderRecipe, name: str, first_stage: dict[str, Tensor], notes: tuple[str, ...]) -> Imported:
    """Our checkpoint of a first stage, from a recipe and weights by our names."""
    spec = AutoencoderSpec(name=name, size=recipe.size, first_stage=recipe.first_stage, normalization=_normalization(recipe, first_stage))
    return Imported(spec=spec, first_stage=first_stage, denoiser={}, conditioner={}, notes=notes)


def _normalization(recipe: AutoencoderRecipe, weights: dict[str, Tensor]) -> LatentNormalization:
    config = recipe.first_stage
    return LatentNormalization(
        channels=config.latent_channels,
        downsampling_factor=config.downsampling_factor,
        shift=(recipe.shift,),
        scale=(recipe.scale,),
        digest=weights_digest(weights) if weights else "",
        encoder=encoder_digest(weights),
    )


def published_sampling(conditioning: Mapping[str, ConditionerConfig]) -> SamplingDefaults:
    """The settings of the published scripts: 50 steps of DDIM, with their guidance."""
    guidance = next((GUIDANCE[config.kind] for config in conditioning.values() if config.kind in GUIDANCE), 1.0)
    return SamplingDefaults(sampler=DDIM(), steps=50, guidance=guidance, grid=Leading(offset=1))
