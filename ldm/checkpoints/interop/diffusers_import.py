"""diffusers' folders: a pipeline's, or an autoencoder's alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.interop.autoencoder_keys import OLD_NAMES, autoencoder_keys
from ldm.checkpoints.interop.clip_text import SHAPE, TextShape, TextTower, tower_keys
from ldm.checkpoints.interop.diffusers_parts import SizedAutoencoder, bert_config, sized_autoencoder
from ldm.checkpoints.interop.diffusers_scheduler import noising_of
from ldm.checkpoints.interop.diffusers_unet import NORM_EPS, TOKEN_PROJECTION, SizedUNet, sized_unet
from ldm.checkpoints.interop.foreign_config import must_be, read_foreign, read_json, shown
from ldm.checkpoints.interop.foreign_file import read_tensors
from ldm.checkpoints.interop.keymap import SAME, Entry, KeyMap
from ldm.checkpoints.interop.recipe import AutoencoderRecipe, Imported, Recipe, assembled, assembled_autoencoder, usual_sampling
from ldm.checkpoints.interop.transformer_keys import transformer_keys
from ldm.checkpoints.interop.unet_keys import unet_keys
from ldm.checkpoints.model import SamplingDefaults
from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.core.errors import UserError, unknown

TEXT, BERT, UNTOLD, SMALL = "text_encoder", "bert", "", "small"
PIPELINES = {  # what tells the model, and the folder of its autoencoder
    "StableDiffusionPipeline": (TEXT, "vae"),
    "StableDiffusionImg2ImgPipeline": (TEXT, "vae"),
    "StableDiffusionInpaintPipeline": (TEXT, "vae"),
    "LDMTextToImagePipeline": (BERT, "vqvae"),
    "LDMPipeline": (UNTOLD, "vqvae"),
    "LDMSuperResolutionPipeline": (SMALL, "vqvae"),
}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")


def import_diffusers(folder: Path) -> tuple[Imported, TextTower | None]:
    """Our checkpoint of a folder; and the text tower where it has one, whose place the caller must settle.

    Raises:
        UserError: no folder of diffusers'; a part that has no counterpart here; a tensor missing, left over or broken.
    """
    if not (folder / "model_index.json").is_file():
        return _autoencoder_alone(folder), None
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        raise unknown(f"pipeline of {folder}:", name, PIPELINES)
    told_by, autoencoder_folder = PIPELINES[name]
    notes = [f"passed over {part}: no part of the diffusion model" for part in ("safety_checker",) if (folder / part).is_dir()]

    autoencoder, first_stage = _autoencoder(folder / autoencoder_folder)
    if told_by == SMALL:  # that pipeline hands latents to the decoder as they are
        autoencoder = SizedAutoencoder(config=autoencoder.config, scale=1.0, shift=0.0, size=autoencoder.size)
    unet = sized_unet(read_json(folder / "unet" / "config.json"), f"{folder}/unet/config.json")
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "diffusers", is_linear=unet.is_linear)
    theirs = _weights(folder / "unet")
    projection = {leaf: theirs.pop(TOKEN_PROJECTION + leaf) for leaf in ("weight", "bias") if TOKEN_PROJECTION + leaf in theirs}
    denoiser = keys.take(theirs, f"{folder}/unet: ")
    if (unet.token_width is not None or projection) and told_by != BERT:
        raise UserError(f"{folder}/unet: projects its tokens itself ({TOKEN_PROJECTION}weight), as only models told by bert may here")

    conditioning: dict[str, ConditionerConfig] = {}
    conditioner: dict[str, Tensor] = {}
    tower = None
    if told_by == TEXT:
        conditioning["text"], tower = _clip(folder / TEXT)
    elif told_by == BERT:
        config = bert_config(read_json(folder / BERT / "config.json"), f"{folder}/bert/config.json")
        bert_keys = transformer_keys(config, WORDS, config.max_tokens, "diffusers")
        theirs = _weights(folder / BERT)
        conditioner = {f"parts.text.encoder.{k}": v for k, v in bert_keys.take(theirs, f"{folder}/bert: ").items()}
        notes += [f"passed over bert {start}*: {reason}" for start, reason in bert_keys.passed_over(theirs).items()]
        conditioning["text"] = config
        conditioner |= _projection(projection, config, unet, f"{folder}/unet: {TOKEN_PROJECTION}")
    conditioning |= _concatenated(unet, autoencoder, told_by, folder)

    noising = noising_of(read_json(folder / "scheduler" / "scheduler_config.json"), f"{folder}/scheduler")
    size = unet.sample_size * autoencoder.config.ratio if unet.sample_size else autoencoder.size
    usual = usual_sampling(conditioning)
    recipe = Recipe(
        autoencoder=AutoencoderRecipe(size=size, first_stage=autoencoder.config, scale=autoencoder.scale, shift=autoencoder.shift),
        unet=unet,
        conditioning=conditioning,
        process=noising.process,
        prediction=noising.prediction,
        sampling=SamplingDefaults(sampler=noising.sampler, steps=usual.steps, guidance=usual.guidance, grid=noising.grid),
    )
    return assembled(recipe, folder.name, first_stage, denoiser, conditioner, {}, tuple(notes)), tower


def _projection(theirs: dict[str, Tensor], config: BertScratchConfig, unet: SizedUNet, where: str) -> dict[str, Tensor]:
    """The layer between text encoder and UNet, which is the conditioner's here; none where both have one width."""
    width = unet.config.context_width or 0
    is_there = unet.token_width is not None
    if is_there and unet.token_width != config.width:
        raise UserError(f"{where}* takes tokens of width {unet.token_width}; bert gives {config.width}")
    shapes = {"weight": (width, config.width), "bias": (width,)} if is_there else {}
    entries = tuple(Entry(leaf, torch.Size(shape), (leaf,), SAME) for leaf, shape in shapes.items())
    return {f"parts.text.projection.{leaf}": tensor for leaf, tensor in KeyMap(entries).take(theirs, where).items()}


