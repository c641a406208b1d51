"""Writes a program that samples an exported model by diffusers' parts: without it models that no pipeline runs would be useless there.

The program's text is here: a frame, and for each kind of conditioner the lines that make its condition. In these lines row 0 is
unconditional, row 1 has the condition, and `weights` are the conditioners' tensors.
"""

from __future__ import annotations

from textwrap import indent

from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.bert_pretrained import BertPretrainedConfig
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.core.errors import UserError
from ldm.core.settings import height_width
from ldm.pretrained.text import MINILM

FRAME = '''"""Samples {name} by diffusers' parts: `python load.py` writes sample.png beside itself; or import what it defines."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import {autoencoder}, {scheduler}, {unet}
{imports}from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, CLIPTextModel

HERE = Path(__file__).parent
SIZE, LATENT, CHANNELS = {size}, {latent}, {channels}  # (height, width) of the images and of the latents, and the latents' channels
unet = {unet}.from_pretrained(HERE / "unet").eval()
{heads}vae = {autoencoder}.from_pretrained(HERE / "vae").eval()
scheduler = {scheduler}.from_pretrained(HERE / "scheduler")
stored = load_file(HERE / "conditioner.safetensors") if (HERE / "conditioner.safetensors").exists() else {{}}
weights = {{name: tensor.float() for name, tensor in stored.items()}}


@torch.no_grad()
def condition({arguments}):
    """The network's condition: row 0 is unconditional, row 1 has the given condition.{help}"""
    tokens, masks, vector, concat = [], [], 0, []
{lines}
    return torch.cat(tokens, dim=1) if tokens else None, torch.cat(masks, dim=1) if masks else None, vector, concat


@torch.no_grad()
def sample(conditions, noise=None, steps={steps}, guidance={guidance}):
    """An image (1, C, *SIZE) in [-1, 1], from a condition and noise (1, CHANNELS, *LATENT)."""
    tokens, mask, vector, concat = conditions
    x = torch.randn(1, CHANNELS, *LATENT) if noise is None else noise
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        inputs = torch.cat([torch.cat([x, x]), *concat], dim=1)
        uncond, cond = unet(inputs, t{unet_arguments}).sample.chunk(2)
        x = scheduler.step(uncond + guidance * (cond - uncond), t, x).prev_sample
    return vae.decode(x / vae.config.scaling_factor).sample


if __name__ == "__main__":
    from torchvision.utils import save_image

    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
{flags}    parser.add_argument("--steps", type=int, default={steps})
    parser.add_argument("--guidance", type=float, default={guidance})
    parser.add_argument("--out", type=Path, default=HERE / "sample.png")
    options = parser.parse_args()
    image = sample(condition({example}), steps=options.steps, guidance=options.guidance)
    save_image(image, options.out, normalize=True, value_range=(-1, 1))
    print(f"wrote {{options.out}}")
'''
BERT_IMPORT = "from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel\n"
HEADS_IMPORT = "from diffusers.models.attention_processor import Attention\n"
FLAGS = {  # of arguments that a command line can give; the others are set in the program
    "prompt": '    parser.add_argument("--prompt", default={example}, help="a text")\n',
    "label": '    parser.add_argument("--label", type=int, default={example}, help="the index of a class")\n',
}
HEADS = """for module in unet.modules():  # the UNet's config can express heads of one width only
    if isinstance(module, Attention):
        module.heads, module.scale = {heads}, (module.inner_dim / {heads}) ** -0.5
"""
TOKEN_ARGUMENTS = ", encoder_hidden_states=tokens, encoder_attention_mask=mask"
CLASS = 'rows = weights["parts.{name}.table.weight"][[-1, label]]\n'
EMBEDDED = CLASS + "vector = vector + rows"
ATTENDED = CLASS + "tokens.append(rows[:, None])\nmasks.append(torch.ones(2, 1))"
PIECES = """tokenizer = AutoTokenizer.from_pretrained(HERE / "{name}-tokenizer")
encoded = tokenizer(["", prompt], padding="max_length", max_length={length}, truncation=True, return_tensors="pt")
attended = encoded.attention_mask.float()
"""
PROJECTED = 'features = F.linear(features, weights["parts.{name}.projection.weight"], weights["parts.{name}.projection.bias"])\n'
APPENDED = "tokens.append(features)\nmasks.append(torch.ones(features.shape[:2]))"
MASKED = "tokens.append(features)\nmasks.append(attended)"
BERT_SCRATCH = 'features = LDMBertModel.from_pretrained(HERE / "{name}").eval()(encoded.input_ids{mask}, return_dict=False)[0]\n'
BERT_PRETRAINED = """encoder = AutoModel.from_pretrained(HERE / "{name}"{pooler}).eval()
features = encoder(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).last_hidden_state
part = {{name.removeprefix("parts.{name}."): tensor for name, tensor in weights.items()}}
normed = F.layer_norm(features, features.shape[-1:], part["norm.weight"], part["norm.bias"])
tokens.append(F.linear(normed, part["projection.weight"], part["projection.bias"]))
masks.append(attended)"""
SUMMARY = """
mean = (features * attended[..., None]).sum(1) / attended.sum(1, keepdim=True)
mean = F.layer_norm(mean, mean.shape[-1:], part["summary.0.weight"], part["summary.0.bias"])
vector = vector + F.linear(mean, part["summary.1.weight"], part["summary.1.bias"])"""
CLIP = 'features = CLIPTextModel.from_pretrained(HERE / "{name}").eval()(input_ids=encoded.input_ids).last_hidden_state\n'
BOXES = """last, places = {vocabulary} - 1, {grid} - 1
layout = torch.full((2, {length}), last)
layout[:, -2], layout[:, -1] = 0, {grid}**2 - 1
for i, (kind, *corners) in enumerate(boxes[:{boxes}]):
    left, top, right, bottom = (round(share * places) for share in corners)
    layout[1, 3 * i : 3 * i + 3] = torch.tensor([kind, top * {grid} + left, bottom * {grid} + right])
features = LDMBertModel.from_pretrained(HERE / "{name}").eval()(layout, return_dict=False)[0]
"""
MAP = """n = {cells}
pixels = F.interpolate(classes[None, None].float(), size=(n * LATENT[0], n * LATENT[1]), mode="nearest-exact")[:, 0].long()
pixels = F.one_hot(pixels % ({classes} + 1), {classes} + 1)[..., :{classes}].permute(0, 3, 1, 2).float()
cells = F.avg_pool2d(pixels, n)
cells = torch.cat([torch.zeros_like(cells), cells])
"""
MIXED = 'cells = F.conv2d(cells, weights["parts.{name}.mix.weight"])\n'
MASK = """known = vae.encode(image * (1 - hole)){mean} * vae.config.scaling_factor
hole = F.adaptive_max_pool2d((hole > 0).float(), LATENT)
concat.append(torch.cat([hole, known], dim=1).expand(2, -1, -1, -1))"""
BLACK_MASK = """known = vae.encode(image.masked_fill(hole > 0, -1)){mean} * vae.config.scaling_factor
hole = 2 * F.interpolate((hole > 0).float(), size=LATENT) - 1
concat.append(torch.cat([known, hole], dim=1).expand(2, -1, -1, -1))"""
SMALL = """if small.shape[2:] != LATENT:
    small = F.interpolate(small, size=LATENT, mode="bicubic", antialias=True).clamp(-1, 1)
concat.append(torch.cat([torch.zeros_like(small), small]))"""
ARGUMENTS: dict[type[ConditionerConfig], tuple[tuple[str, str, str], ...]] = {  # name, example, help text
    ClassLabelConfig: (("label", "0", "label: the index of a class"),),
    BertScratchConfig: (("prompt", '"a picture"', "prompt: a text"),),
    BertPretrainedConfig: (("prompt", '"a picture"', "prompt: a text"),),
    ClipPretrainedConfig: (("prompt", '"a picture"', "prompt: a text"),),
    BoxesConfig: (("boxes", "[(0, 0.2, 0.2, 0.8, 0.8)]", "boxes: class, left, top, right, bottom of each, as shares"),),
    SemanticMapConfig: (("classes", "torch.zeros(SIZE)", "classes: (H, W) of SIZE, the class of each pixel; -1: unknown"),),
    InpaintMaskConfig: (
        ("image", "torch.zeros(1, 3, *SIZE)", "image: (1, C, *SIZE) in [-1, 1]"),
        ("hole", "torch.ones(1, 1, *SIZE)", "hole: (1, 1, *SIZE), 1 = paint"),
    ),
    LowResolutionConfig: (("small", "torch.zeros(1, 3, *LATENT)", "small: (1, C, H, W) in [-1, 1]"),),
}


