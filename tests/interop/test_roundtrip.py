"""Export to diffusers and import are exact, with a pipeline or without; folders of older diffusers versions open as they do there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from interop_rows import KL, MANY, ROWS, SIZE, VQ, stable, write_clip, write_row
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, load_first_stage
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.core.errors import UserError
from ldm.diffusion.grid import Trailing
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours
from ldm.samplers.dpmpp_2m import DPMpp2M

CPU = torch.device("cpu")
STABLE = ("sd1", "sd1 mask", "sd2", "sd1 of codes", "sd2 of codes")
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(module_folder: Path) -> Made:
    """By name: a tiny model of ours, and its export; read-only. No pipeline runs CLIP with a codebook ("of codes")."""

    def make(name: str) -> tuple[Path, Path]:
        ours = module_folder / name.replace(" ", "-")
        out = module_folder / f"{ours.name}-diffusers"
        if not out.exists():
            row = {**ROWS, "many": MANY}.get(name)
            if row is None:
                encoder = module_folder / f"clip-{name[2]}"
                if not encoder.exists():
                    write_clip(encoder, is_open=name[2] == "2")
                row = stable(encoder, version=int(name[2]), has_mask="mask" in name)
                row = replace(row, first_stage=replace(VQ, code_channels=4)) if "codes" in name else row
            export_diffusers(Ours.open(write_row(ours, row)), out)
        return ours, out

    return make


def weights(folder: Path) -> dict[str, Tensor]:
    opened = Checkpoint.open(folder)
    parts = [part for part in ("first_stage", "denoiser", "conditioner") if opened.has(part)]
    return {f"{part}.{name}": tensor for part in parts for name, tensor in opened.tensors(part).items()}


def spec_of(folder: Path) -> LatentDiffusionSpec:
    return Checkpoint.open(folder).spec(LatentDiffusionSpec)


@pytest.mark.parametrize("name", [*ROWS, "many", *STABLE])
def test_export_and_import_are_exact(name: str, exported: Made, tmp_path: Path):
    """All weights and the spec, with the text encoder's digest, by a pipeline or by parts; only parts keep the model's name."""
    ours, folder = exported(name)
    is_of_parts = (folder / "load.py").exists()
    assert is_of_parts != (folder / "model_index.json").exists() and is_of_parts == (folder / "config.yaml").exists()
    is_named = name in STABLE and not is_of_parts  # a pipeline does not record the origin of its text encoder
    notes = import_checkpoint(folder, tmp_path / "again", text_encoder=str(ours.parent / f"clip-{name[2]}") if is_named else None)
    assert_close(weights(tmp_path / "again"), weights(ours), rtol=0, atol=0)
    again, expected = spec_of(tmp_path / "again"), spec_of(ours)
    assert replace(again, name="", sampling=expected.sampling) == replace(expected, name="")
    if is_of_parts:
        assert again == expected
    assert any("not copied" in note for note in notes) == (name in STABLE) and not (tmp_path / "again-text-encoder").exists()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sd2 of codes"])
def test_the_text_encoders_export_and_import_are_exact(name: str, exported: Made, tmp_path: Path):
    """Where the encoder that was exported is not available. Version 2's last layer is not read, and not exported."""
    ours, folder = exported(name)
    original = {key.removeprefix("text_model."): t for key, t in load_file(ours.parent / f"clip-{name[2]}" / "model.safetensors").items()}
    if "codes" in name:  # its config names the original
        shutil.copytree(folder, tmp_path / "moved")
        folder = tmp_path / "moved"
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace(str(ours.parent / "clip-2"), "/nowhere/clip"))
    notes = import_checkpoint(folder, tmp_path / "again")
    assert any("own weights" in note for note in notes)
    read = {key: tensor for key, tensor in original.items() if name == "sd1" or ".layers.1." not in key}
    again = load_file(tmp_path / "again-text-encoder" / "model.safetensors")
    assert_close({key.removeprefix("text_model."): tensor for key, tensor in again.items()}, read, rtol=0, atol=0)
    text = spec_of(tmp_path / "again").conditioning["text"]
    assert text == ClipPretrainedConfig(model=str((tmp_path / "again-text-encoder").absolute()), max_tokens=9)
    assert list(spec_of(tmp_path / "again").frozen) == [text.model]


