"""A checkpoint is read back bit for bit, or refused with one line that states the fault; a failed write keeps the old one."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ldm.checkpoints import folder as folder_module
from ldm.checkpoints.folder import Checkpoint, write_checkpoint
from ldm.checkpoints.model import LoadedParts, load_first_stage, load_latent_diffusion, write_autoencoder
from ldm.conditioning.conditioner import Conditioners
from ldm.config.loader import dump
from ldm.core.errors import UserError
from ldm.core.files import _beside, sha256_of
from ldm.first_stage.latent_normalization import weights_digest

ALL = ("text", "class", "mask", "map")
CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """A checkpoint that the test may damage."""
    return write_model(tmp_path / "model", ("class", "mask"))


def weights_of(parts: LoadedParts) -> dict[str, torch.Tensor]:
    modules = {"first_stage": parts.first_stage, "denoiser": parts.network, "conditioner": parts.conditioners}
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def sealed(folder: Path) -> Path:
    """The folder with a manifest that matches its changed files, as after a deliberate edit."""
    files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in folder.iterdir() if f.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"tool": "ldm", "files": files}))
    return folder


def edit_config(folder: Path, change: Callable[[dict], None]) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return sealed(folder)


def refusal(folder: Path) -> str:
    """The one-line error of loading."""
    with pytest.raises(UserError) as caught:
        load_latent_diffusion(folder, CPU)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


def test_a_card_may_be_edited(model: Path):
    card = model / "README.md"
    card.write_text(card.read_text() + "\nNotes added later.\n")
    load_latent_diffusion(model, CPU)


@pytest.mark.parametrize("conditions, first_stage", [(ALL, "kl"), ((), "kl"), (("mask",), "identity")])
def test_a_checkpoint_comes_back_to_the_bit(tmp_path, write_model, conditions, first_stage):
    loaded = load_latent_diffusion(write_model(tmp_path / "a", conditions, first_stage=first_stage), CPU)
    again = load_latent_diffusion(write_model(tmp_path / "b", conditions, first_stage=first_stage), CPU)
    assert set(loaded.spec.conditioning) == set(conditions)
    assert_close(weights_of(again), weights_of(loaded), rtol=0, atol=0)

    stored = load_file(tmp_path / "a" / "denoiser.safetensors")
    assert_close(dict(loaded.network.state_dict()), stored, rtol=0, atol=0)
    assert not any(p.requires_grad for p in loaded.network.parameters()) and not loaded.network.training
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()) == dump(loaded.spec)


def test_large_parts_are_split_and_come_back_to_the_bit(tmp_path, write_model):
    limit = 150_000
    whole, split = write_model(tmp_path / "whole", ALL), write_model(tmp_path / "split", ALL, max_file_bytes=limit)
    pieces = sorted(f.name for f in split.glob("denoiser-*"))
    assert len({file.stat().st_mode for file in split.iterdir()}) == 1  # weights are as readable as the config
    assert len(pieces) > 3 and pieces[0] == f"denoiser-00001-of-{len(pieces):05d}.safetensors"
    for file in split.glob("*.safetensors"):
        assert file.stat().st_size <= limit or len(load_file(file)) == 1, f"{file.name} has {file.stat().st_size} bytes"
    assert_close(weights_of(load_latent_diffusion(split, CPU)), weights_of(load_latent_diffusion(whole, CPU)), rtol=0, atol=0)

    (split / pieces[1]).unlink()
    assert f"{pieces[1]} is missing" in refusal(split)


def test_tensor_names_count_towards_the_size_of_a_file(tmp_path):
    tensors = {f"{'layer.' * 30}{i}": torch.zeros(1) for i in range(400)}  # more names than numbers
    write_checkpoint(tmp_path / "m", "{}", {"denoiser": tensors}, "", 20_000)
    sizes = [f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors")]
    assert max(sizes) <= 20_000 and len(sizes) < 12
    assert Checkpoint.open(tmp_path / "m").tensors("denoiser").keys() == tensors.keys()


def test_half_precision(tmp_path, write_model):
    whole = weights_of(load_latent_diffusion(write_model(tmp_path / "whole", ("class",)), CPU))
    folder = write_model(tmp_path / "half", ("class",), dtype=torch.float16)
    assert (folder / "denoiser.safetensors").stat().st_size < 0.55 * (tmp_path / "whole" / "denoiser.safetensors").stat().st_size
    half = weights_of(load_latent_diffusion(folder, CPU))
    assert_close(half, {name: value.half().float() for name, value in whole.items()}, rtol=0, atol=0)


def test_the_first_stage_of_a_stage_two_checkpoint_is_as_stored(tmp_path, write_model):
    folder = write_model(tmp_path / "half", ("class",), dtype=torch.float16)
    first_stage, spec, weights = load_first_stage(folder, CPU)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    write_autoencoder(tmp_path / "first", spec, weights, "# card\n", 1 << 30)
    again, spec_again, weights_again = load_first_stage(tmp_path / "first", CPU)
    assert spec_again == spec and spec.normalization.scale == (1.5,) and again.normalization == first_stage.normalization
    assert_close(weights_again, weights, rtol=0, atol=0)
    assert "holds a first stage only" in refusal(tmp_path / "first")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda m: (m / "denoiser.safetensors").write_bytes((m / "denoiser.safetensors").read_bytes()[:-1]), "bytes instead of"),
    "one bit of the weights": (lambda m: flip(m / "denoiser.safetensors"), "denoiser.safetensors was altered"),
    "one bit of the first stage": (lambda m: flip(m / "first_stage.safetensors"), "first_stage.safetensors was altered"),
    "one bit of the config": (lambda m: flip(m / "config.yaml"), "config.yaml was altered"),
    "a file gone": (lambda m: (m / "conditioner.safetensors").unlink(), "conditioner.safetensors is missing"),
    "no manifest": (lambda m: (m / "manifest.json").unlink(), "no manifest.json"),
    "manifest cut": (lambda m: (m / "manifest.json").write_text((m / "manifest.json").read_text()[:99]), "manifest.json is damaged"),
    "manifest without sizes": (lambda m: (m / "manifest.json").write_text('{"files": {"config.yaml": {}}}'), "manifest.json is damaged"),
    "manifest not of files": (lambda m: (m / "manifest.json").write_text('{"files": [1]}'), "manifest.json is damaged"),
    "manifest not text": (lambda m: (m / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json is damaged"),
    "manifest names a file elsewhere": (
        lambda m: (m / "manifest.json").write_text('{"files": {"../x": {"bytes": 1, "sha256": ""}}}'),
        "not a file of this folder",
    ),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused(model, damage, message):
    damage(model)
    assert message in refusal(model)


CONFIGS = {
    "not YAML": ("a: [1", "config.yaml cannot be read"),
    "not a mapping": ("- 1", "must be a mapping of keys, found list"),
    "not text": ("\x00", "config.yaml cannot be read"),
}


@pytest.mark.parametrize("content, message", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_is_refused_even_with_a_matching_manifest(model, content, message):
    (model / "config.yaml").write_text(content)
    assert message in refusal(sealed(model))


def test_a_config_of_other_kinds_is_refused(model):
    edit_config(model, lambda c: c["denoiser"].update(kind="unett"))
    text = refusal(model)
    assert "'unett'" in text and "Did you mean 'unet'?" in text
    edit_config(model, lambda c: c["denoiser"].update(kind="unet", blokcs=2))
    assert "denoiser.blokcs" in refusal(model)


def test_weights_of_another_config_are_refused(model):
    stored = load_file(model / "denoiser.safetensors")
    name = next(iter(stored))
    save_file(stored | {"extra.weight": torch.zeros(1)}, model / "denoiser.safetensors")
    assert "denoiser: tensor 'extra.weight' is unexpected" in refusal(sealed(model))
    save_file({key: value for key, value in stored.items() if key != name}, model / "denoiser.safetensors")
    assert f"denoiser: tensor {name!r} is missing" in refusal(sealed(model))
    save_file(stored | {name: stored[name][:1].clone()}, model / "denoiser.safetensors")
    assert f"denoiser: tensor {name!r} has shape (1," in refusal(sealed(model))
    (model / "denoiser.safetensors").unlink()
    assert "'denoiser'; allowed: conditioner, first_stage" in refusal(sealed(model))


def test_another_first_stage_is_refused(model):
    stored = load_file(model / "first_stage.safetensors")
    name = next(iter(stored))
    save_file(stored | {name: stored[name] * 1.001}, model / "first_stage.safetensors")
    assert "not those for which its latent normalization was measured" in refusal(sealed(model))
    with pytest.raises(UserError, match="latent normalization"):
        load_first_stage(model, CPU)


def test_a_latent_normalization_of_another_shape_is_refused(model):
    edit_config(model, lambda c: c["normalization"].update(downsampling_factor=4))
    assert "latent normalization has 2 channels at downsampling factor 4, its first stage 2 at 2" in refusal(model)


@pytest.mark.parametrize("known, hint", [({}, "none"), ({"minilm-l6": "aaaa"}, "aaaa")])
def test_another_pretrained_encoder_is_refused(model, monkeypatch, known, hint):
    monkeypatch.setattr(Conditioners, "frozen_digests", lambda self: {"minilm-l6": "bbbb"})
    edit_config(model, lambda c: c.update(frozen=known))
    assert f"another pretrained encoder 'minilm-l6' than the one at hand (sha256 {hint}, not bbbb)" in refusal(model)
    edit_config(model, lambda c: c.update(frozen={"minilm-l6": "bbbb"}))
    assert load_latent_diffusion(model, CPU).spec.frozen == {"minilm-l6": "bbbb"}


def test_no_folder_and_the_run_folder_instead_of_its_checkpoint(tmp_path, write_model):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    write_model(tmp_path / "run" / "checkpoint", ())
    assert refusal(tmp_path / "run").endswith(f"did you mean {tmp_path / 'run' / 'checkpoint'}?")


def test_a_full_disk_leaves_the_checkpoint_that_was_there(model, monkeypatch, write_model):
    before = weights_of(load_latent_diffusion(model, CPU))
    written = []

    def full(tensors: dict, path: Path, metadata: None) -> None:
        if written:
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        written.append(path)
        save_file(tensors, path)

    monkeypatch.setattr(folder_module, "save_file", full)
    with pytest.raises(OSError) as caught:
        write_model(model, ("class", "mask"), dtype=torch.float16)
    assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith("denoiser.safetensors")
    assert [f.name for f in model.parent.iterdir()] == ["model"]
    assert_close(weights_of(load_latent_diffusion(model, CPU)), before, rtol=0, atol=0)


def test_a_kill_between_the_renames_is_repaired_by_the_next_write(model, write_model):
    model.rename(_beside(model, "old"))
    _beside(model, "tmp").mkdir()
    write_model(model, ("class", "mask"))
    assert [f.name for f in model.parent.iterdir()] == ["model"]
    assert load_latent_diffusion(model, CPU).spec.name == "tiny"


def test_checkpoints_from_before_a_key_open_with_its_default(model):
    """Checkpoints written before guidance had limits and before network_input existed."""

    def older(config: dict) -> None:
        del config["sampling"]["guidance_interval"], config["sampling"]["guidance_rescale"], config["network_input"]

    spec = load_latent_diffusion(model, CPU).spec
    assert load_latent_diffusion(edit_config(model, older), CPU).spec == spec
    edit_config(model, lambda c: c["sampling"].update(guidance_interval=[2.0, 1.0]))
    assert "a guidance interval is two noise levels sigma / alpha, 0 <= low <= high, got 2.0 and 1.0" in refusal(model)


def test_unknown_keys_of_a_first_stage_are_refused(tmp_path, model):
    _, spec, weights = load_first_stage(model, CPU)
    write_autoencoder(tmp_path / "first", spec, weights, "", 1 << 30)
    edit_config(tmp_path / "first", lambda c: c.update(sice=16))
    with pytest.raises(UserError, match=r"unknown config key 'sice'.*Did you mean 'size'"):
        load_first_stage(tmp_path / "first", CPU)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, write_model, monkeypatch):
    """After each file that is read, another model of the same shapes takes its place, twice: what is loaded is all of the last."""
    place, others = write_model(tmp_path / "model", ("class",)), []
    for number in (1, 2):
        other = write_model(tmp_path / f"other-{number}", ("class",))
        for part in ("denoiser", "conditioner"):
            stored = load_file(other / f"{part}.safetensors")
            save_file({name: value + number for name, value in stored.items()}, other / f"{part}.safetensors")
        others.append(sealed(other))
    wanted = weights_of(load_latent_diffusion(others[-1], CPU))
    read = folder_module._read

    def slow(file, dtypes):
        found = read(file, dtypes)
        if others:
            shutil.rmtree(place)
            others.pop(0).rename(place)
        return found

    monkeypatch.setattr(folder_module, "_read", slow)
    assert_close(weights_of(load_latent_diffusion(place, CPU)), wanted, rtol=0, atol=0)


def test_a_checkpoint_that_is_gone_while_it_is_read_is_refused(model, monkeypatch):
    monkeypatch.setattr(folder_module, "_read", lambda file, dtypes: shutil.rmtree(file.parent) or load_file(file))
    with pytest.raises(UserError, match="no such folder"):
        load_latent_diffusion(model, CPU)


def test_replacing_a_checkpoint_keeps_its_owners_card_and_notes(tmp_path):
    """Twice: the second time what was kept is a user's file like any other."""
    place = tmp_path / "m"
    write_checkpoint(place, "a: 1", {"denoiser": {"w": torch.zeros(2)}}, "the card")
    (place / "README.md").write_text("my card")
    (place / "notes.txt").write_text("mine")
    for number in (2, 3):
        write_checkpoint(place, f"a: {number}", {"denoiser": {"w": torch.ones(2)}}, f"card {number}")
    found = {path.name: path.read_text() for path in place.iterdir() if path.suffix in (".md", ".txt", ".yaml")}
    assert found == {"README.md": "card 3", "README.kept.md": "my card", "notes.txt": "mine", "config.yaml": "a: 3"}
    Checkpoint.open(place)


