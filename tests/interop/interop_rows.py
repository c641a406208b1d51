"""A tiny model of each published kind, with random weights, as our checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults, write_latent_diffusion
from ldm.conditioning.bert_pretrained import BertPretrainedConfig
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.diffusion.grid import Leading
from ldm.diffusion.prediction import EpsPrediction, Prediction, VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_digest, weights_digest
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.networks.unet import UNetConfig
from ldm.samplers.ddim import DDIM

SIZE = 16
KL = KLAutoencoderConfig(channels=64, multipliers=(1, 1), blocks=1, latent_channels=3)
KL_4 = replace(KL, latent_channels=4)
VQ = VQAutoencoderConfig(channels=64, multipliers=(1, 1), blocks=1, num_codes=12, code_channels=3)
PLAIN = UNetConfig(channels=64, multipliers=(1, 2), blocks=1, attention=(2,), head_width=32, transformer_depth=0)
CROSS = UNetConfig(channels=64, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, context_width=16)
TRANSFORMER = {"width": 16, "depth": 1, "heads": 8, "head_width": 64}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model; the defaults are what most rows have in common."""

    unet: UNetConfig
    conditioning: dict[str, ConditionerConfig]
    first_stage: ConvolutionalConfig = KL
    process: DiscreteVP = DiscreteVP(beta_first=0.0015, beta_last=0.0195)
    prediction: Prediction = EpsPrediction()
    scale: float = 1.0
    normalization: dict[str, tuple[float, ...]] = field(default_factory=dict)  # shift and scale, where they are not a single scale


ROWS = {
    "faces": Row(unet=PLAIN, conditioning={}, first_stage=VQ),
    "churches": Row(
        unet=replace(PLAIN, heads=2, head_width=None, attention=(1, 2), resample="residual", scale_shift=True), conditioning={}, scale=1.7
    ),
    "class": Row(unet=replace(CROSS, heads=1), conditioning={"class": ClassLabelConfig(num_classes=3, how="attend")}, first_stage=VQ),
    "text": Row(unet=CROSS, conditioning={"text": BertScratchConfig(**TRANSFORMER, max_tokens=9, is_masked=False)}, scale=0.18215),
    "map": Row(
        unet=PLAIN,
        conditioning={"map": SemanticMapConfig(num_classes=5, channels=3, shares=True)},
        first_stage=replace(VQ, middle_attention=False),
    ),
    "boxes": Row(
        unet=replace(CROSS, transformer_depth=2),
        conditioning={"boxes": BoxesConfig(**TRANSFORMER, num_classes=19, max_boxes=2, vocabulary=20)},
    ),
    "inpainting": Row(
        unet=replace(PLAIN, heads=2, head_width=None, attention=(1, 2), resample="residual"),
        conditioning={"mask": InpaintMaskConfig(convention="inpainting_big")},
        first_stage=replace(VQ, middle_attention=False),
    ),
    "small": Row(unet=PLAIN, conditioning={"small": LowResolutionConfig()}, first_stage=VQ),
}

MANY = Row(  # conditioned on everything at once
    unet=replace(CROSS, vector_width=6),
    conditioning={
        "text": BertPretrainedConfig(max_tokens=7, vector_width=6),
        "class": ClassLabelConfig(num_classes=3, width=6),
        "mask": InpaintMaskConfig(),
        "map": SemanticMapConfig(num_classes=4),
    },
)


def stable(text_encoder: Path, *, version: int, has_mask: bool = False) -> Row:
    """A Stable Diffusion of version 1 or 2."""
    conditioning: dict[str, ConditionerConfig] = {
        "text": ClipPretrainedConfig(model=str(text_encoder), max_tokens=9, layer="last" if version == 1 else "penultimate")
    }
    heads = {"heads": 8} if version == 1 else {"heads": None, "head_width": 64}
    unet = replace(CROSS, **heads, attention=(1, 2), context_width=64)
    if has_mask:
        conditioning["mask"] = InpaintMaskConfig()
    return Row(
        unet=unet,
        conditioning=conditioning,
        first_stage=KL_4,
        process=DiscreteVP(),
        prediction=EpsPrediction() if version == 1 else VPrediction(),
        scale=0.18215,
    )


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict in which nothing is zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=draw) * (0.1 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
    return dict(module.state_dict())


def write_row(folder: Path, row: Row, size: int = SIZE, dtype: torch.dtype = torch.float32) -> Path:
    """The row's checkpoint."""

    def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight.to(dtype) for name, weight in weights.items()}

    with torch.random.fork_rng():
        torch.manual_seed(7)
        first_stage = rounded(random_weights(row.first_stage.build(), 1))
        config = row.first_stage
        measured = {"scale": (row.scale,), **row.normalization}
        normalization = LatentNormalization(
            channels=config.latent_channels,
            downsampling_factor=config.downsampling_factor,
            digest=weights_digest(first_stage),
            encoder=encoder_digest(first_stage),
            **measured,
        )
        sampling = SamplingDefaults(sampler=DDIM(), steps=10, guidance=3.0 if row.conditioning else 1.0, grid=Leading(offset=1))
        spec = LatentDiffusionSpec(
            name=folder.name,
            size=size,
            first_stage=config,
            normalization=normalization,
            denoiser=row.unet,
            process=row.process,
            prediction=row.prediction,
            conditioning=row.conditioning,
            sampling=sampling,
        )
        conditioners = spec.build_conditioners()
        spec = spec.with_frozen(conditioners.frozen_digests())
        parts = rounded(random_weights(spec.build_network(conditioners), 2)), rounded(random_weights(conditioners, 3))
    write_latent_diffusion(folder, spec, first_stage, *parts, "# tiny\n", 1 << 30)
    return folder


def write_clip(folder: Path, *, is_open: bool) -> Path:
    """A tiny CLIP text tower for transformers, with a tokenizer of letters."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    shape = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, max_position_embeddings=9,
        hidden_act="gelu" if is_open else "quick_gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(11)
        tower = CLIPTextModel(shape)
        random_weights(tower, 4)
    tower.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