def snippet(spec: LatentDiffusionSpec, *, unet: str, autoencoder: str, scheduler: str, heads: int | None) -> str:
    """The text of the program.

    Args:
        spec: of the model.
        unet, autoencoder, scheduler: diffusers' classes of its parts.
        heads: number of heads in all attention, if the UNet's config cannot express it.

    Raises:
        UserError: a kind of conditioner without lines here.
    """
    arguments: dict[str, tuple[str, str]] = {}
    lines = []
    for name, config in spec.conditioning.items():
        if type(config) not in ARGUMENTS:
            raise UserError(f"conditioner {name} ({config.kind}) has no counterpart in diffusers, and the exported program cannot make one")
        arguments |= {argument: (example, text) for argument, example, text in ARGUMENTS[type(config)]}
        lines.append(_lines(name, config, spec, is_kl=autoencoder == "AutoencoderKL"))
    has_bert = any(config.kind in ("bert_scratch", "boxes") for config in spec.conditioning.values())
    token_arguments = TOKEN_ARGUMENTS if unet == "UNet2DConditionModel" else ""
    return FRAME.format(
        name=spec.name,
        autoencoder=autoencoder,
        scheduler=scheduler,
        unet=unet,
        imports=HEADS_IMPORT * (heads is not None) + BERT_IMPORT * has_bert,
        heads="" if heads is None else HEADS.format(heads=heads),
        size=height_width(spec.size),
        latent=spec.latent_size,
        channels=spec.first_stage.latent_channels,
        arguments=", ".join(arguments),
        help="".join(f" {text}." for _, text in arguments.values()),
        lines=indent("\n".join(lines) or "pass", "    "),
        steps=spec.sampling.steps,
        guidance=spec.sampling.guidance,
        unet_arguments=token_arguments + (", class_labels=vector" if spec.denoiser.vector_width else ""),
        flags="".join(FLAGS[name].format(example=example) for name, (example, _) in arguments.items() if name in FLAGS),
        example=", ".join(f"{name}=options.{name}" if name in FLAGS else f"{name}={example}" for name, (example, _) in arguments.items()),
    )