def test_parts_with_a_measured_shift_and_scale(tmp_path: Path):
    """They went into the autoencoder, which is imported with its own normalization. Sampling settings are kept."""
    row = replace(ROWS["class"], first_stage=KL, normalization={"shift": (0.3, -0.2, 0.1), "scale": (1.2, 0.7, 1.0)})
    ours = write_row(tmp_path / "ours", row)
    opened = Ours.open(ours)
    sampling = replace(opened.spec.sampling, sampler=DPMpp2M(), grid=Trailing(), guidance_rescale=0.5)
    export_diffusers(replace(opened, spec=replace(opened.spec, sampling=sampling)), tmp_path / "folder")
    notes = import_checkpoint(tmp_path / "folder", tmp_path / "again")
    again = spec_of(tmp_path / "again")
    assert again.normalization.shift == (0.0,) and again.normalization.scale == (1.0,) and again.sampling == sampling and not notes
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    one, other = (load_first_stage(path, CPU)[0] for path in (ours, tmp_path / "again"))
    assert_close(other.encode(image), one.encode(image), rtol=1e-4, atol=1e-4)


def test_another_first_stage_beside_the_parts_is_reported(exported: Made, tmp_path: Path):
    """As after fine-tuning it there: it is imported, and the latent normalization gets its digest."""
    shutil.copytree(exported("class")[1], tmp_path / "folder")
    file = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    notes = import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert any("not the one that was exported" in note for note in notes)
    assert_close(
        load_first_stage(tmp_path / "again", CPU)[2]["codebook.weight"],
        load_first_stage(exported("class")[0], CPU)[2]["codebook.weight"] + 1,
        rtol=0,
        atol=0,
    )


def edit_yaml(folder: Path, key: str, value: object) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    *way, leaf = key.split(".")
    place = content
    for step in way:
        place = place[step]
    place[leaf] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def edit_json(folder: Path, file: str, key: str, value: object) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {key: value}))


def without(folder: Path, file: str) -> None:
    (folder / file).unlink()


def with_one_more(folder: Path, file: str) -> None:
    save_file(load_file(folder / file) | {"parts.giant": torch.zeros(3), "parts.boxes.giant": torch.zeros(3)}, folder / file)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: edit_yaml(folder, "evil", 1), "sets evil to 1"),
        (lambda folder: edit_yaml(folder, "denoiser.kind", "os.system"), "unknown .*os.system"),
        (lambda folder: edit_yaml(folder, "denoiser.blocks", 100_000), "denoiser.blocks is 100000; at most 128"),
        (lambda folder: edit_yaml(folder, "conditioning.boxes.depth", 100_000), "conditioning.boxes.depth is 100000; at most 128"),
        (lambda folder: edit_yaml(folder, "denoiser.channels", 10**9), "numbers up to"),
        (lambda folder: edit_yaml(folder, "denoiser.heads", 4), "attention_head_dim is 2, but by config.yaml it is 4"),
        (lambda folder: edit_yaml(folder, "learned_variance", True), "learned_variance has no counterpart"),
        (lambda folder: edit_json(folder, "scheduler/scheduler_config.json", "beta_end", 0.5), "beta_end is 0.5, but by config.yaml"),
        (lambda folder: edit_json(folder, "boxes/config.json", "d_model", 8), "d_model is 8, but by config.yaml it is 16"),
        (lambda folder: edit_json(folder, "vae/config.json", "scaling_factor", 2.0), "scaling_factor is 2.0"),
        (lambda folder: without(folder, "conditioner.safetensors"), "conditioner.safetensors: no such file"),
        (lambda folder: without(folder, "boxes/model.safetensors"), "has no weights"),
        (lambda folder: with_one_more(folder, "conditioner.safetensors"), r"parts.boxes.giant, of shape \(3,\), has no place"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: Callable[[Path], None], message: str, parts: Path, tmp_path: Path):
    shutil.copytree(parts, tmp_path / "folder")
    change(tmp_path / "folder")
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert "\n" not in str(caught.value) and not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def parts(module_folder: Path) -> Path:
    """The parts of a model conditioned on boxes, whose tokens are projected."""
    home = module_folder / "parts"
    row = ROWS["boxes"]
    wider = replace(row, unet=replace(row.unet, context_width=24))
    export_diffusers(Ours.open(write_row(home / "ours", wider)), home / "folder")
    return home / "folder"


