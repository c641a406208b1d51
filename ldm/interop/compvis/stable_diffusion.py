"""Stable Diffusion files without a config, recognised by tensor shapes: without it most shared single files could not be imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ldm.conditioning.clip_pretrained import OPEN_CLIP_H, ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.interop.diffusers.unet import SizedUNet
from ldm.interop.foreign_config import must_be_few
from ldm.interop.recipe import AutoencoderRecipe, Recipe
from ldm.interop.settings import PredictionName
from ldm.networks.unet import UNetConfig

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
FIRST_TRANSFORMER = f"{UNET}input_blocks.1.1."
SCALE = 0.18215
SIZE = {"eps": 512, "x0": 512, "v": 768}
HEADS_1, HEAD_WIDTH_2 = 8, 64


def recipe_of(tensors: Mapping[str, Tensor], path: Path, prediction: PredictionName | None) -> Recipe:
    """The model in a single file; its images have 512 pixels a side, or 768 where v is predicted.

    Args:
        tensors: of the file.
        path: for errors.
        prediction: the denoiser's; None = eps, for version 1 files. A version 2 file does not record it.

    Raises:
        UserError: the file is of neither version, or of version 2 and no prediction is given.
    """
    first, project, keys = (
        tensors.get(name)
        for name in (
            f"{UNET}input_blocks.0.0.weight",
            f"{FIRST_TRANSFORMER}proj_in.weight",
            f"{FIRST_TRANSFORMER}transformer_blocks.0.attn2.to_k.weight",
        )
    )
    if first is None or project is None or keys is None or f"{UNET}label_emb.0.0.weight" in tensors:
        raise UserError(f"{path}: is not Stable Diffusion 1 or 2 by its tensors' names; pass the YAML that belongs to it as --config")
    is_second = project.ndim == 2
    if is_second and prediction is None:
        raise UserError(f"{path}: is Stable Diffusion 2; set its prediction: --prediction v (the 768 models) or eps (the base models)")
    chosen = prediction or "eps"
    kind = Prediction.of_kind(chosen)()
    assert isinstance(kind, Prediction)
    text = ClipPretrainedConfig(model=OPEN_CLIP_H, layer="penultimate") if is_second else ClipPretrainedConfig()
    conditioning: dict[str, ConditionerConfig] = {"text": text}
    if first.shape[1] == 9:
        conditioning["mask"] = InpaintMaskConfig()
    config = _unet(tensors, path, keys.shape[1], is_second)
    return Recipe(
        autoencoder=AutoencoderRecipe(size=SIZE[chosen], first_stage=_autoencoder(tensors, path), scale=SCALE),
        unet=SizedUNet(config=config, in_channels=first.shape[1], out_channels=4, is_linear=is_second),
        conditioning=conditioning,
        process=DiscreteVP(),
        prediction=kind,
    )


def _unet(tensors: Mapping[str, Tensor], path: Path, context_width: int, is_second: bool) -> UNetConfig:
    """The UNet's config: a level ends at each downsampling block."""
    channels = tensors[f"{UNET}input_blocks.0.0.weight"].shape[0]
    ends = sorted(int(match[1]) for name in tensors if (match := re.fullmatch(rf"{UNET}input_blocks\.(\d+)\.0\.op\.weight", name)))
    stride = ends[0] if ends else 3
    starts = [1, *(end + 1 for end in ends)]
    widths = [_length(tensors, f"{UNET}input_blocks.{start}.0.out_layers.3.weight") for start in starts]
    must_be_few(str(path), "number of blocks a level", (stride,) * len(starts))
    return UNetConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=stride - 1,
        attention=tuple(2**level for level, start in enumerate(starts) if f"{UNET}input_blocks.{start}.1.norm.weight" in tensors),
        heads=None if is_second else HEADS_1,
        head_width=HEAD_WIDTH_2 if is_second else None,
        context_width=context_width,
    )


def _autoencoder(tensors: Mapping[str, Tensor], path: Path) -> KLAutoencoderConfig:
    """The autoencoder's config: KL-f8 in the published files, here of any widths."""
    channels = _length(tensors, f"{AUTOENCODER}encoder.conv_in.weight")
    if not channels:
        raise UserError(f"{path}: has no autoencoder ({AUTOENCODER}encoder); a whole checkpoint is needed")
    block = f"{AUTOENCODER}encoder.down.{{}}.block.{{}}.conv1.weight"
    levels = [_length(tensors, block.format(level, 0)) for level in range(16)]
    blocks = sum(block.format(0, number) in tensors for number in range(16))
    return KLAutoencoderConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in levels if width),
        blocks=blocks,
        latent_channels=_length(tensors, f"{AUTOENCODER}post_quant_conv.weight"),
    )


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    """Number of rows of a tensor; 0 if it is missing."""
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0
