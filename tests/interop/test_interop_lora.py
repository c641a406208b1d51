"""A LoRA in diffusers, on the exported base: the same predictions and images as ours, and as those of the merged export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from interop_rows import CROSS, KL_4, ROWS, SIZE, Row, random_weights, stable, write_clip, write_row
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.lora import LoraSpec, load_lora, load_with_lora, write_lora
from ldm.checkpoints.model import denoiser_digest, load_latent_diffusion, write_latent_diffusion
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.lora.export import FILE, export_lora_diffusers, export_lora_file
from ldm.interop.ours import Ours
from ldm.networks.lora import TABLES, Lora, adapt
from ldm.networks.unet import UNetConfig

pytestmark = pytest.mark.parity
CPU = torch.device("cpu")
LDM_TEXT = Row(
    unet=CROSS,
    conditioning={"text": BertScratchConfig(width=24, depth=1, heads=2, head_width=8, max_tokens=77, is_masked=False)},
    first_stage=replace(KL_4, multipliers=(1, 1, 1, 1)),
)
PUBLISHED = UNetConfig(channels=320, multipliers=(1, 2, 4, 4), heads=8, context_width=768)  # Stable Diffusion 1


@pytest.fixture(scope="module")
def base(module_folder: Path) -> Callable[[str], Path]:
    """By name: a tiny model of ours, in `ours`, and its export, in `diffusers`; read-only."""

    def make(name: str) -> Path:
        home = module_folder / name
        if not home.exists():
            rows = {"ldm-text": LDM_TEXT, "class": ROWS["class"], "faces": ROWS["faces"]}
            row = rows[name] if name in rows else stable(write_clip(home / "clip", is_open=name == "sd2"), version=int(name[2]))
            write_row(home / "ours", row, 64 if name == "ldm-text" else SIZE)
            if name != "faces":
                export_diffusers(Ours.open(home / "ours"), home / "diffusers")
        return home

    return make


@pytest.fixture(scope="module")
def pipelines(base: Callable[[str], Path]) -> Callable[[str], diffusers.StableDiffusionPipeline]:
    """By name: the export as a pipeline; a test that loads a LoRA into it must unload it."""
    opened: dict[str, diffusers.StableDiffusionPipeline] = {}

    def open_one(name: str) -> diffusers.StableDiffusionPipeline:
        if name not in opened:
            opened[name] = diffusers.StableDiffusionPipeline.from_pretrained(base(name) / "diffusers")
            opened[name].set_progress_bar_config(disable=True)
        return opened[name]

    return open_one


def write_random(home: Path, folder: Path, lora: Lora) -> Path:
    """A LoRA in which nothing is zero."""
    parts, digest = load_latent_diffusion(home / "ours", CPU), denoiser_digest(home / "ours")
    adapters = adapt(parts.network, lora, digest, 0)
    random_weights(adapters, 9)
    write_lora(folder, LoraSpec(name="mine", base=parts.spec, base_digest=digest, lora=lora), adapters.tensors(), "# tiny\n")
    return folder


@torch.no_grad()
def ours_and_theirs(network: nn.Module, unet: diffusers.UNet2DConditionModel) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, unet.config.in_channels, 8, 8, generator=draw)
    tokens = torch.randn(2, 7, unet.config.cross_attention_dim, generator=draw)
    t = torch.tensor([3.0, 871.0])
    projection = unet.encoder_hid_proj  # of LDMTextToImagePipeline, which projects tokens in the UNet; ours are projected before
    unet.encoder_hid_proj = unet.config.encoder_hid_dim_type = None
    theirs = unet(x, t, tokens).sample
    unet.encoder_hid_proj = projection
    return network(x, t, Condition(tokens=tokens)), theirs


def image_of(pipeline: diffusers.StableDiffusionPipeline) -> Tensor:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    side = 16 * pipeline.vae_scale_factor
    return pipeline("a cat", latents=noise, height=side, width=side, num_inference_steps=5, output_type="pt").images


def near(ours: Tensor, theirs: Tensor) -> None:
    assert_close(theirs, ours, rtol=0, atol=1e-4 * ours.std().item())


@pytest.mark.parametrize("name, rank, targets", [*(("sd1", 4, targets) for targets in TABLES), ("sd2", 3, "all")])
def test_a_pipeline_with_the_lora_predicts_what_we_predict(name: str, rank: int, targets: str, base, pipelines, tmp_path: Path):
    """By diffusers' own loader, from the folder and from the single file."""
    home, pipeline = base(name), pipelines(name)
    folder = write_random(home, tmp_path / "lora", Lora(rank=rank, alpha=6.0, targets=targets))
    notes = export_lora_diffusers(load_lora(folder), tmp_path / "out")
    export_lora_file(load_lora(folder), tmp_path / "single.safetensors")
    assert "goes with ours" in notes[0]
    changed, plain = load_with_lora(home / "ours", folder, 1.0, CPU), load_latent_diffusion(home / "ours", CPU)
    unchanged, theirs = ours_and_theirs(plain.network, pipeline.unet)
    near(unchanged, theirs)
    for place in (tmp_path / "out", tmp_path / "single.safetensors"):
        pipeline.load_lora_weights(place)
        ours, theirs = ours_and_theirs(changed.network, pipeline.unet)
        near(ours, theirs)
        assert (ours - unchanged).abs().max() > 0.1 * unchanged.std()
        pipeline.unload_lora_weights()