def _concatenated(unet: SizedUNet, autoencoder: SizedAutoencoder, told_by: str, folder: Path) -> dict[str, ConditionerConfig]:
    """What is told by the UNet's further input channels."""
    latents = autoencoder.config.latent_channels
    further = unet.in_channels - latents
    if told_by == SMALL and further == autoencoder.config.image_channels:
        return {"small": LowResolutionConfig(channels=further)}
    if told_by == TEXT and further == 1 + latents:
        return {"mask": InpaintMaskConfig()}
    if further or told_by == SMALL:
        raise UserError(f"{folder}: the UNet has {unet.in_channels} input channels, {latents} of latents: what are the others?")
    return {}


def _autoencoder_alone(folder: Path) -> Imported:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has neither model_index.json nor config.json, so it is no folder of diffusers'")
    autoencoder, first_stage = _autoencoder(folder)
    recipe = AutoencoderRecipe(size=autoencoder.size, first_stage=autoencoder.config, scale=autoencoder.scale, shift=autoencoder.shift)
    return assembled_autoencoder(recipe, folder.name, first_stage, ())


def _autoencoder(folder: Path) -> tuple[SizedAutoencoder, dict[str, Tensor]]:
    found = sized_autoencoder(read_json(folder / "config.json"), f"{folder}/config.json")
    theirs = {_since_016(name): tensor for name, tensor in _weights(folder).items()}
    return found, autoencoder_keys(found.config, "diffusers").take(theirs, f"{folder}: ")


def _since_016(name: str) -> str:
    """An autoencoder's name as newer versions of diffusers have it."""
    start, _, module_and_leaf = name.partition(".attentions.0.")
    module, _, leaf = module_and_leaf.rpartition(".")
    return f"{start}.attentions.0.{OLD_NAMES[module]}.{leaf}" if module in OLD_NAMES else name


def _clip(folder: Path) -> tuple[ClipPretrainedConfig, TextTower]:
    content = read_json(folder / "config.json")
    if content.get("architectures") != ["CLIPTextModel"]:
        raise UserError(f"{folder}: architectures is {shown(content.get('architectures'))}; CLIPTextModel can be imported")
    where = f"{folder}/config.json"
    shape = vars(read_foreign({key: content[key] for key in SHAPE if key in content}, TextShape, where))
    must_be(where, "layer_norm_eps", content.get("layer_norm_eps", NORM_EPS), NORM_EPS)
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in _weights(folder).items()}
    config = ClipPretrainedConfig(model=str(folder), max_tokens=shape["max_position_embeddings"])
    return config, TextTower(shape, tower_keys(shape).take(theirs, f"{folder}: "))


def _weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a part, in one file or several."""
    for name in WEIGHTS:
        if (folder / f"{name}.index.json").is_file():
            where = read_json(folder / f"{name}.index.json").get("weight_map")
            pieces = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
            strangers = [piece for piece in pieces if Path(piece).name != piece]
            if strangers or not pieces:
                raise UserError(f"{folder}/{name}.index.json: names {', '.join(strangers) or 'no file'}; must name files beside it")
            return {key: tensor for piece in pieces for key, tensor in read_tensors(folder / piece).items()}
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: has no weights; one of {', '.join(WEIGHTS)} is needed")
