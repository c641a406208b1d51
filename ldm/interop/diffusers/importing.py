"""Imports diffusers' folders: without it the models that the hub has in this format could not be fine-tuned or evaluated here.

A folder is a pipeline's, a single autoencoder's, or one of parts from our own export.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.model import SamplingDefaults
from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.core.errors import UserError, unknown
from ldm.core.settings import each_side
from ldm.interop.clip_text import OWN, TextTower
from ldm.interop.diffusers.exported_parts import import_parts, is_of_parts
from ldm.interop.diffusers.folder import read_autoencoder, read_clip, read_weights
from ldm.interop.diffusers.parts import SizedAutoencoder, bert_config
from ldm.interop.diffusers.scheduler import read_scheduler
from ldm.interop.diffusers.unet import TOKEN_PROJECTION, SizedUNet, sized_unet
from ldm.interop.foreign_config import read_json
from ldm.interop.keymap import SAME, Entry, KeyMap
from ldm.interop.recipe import AutoencoderRecipe, Imported, Recipe, assembled, assembled_autoencoder, published_sampling
from ldm.interop.transformer_keys import transformer_keys
from ldm.interop.unet_keys import unet_keys

TEXT, BERT, UNCONDITIONAL, SMALL = "text_encoder", "bert", "", "small"
PIPELINES = {  # the model's condition, and the folder of its autoencoder
    "StableDiffusionPipeline": (TEXT, "vae"),
    "StableDiffusionImg2ImgPipeline": (TEXT, "vae"),
    "StableDiffusionInpaintPipeline": (TEXT, "vae"),
    "LDMTextToImagePipeline": (BERT, "vqvae"),
    "LDMPipeline": (UNCONDITIONAL, "vqvae"),
    "LDMSuperResolutionPipeline": (SMALL, "vqvae"),
}
MERE_PARTS = ("UNet2DModel", "UNet2DConditionModel", "LDMBertModel", "CLIPTextModel")


def import_diffusers(folder: Path) -> tuple[Imported, TextTower | None]:
    """Our checkpoint of a folder, and its text tower, if it has one, for which the caller must find or write an encoder.

    Raises:
        UserError: not a diffusers folder; a part that has no counterpart here; a tensor missing, left over or broken.
    """
    if not (folder / "model_index.json").is_file():
        return import_parts(folder) if is_of_parts(folder) else (_part_alone(folder), None)
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        raise unknown(f"pipeline of {folder}:", name, PIPELINES)
    condition, autoencoder_folder = PIPELINES[name]
    notes = [f"passed over {part}: not part of the diffusion model" for part in ("safety_checker",) if (folder / part).is_dir()]

    autoencoder, first_stage = read_autoencoder(folder / autoencoder_folder)
    if condition == SMALL:  # that pipeline passes latents to the decoder without scaling
        autoencoder = SizedAutoencoder(config=autoencoder.config, scale=1.0, shift=0.0, size=autoencoder.size)
    unet = sized_unet(read_json(folder / "unet" / "config.json"), f"{folder}/unet/config.json")
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "diffusers", is_linear=unet.is_linear)
    theirs = read_weights(folder / "unet")
    projection = {leaf: theirs.pop(TOKEN_PROJECTION + leaf) for leaf in ("weight", "bias") if TOKEN_PROJECTION + leaf in theirs}
    denoiser = keys.take(theirs, f"{folder}/unet: ")
    if (unet.token_width is not None or projection) and condition != BERT:
        raise UserError(f"{folder}/unet: projects its tokens itself ({TOKEN_PROJECTION}weight), which can be imported with bert only")

    conditioning: dict[str, ConditionerConfig] = {}
    conditioner: dict[str, Tensor] = {}
    tower = None
    if condition == TEXT:
        tower, passed_over = read_clip(folder / TEXT, folder / "tokenizer")
        notes += passed_over
        conditioning["text"] = ClipPretrainedConfig(model=OWN, max_tokens=tower.shape["max_position_embeddings"])
    elif condition == BERT:
        config = bert_config(read_json(folder / BERT / "config.json"), f"{folder}/bert/config.json")
        bert_keys = transformer_keys(config, WORDS, config.max_tokens, "diffusers")
        theirs = read_weights(folder / BERT)
        conditioner = {f"parts.text.encoder.{k}": v for k, v in bert_keys.take(theirs, f"{folder}/bert: ").items()}
        notes += bert_keys.notes(theirs, "bert ")
        conditioning["text"] = config
        conditioner |= _projection(projection, config, unet, f"{folder}/unet: {TOKEN_PROJECTION}")
    conditioning |= _concatenated(unet, autoencoder, condition, folder)

    scheduler = read_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"), f"{folder}/scheduler")
    notes += scheduler.notes
    factor = autoencoder.config.downsampling_factor
    size = each_side(unet.sample_size, lambda side: side * factor) if unet.sample_size else autoencoder.size
    published = published_sampling(conditioning)
    recipe = Recipe(
        autoencoder=AutoencoderRecipe(size=size, first_stage=autoencoder.config, scale=autoencoder.scale, shift=autoencoder.shift),
        unet=unet,
        conditioning=conditioning,
        process=scheduler.process,
        prediction=scheduler.prediction,
        sampling=SamplingDefaults(sampler=scheduler.sampler, steps=published.steps, guidance=published.guidance, grid=scheduler.grid),
    )
    return assembled(recipe, folder.name, first_stage, denoiser, conditioner, {}, tuple(notes)), tower


def _projection(theirs: dict[str, Tensor], config: BertScratchConfig, unet: SizedUNet, where: str) -> dict[str, Tensor]:
    """The layer between text encoder and UNet, which belongs to the conditioner here; empty if both have the same width."""
    width = unet.config.context_width or 0
    has_projection = unet.token_width is not None
    if has_projection and unet.token_width != config.width:
        raise UserError(f"{where}* takes tokens of width {unet.token_width}; bert gives {config.width}")
    shapes = {"weight": (width, config.width), "bias": (width,)} if has_projection else {}
    entries = tuple(Entry(leaf, torch.Size(shape), (leaf,), SAME) for leaf, shape in shapes.items())
    return {f"parts.text.projection.{leaf}": tensor for leaf, tensor in KeyMap(entries).take(theirs, where).items()}


def _concatenated(unet: SizedUNet, autoencoder: SizedAutoencoder, condition: str, folder: Path) -> dict[str, ConditionerConfig]:
    """The conditioner whose condition takes the UNet's input channels beyond the latents'."""
    latents = autoencoder.config.latent_channels
    further = unet.in_channels - latents
    if condition == SMALL and further == autoencoder.config.image_channels:
        return {"small": LowResolutionConfig(channels=further)}
    if condition == TEXT and further == 1 + latents:
        return {"mask": InpaintMaskConfig()}
    if further or condition == SMALL:
        raise UserError(f"{folder}: the UNet has {unet.in_channels} input channels, {latents} of latents; the use of the others is unknown")
    return {}


def _part_alone(folder: Path) -> Imported:
    """Our checkpoint of a folder without an index: an autoencoder's."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has neither model_index.json nor config.json, so it is not a diffusers folder")
    content = read_json(folder / "config.json")
    part = next((name for name in MERE_PARTS if content.get("_class_name") == name or content.get("architectures") == [name]), None)
    if part is not None:
        raise UserError(
            f"{folder}: is a {part} alone, which is not a model without the other parts: name the folder above it, of the whole pipeline, "
            f"which has a model_index.json"
        )
    autoencoder, first_stage = read_autoencoder(folder)
    recipe = AutoencoderRecipe(size=autoencoder.size, first_stage=autoencoder.config, scale=autoencoder.scale, shift=autoencoder.shift)
    return assembled_autoencoder(recipe, folder.name, first_stage, ())