def test_the_merged_export_and_the_base_with_the_lora_give_the_same_images(base, pipelines, tmp_path: Path):
    """Sampled in diffusers; the merged model's prediction is also ours."""
    home = base("sd1")
    folder = write_random(home, tmp_path / "lora", Lora(rank=4, targets="transformer"))
    parts = load_with_lora(home / "ours", folder, 1.0, CPU)
    opened = Checkpoint.open(home / "ours")
    weights = parts.network.state_dict()
    write_latent_diffusion(tmp_path / "merged", parts.spec, opened.tensors("first_stage"), weights, {}, "# tiny\n", 1 << 30)
    export_diffusers(Ours.open(tmp_path / "merged"), tmp_path / "merged-diffusers")
    export_lora_diffusers(load_lora(folder), tmp_path / "out")

    pipeline, whole = pipelines("sd1"), diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "merged-diffusers")
    whole.set_progress_bar_config(disable=True)
    base_image = image_of(pipeline)
    pipeline.load_lora_weights(tmp_path / "out")
    assert_close(image_of(whole), image_of(pipeline), rtol=0, atol=1e-4)
    assert (image_of(whole) - base_image).abs().max() > 0.02
    pipeline.unload_lora_weights()
    near(*ours_and_theirs(load_latent_diffusion(tmp_path / "merged", CPU).network, whole.unet))


@pytest.mark.parametrize("name", ["ldm-text", "class"])
def test_a_unet_of_another_pipeline_loads_it_by_its_own_loader(name: str, base, tmp_path: Path):
    home = base(name)
    folder = write_random(home, tmp_path / "lora", Lora(rank=2, alpha=1.0, targets="all"))
    export_lora_diffusers(load_lora(folder), tmp_path / "out")
    unet = diffusers.UNet2DConditionModel.from_pretrained(home / "diffusers" / "unet")
    assert f'prefix="unet", weight_name="{FILE}"' in (tmp_path / "out" / "README.md").read_text()
    unet.load_lora_adapter(tmp_path / "out", prefix="unet", weight_name=FILE)
    near(*ours_and_theirs(load_with_lora(home / "ours", folder, 1.0, CPU).network, unet))


def test_the_file_is_exact_where_alpha_is_the_rank(base, tmp_path: Path):
    """A and B bit for bit, under diffusers' names, and nothing else."""
    folder = write_random(base("sd1"), tmp_path / "lora", Lora(rank=4))
    export_lora_diffusers(load_lora(folder), tmp_path / "out")
    ours, theirs = load_lora(folder).tensors, load_file(tmp_path / "out" / FILE)
    assert sorted(theirs) == sorted(f"unet.{name}" for name in map(diffusers_name, ours))
    assert all(torch.equal(theirs[f"unet.{diffusers_name(name)}"], tensor) for name, tensor in ours.items())


def diffusers_name(ours: str) -> str:
    """The names of the attention layers in the tiny Stable Diffusion, written by hand."""
    places = {
        "input_blocks.1.1": "down_blocks.0.attentions.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0",
        "middle_block.1": "mid_block.attentions.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.2.1": "up_blocks.1.attentions.0",
        "output_blocks.3.1": "up_blocks.1.attentions.1",
    }
    start, rest = ours.split(".transformer_blocks.")
    return f"{places[start]}.transformer_blocks.{rest}".replace("to_out.", "to_out.0.")


def test_attention_is_what_diffusers_own_training_adapts():
    """Stable Diffusion 1 at rank 4, counted: diffusers' training script names to_k, to_q, to_v and to_out.0."""
    with torch.device("meta"):
        adapters = adapt(PUBLISHED.build(4, 4), Lora(rank=4), "base", 0)
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    theirs = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    assert sum(p.numel() for p in adapters.parameters()) == theirs == 797_184


def test_a_lora_that_no_peer_opens_is_refused_and_nothing_written(base, tmp_path: Path):
    plain = load_lora(write_random(base("faces"), tmp_path / "plain", Lora(rank=2)))
    stable_lora = load_lora(write_random(base("sd1"), tmp_path / "stable", Lora(rank=2)))
    with pytest.raises(UserError, match="only UNets with transformers take a LoRA in other tools"):
        export_lora_diffusers(plain, tmp_path / "out")
    with pytest.raises(UserError, match="only UNets with transformers take a LoRA in other tools"):
        export_lora_file(plain, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="a LoRA's file ends in .safetensors"):
        export_lora_file(stable_lora, tmp_path / "out.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "stable"}
    assert "is not Stable Diffusion 1 or 2" in export_lora_file(stable_lora, tmp_path / "out.safetensors")[0]
