"""Diffusers' own readers of CompVis's files open our exports: they give every tensor the name that it has in our export to diffusers.

So names and YAML are checked by code that is independent of ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from interop_rows import ROWS, SIZE, stable, write_clip, write_row
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextModel

from ldm.checkpoints.model import LoadedParts, load_latent_diffusion
from ldm.core.condition import Condition
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.ours import Ours

pytestmark = pytest.mark.parity
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of the largest number
STABLE = ("sd1", "sd1 mask", "sd2")
CONDITIONAL = (*STABLE, "class", "text", "boxes")  # the models whose UNets diffusers reads from such files
WITH_KL = (*STABLE, "text", "boxes")
CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One model in three formats; and the folder of its CLIP text encoder, if it has one."""

    ours: Path
    file: Path
    diffusers: Path
    clip: Path

    def single(self) -> dict[str, Tensor]:
        """The single file's tensors."""
        return load_file(self.file)

    def parts(self) -> LoadedParts:
        return load_latent_diffusion(self.ours, CPU)


@pytest.fixture(scope="module")
def exported(module_folder: Path) -> Callable[[str], Exported]:
    """By name; read-only."""

    def make(name: str) -> Exported:
        home, clip = module_folder / name.replace(" ", "-"), module_folder / f"clip-{name[2]}"
        made = Exported(ours=home / "ours", file=home / "model.safetensors", diffusers=home / "diffusers", clip=clip)
        if not home.exists():
            row = ROWS.get(name)
            if row is None:
                if not clip.exists():
                    write_clip(clip, is_open=name[2] == "2")
                row = stable(clip, version=int(name[2]), has_mask="mask" in name)
            model = Ours.open(write_row(made.ours, row))
            export_compvis(model, made.file)
            export_diffusers(model, made.diffusers)
        return made

    return make


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Asserts the same names, and under each name the same numbers."""
    assert (sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())) == ([], []), "missing, and left over"
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def shaped_as(found: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Version 2's transformers have linear projections, which are 1x1 convolutions with the same numbers."""
    ends = (".proj_in.weight", ".proj_out.weight") if name == "sd2" else ()
    return {key: tensor.reshape(found[key].shape) if key.endswith(ends) else tensor for key, tensor in wanted.items()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_tensor_of_the_unet_is_found(name: str, exported):
    made = exported(name)
    folder = made.diffusers / "unet"
    found = convert_ldm_unet_checkpoint(made.single(), config_of(folder))
    same(found, shaped_as(found, diffusers.UNet2DConditionModel.from_pretrained(folder).state_dict(), name))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_tensor_of_the_first_stage_is_found(name: str, exported):
    """The reader supports KL autoencoders only, so a codebook, which has the same name everywhere, is added to its result."""
    made = exported(name)
    folder = made.diffusers / "vae"
    file = made.single()
    found = convert_ldm_vae_checkpoint(file, config_of(folder))
    if isinstance(made.parts().spec.first_stage, VQAutoencoderConfig):
        found[CODEBOOK] = file[f"first_stage_model.{CODEBOOK}"]
    same(found, getattr(diffusers, config_of(folder)["_class_name"]).from_pretrained(folder).state_dict())


@pytest.mark.parametrize("name", STABLE)
def test_every_tensor_of_the_text_encoder_is_found(name: str, exported):
    made = exported(name)
    tower = CLIPTextModel.from_pretrained(made.clip)
    found = convert_open_clip_checkpoint(tower, made.single()) if name == "sd2" else convert_ldm_clip_checkpoint(made.single())
    one, other = ({key.removeprefix("text_model."): tensor for key, tensor in state.items()} for state in (found, tower.state_dict()))
    same(one, other)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_unet_that_the_yaml_describes_predicts_what_ours_does(name: str, exported):
    """Built by diffusers from the single file and its YAML alone, so levels, heads, depth and projections must be right in the YAML."""
    made = exported(name)
    unet = diffusers.UNet2DConditionModel.from_single_file(str(made.file), original_config=str(made.file.with_suffix(".yaml")))
    draw = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, unet.config.in_channels, 8, 8, generator=draw), torch.tensor([3.0, 871.0])
    tokens = torch.randn(2, 7, unet.config.cross_attention_dim, generator=draw)
    latents = unet.config.out_channels
    condition = Condition(tokens=tokens, concat=x[:, latents:]) if unet.config.in_channels > latents else Condition(tokens=tokens)
    with torch.no_grad():
        near(made.parts().network(x[:, :latents], t, condition), unet(x, t, tokens).sample)


@pytest.mark.parametrize("name", WITH_KL)
def test_the_first_stage_that_the_yaml_describes_is_ours(name: str, exported):
    made = exported(name)
    vae = diffusers.AutoencoderKL.from_single_file(str(made.file), original_config=str(made.file.with_suffix(".yaml")))
    first_stage = made.parts().first_stage
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.no_grad():
        latent = first_stage.encode(image)
        near(latent, vae.encode(image).latent_dist.mode() * vae.config.scaling_factor)
        near(first_stage.decode(latent), vae.decode(latent / vae.config.scaling_factor).sample)


def near(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-2, "the network's output is constant"
    assert_close(ours, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item())


@pytest.mark.parametrize("name", STABLE)
def test_the_single_file_opens_as_a_pipeline(name: str, exported, tmp_path: Path):
    """By `from_single_file`, which takes sizes from a diffusers folder, here without weights and, as published, with linear layers in
    version 2. The reader finds the unused last layer of version 2's text encoder by its number, 23, so the tiny encoder is passed in.
    """
    made = exported(name)
    kind = diffusers.StableDiffusionInpaintPipeline if "mask" in name else diffusers.StableDiffusionPipeline
    folder = kind.from_pretrained(made.diffusers)
    given = {"text_encoder": folder.text_encoder} if name == "sd2" else {}
    shutil.copytree(made.diffusers, tmp_path / "sizes", ignore=shutil.ignore_patterns("*.safetensors"))
    config = config_of(made.diffusers / "unet") | ({"use_linear_projection": True} if name == "sd2" else {})
    (tmp_path / "sizes" / "unet" / "config.json").write_text(json.dumps(config))
    pipeline = kind.from_single_file(str(made.file), config=str(tmp_path / "sizes"), local_files_only=True, **given)
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(pipeline, part).state_dict()
        same(found, shaped_as(found, getattr(folder, part).state_dict(), name))
