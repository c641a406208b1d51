"""Writes our checkpoint as a diffusers folder: without it models trained here could not be used in diffusers and the tools built on it.

It is a pipeline's folder if a pipeline can run the model, otherwise one of parts with a program that samples from them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.folder import save_tensors
from ldm.checkpoints.model import load_first_stage
from ldm.conditioning.bert_pretrained import BertPretrainedConfig
from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.transformer import TransformerConfig
from ldm.config.loader import to_yaml
from ldm.core.errors import UserError
from ldm.core.files import new_folder, recover_folder, write_file
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_digest, weights_digest
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import PT
from ldm.interop.diffusers.exported_parts import CONFIG, SMALL, small_names
from ldm.interop.diffusers.parts import SizedAutoencoder, autoencoder_json, transformer_json
from ldm.interop.diffusers.scheduler import scheduler_json
from ldm.interop.diffusers.snippet import snippet
from ldm.interop.diffusers.unet import TOKEN_PROJECTION, heads_differ, unet_json
from ldm.interop.latent_scale import scaled_for_peer
from ldm.interop.ours import Ours, is_second
from ldm.interop.transformer_keys import WORD_OUTPUT, transformer_keys
from ldm.interop.unet_keys import unet_keys
from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE
from ldm.pretrained.text import MINILM

FACTOR_OF_LDM, TOKENS_OF_LDM = 8, 77  # fixed in LDMTextToImagePipeline: downsampling factor of the first stage, number of tokens
STABLE_DIFFUSION = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS = "0.36.0"  # the oldest version with these names
CALLS = {
    "LDMPipeline": "pipeline(num_inference_steps=50).images[0]",
    "LDMSuperResolutionPipeline": "pipeline(small_image, num_inference_steps=50, eta=0.0).images[0]",
    "LDMTextToImagePipeline": 'pipeline("a red heart", num_inference_steps=50, guidance_scale=5.0).images[0]',
    "StableDiffusionPipeline": 'pipeline("a red heart", num_inference_steps=50).images[0]',
    "StableDiffusionInpaintPipeline": 'pipeline("a red heart", image=image, mask_image=mask, num_inference_steps=50).images[0]',
}
README = """# {name}

For diffusers' `{pipeline}`:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER")  # this one
{call}.save("image.png")
```
"""
README_OF_FIRST_STAGE = """# {name}

A first stage for diffusers:

```python
from diffusers import {autoencoder}