def _lines(name: str, config: ConditionerConfig, spec: LatentDiffusionSpec, *, is_kl: bool) -> str:
    """The program's lines for one conditioner."""
    match config:
        case ClassLabelConfig():
            return (EMBEDDED if config.how == "embed" else ATTENDED).format(name=name)
        case BertScratchConfig():
            mask = ", attention_mask=encoded.attention_mask" if config.is_masked else ""
            text = PIECES + BERT_SCRATCH + _projected(config.width, spec) + (MASKED if config.is_masked else APPENDED)
            return text.format(name=name, length=config.max_tokens, mask=mask)
        case BertPretrainedConfig():
            text = PIECES + BERT_PRETRAINED + (SUMMARY if config.vector_width else "")
            pooler = ", add_pooling_layer=False" if config.model == MINILM else ""  # ours has none
            return text.format(name=name, length=config.max_tokens, pooler=pooler)
        case ClipPretrainedConfig():
            return (PIECES + CLIP + APPENDED).format(name=name, length=config.max_tokens)
        case BoxesConfig():
            text = BOXES + _projected(config.width, spec) + APPENDED
            sizes = {"grid": config.grid, "vocabulary": config.vocabulary, "boxes": config.max_boxes, "length": 3 * config.max_boxes + 2}
            return text.format(name=name, **sizes)
        case SemanticMapConfig():
            text = MAP + ("" if config.channels is None else MIXED) + "concat.append(cells)"
            cells = "max(-(-side // cells) for side, cells in zip(classes.shape, LATENT))" if config.shares else 1
            return text.format(name=name, classes=config.classes, cells=cells)
        case InpaintMaskConfig():
            text = MASK if config.convention == "stable_diffusion" else BLACK_MASK
            return text.format(mean=".latent_dist.mode()" if is_kl else ".latents")
    return SMALL


def _projected(width: int, spec: LatentDiffusionSpec) -> str:
    return "" if width == spec.denoiser.context_width else PROJECTED