def test_a_changed_bert_is_refused(exported: Made, tmp_path: Path):
    shutil.copytree(exported("many")[1], tmp_path / "folder")
    file = tmp_path / "folder" / "text" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"embeddings.LayerNorm.bias": tensors["embeddings.LayerNorm.bias"] + 1}, file)
    with pytest.raises(UserError, match="embeddings.LayerNorm.bias is not that of minilm-l6"):
        import_checkpoint(tmp_path / "folder", tmp_path / "again")


@pytest.mark.parametrize("name, part", [("faces", "unet"), ("sd1", "unet"), ("sd1", "text_encoder")])
def test_the_error_for_a_single_part_says_what_to_name_instead(name: str, part: str, exported: Made, tmp_path: Path):
    with pytest.raises(UserError, match=r"alone, which is not a model .* name the folder above it, of the whole pipeline") as caught:
        import_checkpoint(exported(name)[1] / part, tmp_path / "again")
    assert "\n" not in str(caught.value)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def with_old_names(folder: Path) -> int:
    """Rewrites a part as diffusers before version 0.16 wrote it; returns the number of changed names."""
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors, renamed = load_file(file), {}
    for key, tensor in tensors.items():
        start, found, rest = key.rpartition(".attentions.")
        number, _, inside = rest.partition(".")
        module, _, leaf = inside.rpartition(".")
        renamed[f"{start}{found}{number}.{OLD[module]}.{leaf}" if found and module in OLD else key] = tensor
    save_file(renamed, file, {"format": "pt"})
    return len(renamed.keys() - tensors.keys())


@pytest.mark.parametrize("part, kind, attentions", [("unet", diffusers.UNet2DModel, 6), ("vqvae", diffusers.VQModel, 7)])
def test_plain_attention_by_its_old_names(part: str, kind: type, attentions: int, tmp_path: Path):
    """Several per level, and in the middle: diffusers opens such a folder, and so do we, with the same weights."""
    row = replace(ROWS["faces"], first_stage=replace(VQ, blocks=2, attention=(2,)), unet=replace(ROWS["faces"].unet, blocks=2))
    ours = write_row(tmp_path / "ours", row)
    export_diffusers(Ours.open(ours), tmp_path / "folder")
    newer = kind.from_pretrained(tmp_path / "folder" / part).state_dict()
    assert with_old_names(tmp_path / "folder" / part) == 8 * attentions
    assert_close(kind.from_pretrained(tmp_path / "folder" / part).state_dict(), newer, rtol=0, atol=0)
    import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert_close(weights(tmp_path / "again"), weights(ours), rtol=0, atol=0)

    file = tmp_path / "folder" / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    old = next(key for key in tensors if key.endswith(".query.weight"))
    save_file(tensors | {old.replace("query", "to_q"): torch.zeros_like(tensors[old])}, file)
    with pytest.raises(UserError, match=r"query.weight, of shape .*, has no place"):  # both names: neither tensor is lost silently
        import_checkpoint(tmp_path / "folder", tmp_path / "third")