autoencoder = {autoencoder}.from_pretrained("FOLDER")  # this one; latents of a diffusion model are times its config.scaling_factor
```
"""
README_OF_PARTS = """# {name}

Parts for diffusers. None of its pipelines runs them together: {reason}. `load.py` does: `python load.py` writes sample.png.
`config.yaml` is for importing the folder again into the tool that wrote it: it has the model's complete configuration.
"""


def export_diffusers(ours: Ours, out: Path) -> tuple[str, ...]:
    """Writes the folder, whole or not at all.

    Returns:
        Notes for the user.

    Raises:
        UserError: what diffusers cannot represent.
    """
    pipeline, reason = pipeline_of(ours)
    scheduler, notes = scheduler_json(ours.spec.process, ours.spec.prediction, ours.spec.sampling)
    peer_scale = 1.0 if pipeline == "LDMSuperResolutionPipeline" else None  # it passes latents to the decoder without scaling
    weights, scale, folded = scaled_for_peer(ours.autoencoder, ours.spec.normalization, ours.first_stage, peer_scale)
    autoencoder = SizedAutoencoder(config=ours.autoencoder, scale=scale, shift=0.0, size=ours.spec.size)
    vae = "vae" if pipeline in ("", *STABLE_DIFFUSION) else "vqvae"
    unet, unet_tensors = _unet(ours, pipeline)
    vae_json = autoencoder_json(autoencoder)
    program = ""
    if not pipeline:
        names = {"unet": unet["_class_name"], "autoencoder": vae_json["_class_name"], "scheduler": scheduler["_class_name"]}
        program = snippet(ours.spec, **names, heads=ours.unet().config.heads if heads_differ(ours.unet().config) else None)

    recover_folder(out)
    with new_folder(out) as new:
        _write(new / "unet", unet, unet_tensors)
        _write(new / vae, vae_json, autoencoder_keys(ours.autoencoder, "diffusers").give(weights))
        write_file(new / "scheduler" / "scheduler_config.json", _text(scheduler))
        index = {"unet": ["diffusers", unet["_class_name"]], vae: ["diffusers", vae_json["_class_name"]]}
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        if pipeline:
            index |= _write_text(new, ours, pipeline)
            write_file(new / "model_index.json", _text({"_class_name": pipeline, "_diffusers_version": DIFFUSERS} | index))
            write_file(new / "README.md", README.format(name=ours.spec.name, pipeline=pipeline, call=CALLS[pipeline]))
        else:
            _write_parts(new, ours)
            write_file(
                new / CONFIG, to_yaml(replace(ours.spec, normalization=_normalization(ours.spec.normalization, weights, scale, folded)))
            )
            write_file(new / "load.py", program)
            write_file(new / "README.md", README_OF_PARTS.format(name=ours.spec.name, reason=reason))
    note = f"opens as diffusers' {pipeline}" if pipeline else f"no pipeline of diffusers runs it ({reason}); load.py does, by its parts"
    return (note, *folded, *notes, *_left_out(ours))


def export_first_stage(folder: Path, out: Path) -> tuple[str, ...]:
    """Writes a first stage by itself as a folder that diffusers' AutoencoderKL or VQModel opens, whole or not at all.

    Returns:
        Notes for the user.

    Raises:
        UserError: not a checkpoint; what diffusers cannot represent.
    """
    _, spec, stored = load_first_stage(folder, torch.device("cpu"))
    config = spec.first_stage
    if not isinstance(config, ConvolutionalConfig):
        raise UserError(f"checkpoint {folder}: first stage {config.kind!r} has no counterpart in other tools")
    weights, scale, folded = scaled_for_peer(config, spec.normalization, stored)
    vae = autoencoder_json(SizedAutoencoder(config=config, scale=scale, shift=0.0, size=spec.size))
    recover_folder(out)
    with new_folder(out) as new:
        _write(new, vae, autoencoder_keys(config, "diffusers").give(weights))
        write_file(new / "README.md", README_OF_FIRST_STAGE.format(name=spec.name, autoencoder=vae["_class_name"]))
    return (f"opens as diffusers' {vae['_class_name']}", *folded)


def _normalization(
    normalization: LatentNormalization, weights: dict[str, Tensor], scale: float, folded: tuple[str, ...]
) -> LatentNormalization:
    """The latent normalization of the autoencoder that is written."""
    if not folded:
        return normalization
    return replace(normalization.stated(scale), digest=weights_digest(weights), encoder=encoder_digest(weights))


def pipeline_of(ours: Ours) -> tuple[str, str]:
    """The pipeline that can run a model; or "" and the reason why there is none."""
    if heads_differ(ours.unet().config):
        return "", "its heads are of several widths, which the config of diffusers' UNet2DModel cannot express"
    configs = sorted(ours.spec.conditioning.values(), key=lambda config: config.kind)
    match configs:
        case []:
            return "LDMPipeline", ""
        case [LowResolutionConfig()]:
            return "LDMSuperResolutionPipeline", ""
        case [ClipPretrainedConfig()] | [ClipPretrainedConfig(), InpaintMaskConfig()]:
            if isinstance(ours.autoencoder, VQAutoencoderConfig):
                return "", "StableDiffusionPipeline has a KL autoencoder"
            if any(mask.convention != "stable_diffusion" for mask in ours.conditioners_of(InpaintMaskConfig).values()):
                return "", "StableDiffusionInpaintPipeline expects a grey hole"
            return STABLE_DIFFUSION[len(configs) - 1], ""
        case [BertScratchConfig() as config]:
            factor = ours.autoencoder.downsampling_factor
            if factor != FACTOR_OF_LDM:
                return "", f"LDMTextToImagePipeline needs a first stage with downsampling factor {FACTOR_OF_LDM}, here it is {factor}"
            if config.is_masked or config.max_tokens != TOKENS_OF_LDM:
                return "", f"LDMTextToImagePipeline attends to all of {TOKENS_OF_LDM} tokens: is_masked false, max_tokens {TOKENS_OF_LDM}"
            return "LDMTextToImagePipeline", ""
    return "", f"none is conditioned on {' and '.join(config.kind for config in configs)}"


def _left_out(ours: Ours) -> tuple[str, ...]:
    """Notes on sampling defaults that the folder lacks."""
    sampling = ours.spec.sampling
    notes = []
    if sampling.guidance_interval is not None:
        notes.append(f"guidance_interval {sampling.guidance_interval} is left out: use guidance only at these noise levels there too")
    if sampling.guidance_rescale:
        notes.append(f"guidance_rescale {sampling.guidance_rescale:g} is left out")
    return tuple(notes)


def _unet(ours: Ours, pipeline: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The UNet's config and tensors; for LDMTextToImagePipeline with the projection of the tokens, which is in diffusers' UNet."""
    sized = ours.unet(is_linear=is_second(ours.spec))
    keys = unet_keys(sized.config, sized.in_channels, sized.out_channels, "diffusers", is_linear=sized.is_linear)
    tensors = keys.give(ours.denoiser)
    for name in ours.spec.conditioning:
        projection = ours.conditioner.get(f"parts.{name}.projection.weight")
        if pipeline == "LDMTextToImagePipeline" and projection is not None:
            sized = replace(sized, token_width=projection.shape[1])
            tensors |= {TOKEN_PROJECTION + leaf: ours.conditioner[f"parts.{name}.projection.{leaf}"] for leaf in ("weight", "bias")}
    return unet_json(sized, sets_heads=not pipeline), tensors


def _write_text(new: Path, ours: Ours, pipeline: str) -> dict[str, list[str]]:
    """Writes the text encoder and tokenizer of a pipeline; returns their entries in its index."""
    if pipeline == "LDMTextToImagePipeline":
        ((name, bert),) = ours.conditioners_of(BertScratchConfig).items()
        tokenizer = _write_transformer(new, ours, name, bert, "bert", "tokenizer")
        return {"bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", tokenizer]}
    if pipeline not in STABLE_DIFFUSION:
        return {}
    (clip,) = ours.conditioners_of(ClipPretrainedConfig).values()
    tokenizer = _write_clip(new, ours, clip, "text_encoder", "tokenizer")
    return {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", tokenizer]}


def _write_parts(new: Path, ours: Ours) -> None:
    """Writes the encoder of each conditioner to a folder of its name, and the conditioners' small tensors to one file."""
    for name, config in ours.spec.conditioning.items():
        match config:
            case TransformerConfig():
                _write_transformer(new, ours, name, config, name, f"{name}-tokenizer")
            case ClipPretrainedConfig():
                _write_clip(new, ours, config, name, f"{name}-tokenizer")
            case BertPretrainedConfig():
                _write_bert(new, ours, config, name)
    small = {name: ours.conditioner[name].contiguous() for name in small_names(ours.conditioner)}
    if small:
        save_tensors(new / SMALL, small, PT)


def _write_transformer(new: Path, ours: Ours, name: str, config: TransformerConfig, folder: str, tokenizer_folder: str) -> str:
    """Writes a transformer that was trained with the denoiser, as LDMBertModel, and, if it reads text, its tokenizer.

    Returns:
        The class of the tokenizer; "" = there is none.
    """
    start = f"parts.{name}.encoder."
    mine = {key.removeprefix(start): tensor for key, tensor in ours.conditioner.items() if key.startswith(start)}
    vocabulary, length = (len(mine[f"{which}_embedding.weight"]) for which in ("token", "position"))
    tensors = transformer_keys(config, vocabulary, length, "diffusers").give(mine)
    words = mine["token_embedding.weight"]
    tensors |= {f"{WORD_OUTPUT}weight": torch.zeros_like(words), f"{WORD_OUTPUT}bias": words.new_zeros(vocabulary)}
    _write(new / folder, transformer_json(config, vocabulary, length), tensors, "model.safetensors")
    if vocabulary != WORDS or config.kind == "boxes":
        return ""
    return _write_tokenizer(new / tokenizer_folder, None, length)


def _write_clip(new: Path, ours: Ours, config: ClipPretrainedConfig, folder: str, tokenizer_folder: str) -> str:
    """Writes the frozen tower up to the layer that is read, and its tokenizer, whose class is returned."""
    tower = ours.text_tower(config)
    (new / folder).mkdir()
    (tower.cut() if config.layer == "penultimate" else tower).write_into(new / folder, {"bos_token_id": 0, "eos_token_id": 2})
    return _write_tokenizer(new / tokenizer_folder, config.model, config.max_tokens)


def _write_bert(new: Path, ours: Ours, config: BertPretrainedConfig, name: str) -> None:
    """Writes the frozen encoder and its tokenizer."""
    from transformers import BertConfig

    part = config.build(context_width=ours.unet().config.context_width, latent_channels=1)
    ours.check_frozen(part)
    encoder: Any = part.frozen.encoder
    (new / name).mkdir()
    shape = BertConfig.from_dict(dict(TABLE[MINILM].architecture)) if config.model == MINILM else encoder.config
    shape.save_pretrained(new / name)
    save_tensors(new / name / "model.safetensors", {key: tensor.contiguous() for key, tensor in encoder.state_dict().items()}, PT)
    _write_tokenizer(new / f"{name}-tokenizer", None if config.model == MINILM else config.model, config.max_tokens)


def _write_tokenizer(folder: Path, model: str | None, length: int) -> str:
    """Writes a tokenizer, given by folder or hub name (None = BERT's); returns its class."""
    from transformers import AutoTokenizer, BertTokenizer

    tokenizer: Any
    if model is None:
        tokenizer = BertTokenizer(vocab=str(fetch("bert-tokenizer")), do_lower_case=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return type(tokenizer).__name__


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str = WEIGHTS) -> None:
    write_file(folder / "config.json", _text(config))
    save_tensors(folder / name, {key: tensor.contiguous() for key, tensor in tensors.items()}, PT)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