def test_a_folder_that_is_no_checkpoint_is_not_replaced_by_one(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "a.jpg").write_text("mine")
    with pytest.raises(UserError, match="checkpoint was not written by this tool"):
        write_checkpoint(tmp_path / "checkpoint", "a: 1", {}, "")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "a.jpg"]


@pytest.mark.parametrize("part", ["denoiser", "conditioner", "first_stage"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_even_with_a_matching_manifest(model: Path, part: str, number: float) -> None:
    file = model / f"{part}.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[-1] = number
    save_file(tensors, file)
    if part == "first_stage":
        edit_config(model, lambda config: config["normalization"].update(digest=weights_digest(tensors)))
    assert f"tensor {name!r} holds NaN or infinity" in refusal(sealed(model))


def test_weights_beyond_the_range_of_what_they_are_stored_in_are_refused(tmp_path: Path) -> None:
    """What was there before stays."""
    write_checkpoint(tmp_path / "model", "a: 1\n", {"part": {"weight": torch.ones(2)}}, "# card\n")
    before = (tmp_path / "model" / "part.safetensors").read_bytes()
    large = {"weight": torch.tensor([1.0, 7e4]).half()}
    with pytest.raises(UserError, match=r"part: tensor 'weight' is not finite in float16, whose largest number is 6.55e\+04: store bf"):
        write_checkpoint(tmp_path / "model", "a: 1\n", {"part": large}, "# card\n")
    assert (tmp_path / "model" / "part.safetensors").read_bytes() == before
