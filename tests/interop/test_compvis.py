"""Files of CompVis's code and of Stable Diffusion: export and import bit for bit, variants that are read, and files that are refused."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from interop_rows import ROWS, stable, write_clip, write_row
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, load_first_stage, load_latent_diffusion
from ldm.core.errors import UserError
from ldm.interop import foreign_file
from ldm.interop.compvis.export import export_compvis
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(module_folder: Path) -> Callable[[str], Path]:
    """By name, the folder of a tiny model of ours and its exports; read-only."""

    def row(name: str) -> Path:
        folder = module_folder / name.replace(" ", "-")
        if not folder.exists():
            if name.startswith("sd"):
                encoder = module_folder / f"clip-{name[2]}"
                if not encoder.exists():
                    write_clip(encoder, is_open=name[2] == "2")
                write_row(folder, stable(encoder, version=int(name[2]), has_mask="mask" in name))
            else:
                write_row(folder, ROWS[name])
        return folder

    return row


def everything(folder: Path) -> dict[str, Tensor]:
    opened = Checkpoint.open(folder)
    parts = [part for part in ("first_stage", "denoiser", "conditioner") if opened.has(part)]
    return {f"{part}.{name}": tensor for part in parts for name, tensor in opened.tensors(part).items()}


def same_model(ours: Path, again: Path) -> None:
    """All weights bit for bit, and the same spec."""
    assert_close(everything(again), everything(ours), rtol=0, atol=0)
    one, other = (Checkpoint.open(folder).spec(LatentDiffusionSpec) for folder in (ours, again))
    for name in ("size", "first_stage", "normalization", "process", "prediction", "network_input", "frozen"):
        assert getattr(one, name) == getattr(other, name), name
    assert set(one.denoiser.attention) == set(other.denoiser.attention)
    assert one.conditioning == other.conditioning and list(one.conditioning) == list(other.conditioning)


@pytest.mark.parametrize("name", ROWS)
def test_export_and_import_are_exact(name: str, rows: Callable[[str], Path], tmp_path: Path):
    """Every published kind, with no tensor left over."""
    file = tmp_path / ("model.ckpt" if name in ("class", "text") else "model.safetensors")
    export_compvis(Ours.open(rows(name)), file)
    notes = import_checkpoint(file, tmp_path / "again", config=tmp_path / "model.yaml")
    same_model(rows(name), tmp_path / "again")
    assert any("no EMA" in note for note in notes)
    assert any("predict words" in note for note in notes) == (name in ("text", "boxes"))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sd1 mask"])
@pytest.mark.parametrize("has_config", [False, True], ids=["by its tensors", "by its config"])
def test_stable_diffusions_export_and_import_are_exact(name: str, has_config: bool, rows: Callable[[str], Path], tmp_path: Path):
    ours, file, encoder = rows(name), tmp_path / "model.safetensors", str(rows(name).parent / f"clip-{name[2]}")
    export_compvis(Ours.open(ours), file)
    options = {"config": file.with_suffix(".yaml")} if has_config else {"prediction": "eps" if name[2] == "1" else "v", "size": 16}
    if name[2] == "2" and not has_config:
        with pytest.raises(UserError, match="--prediction v .* or eps"):
            import_checkpoint(file, tmp_path / "again", text_encoder=encoder)
    notes = import_checkpoint(file, tmp_path / "again", text_encoder=encoder, **options)
    again = Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec)
    assert again.conditioning["text"].model == encoder and any("not copied" in note for note in notes)
    expected = Checkpoint.open(ours).spec(LatentDiffusionSpec)
    assert again.conditioning["text"].layer == expected.conditioning["text"].layer and again.frozen == expected.frozen
    assert_close(everything(tmp_path / "again"), everything(ours), rtol=0, atol=0)
    assert again.denoiser == expected.denoiser and again.prediction == expected.prediction and again.size == 16


def test_stable_diffusions_scale_is_fixed(rows: Callable[[str], Path], tmp_path: Path):
    """Tools that recognise the file by its tensors scale latents by 0.18215; the difference to our scale goes into the autoencoder."""
    encoder = rows("sd1").parent / "clip-1"
    ours = write_row(tmp_path / "model", replace(stable(encoder, version=1), normalization={"shift": (0.4,), "scale": (0.9,)}))
    notes = export_compvis(Ours.open(ours), tmp_path / "model.safetensors")
    assert "by its sizes it is not Stable Diffusion 1 or 2" in notes[-1]
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", text_encoder=str(encoder), size=16)
    one, other = (load_first_stage(folder, CPU)[0] for folder in (ours, tmp_path / "again"))
    assert other.normalization.scale == (0.18215,) and other.normalization.shift == (0.0,)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(other.decode(latent), one.decode(latent), rtol=1e-4, atol=1e-4)


def test_a_text_encoder_of_its_own_is_written_beside(rows: Callable[[str], Path], tmp_path: Path):
    """A fine-tuned encoder: the file's is used, not the published one of that name."""
    export_compvis(Ours.open(rows("sd1")), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "tuned.safetensors")
    mine = tmp_path / "again-text-encoder" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(UserError, match="exists and is not a text encoder"):
        import_checkpoint(tmp_path / "tuned.safetensors", tmp_path / "again", text_encoder=str(rows("sd1").parent / "clip-1"), size=16)
    assert mine.read_text() == "keep" and not (tmp_path / "again").exists()
    shutil.rmtree(mine.parent)
    import_checkpoint(tmp_path / "tuned.safetensors", tmp_path / "again", text_encoder=str(rows("sd1").parent / "clip-1"), size=16)
    one, other = (load_latent_diffusion(folder, CPU) for folder in (rows("sd1"), tmp_path / "again"))
    (original,), (tuned,) = (next(iter(parts.conditioners)).frozen.features(("a cat",)) for parts in (one, other))
    assert_close(tuned, original + 1, rtol=0, atol=1e-5)


@pytest.fixture
def text_file(rows: Callable[[str], Path], tmp_path: Path) -> Path:
    """The text model as CompVis's code writes it, with its YAML; the test may change both."""
    export_compvis(Ours.open(rows("text")), tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def state_of(file: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in foreign_file.read_tensors(file).items()}


def refusal(file: Path) -> str:
    """The one-line error of an import, which must write nothing."""
    before = set(file.parent.iterdir())
    with pytest.raises(UserError) as caught:
        import_checkpoint(file, file.parent / "again", config=file.with_suffix(".yaml"))
    text = str(caught.value)
    assert "\n" not in text and str(file) in text and set(file.parent.iterdir()) == before
    return text


def test_ema_weights_are_chosen(text_file: Path, tmp_path: Path):
    state = state_of(text_file)
    last = {name: tensor for name, tensor in state.items() if name.startswith("model.diffusion_model.")}
    average = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1 for name, tensor in last.items()}
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    torch.save({"state_dict": state | average | counts}, text_file)
    notes = import_checkpoint(text_file, tmp_path / "again", config=text_file.with_suffix(".yaml"))
    assert any("has the EMA weights" in note for note in notes)
    assert_close(everything(tmp_path / "again")["denoiser.out.2.bias"], last["model.diffusion_model.out.2.bias"] + 1, rtol=0, atol=0)

    lost = average.pop("model_ema.diffusion_modelout2bias")
    torch.save({"state_dict": state | average}, text_file)
    assert "model_ema., as out.2.bias is missing" in refusal(text_file)
    torch.save({"state_dict": state | average | {"model_ema.diffusion_modelout2bias": lost, "model_ema.other": lost}}, text_file)
    assert "model_ema.other" in refusal(text_file)


def test_objects_of_lightning_and_numpy_are_admitted_without_effect(text_file: Path, tmp_path: Path, monkeypatch):
    """As in files of 2022: a callback class and a numpy number beside the weights."""
    made = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    module = type(pickle)("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = made
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(__import__("sys").modules, name, type(pickle)(name))
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    torch.save({"state_dict": state_of(text_file), "callbacks": {made: {"best_model_score": np.float64(0.1)}}, "epoch": 3}, text_file)
    import_checkpoint(text_file, tmp_path / "again", config=text_file.with_suffix(".yaml"))
    assert "denoiser.out.2.bias" in everything(tmp_path / "again")


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_a_command_runs_nothing(text_file: Path, tmp_path: Path):
    marker = tmp_path / "ran"
    torch.save({"state_dict": state_of(text_file), "callbacks": Command(marker)}, text_file)
    text = refusal(text_file)
    assert not marker.exists() and "system" in text and "nothing was run" in text


@pytest.mark.parametrize("name", ["numpy.testing._private.utils.runstring", "pytorch_lightning.trainer.Trainer", "builtins.eval"])
def test_only_the_named_globals_are_admitted(name: str, text_file: Path):
    module, _, leaf = name.rpartition(".")
    content = b"\x80\x02c" + f"{module}\n{leaf}\n".encode() + b"."
    rewritten(text_file, "data.pkl", content)
    assert leaf in refusal(text_file)


def rewritten(file: Path, end: str, content: bytes, entry: str | None = None, compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with one entry changed, or one more."""
    with zipfile.ZipFile(file) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    name = entry or next(name for name in held if name.endswith(end))
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, value in (held | {name: content}).items():
            archive.writestr(key, value)


def test_hostile_archives(text_file: Path, monkeypatch):
    whole = text_file.read_bytes()
    rewritten(text_file, "", b"evil", entry="../../evil")
    assert "outside of itself" in refusal(text_file) and not (text_file.parent.parent / "evil").exists()

    text_file.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(text_file)
    text_file.write_bytes(b"PK" + bytes(1000))
    assert "not an archive of torch" in refusal(text_file)

    text_file.write_bytes(whole)
    rewritten(text_file, "data.pkl", b"\x80\x02}q\x00.", compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(text_file)
    text_file.write_bytes(whole)
    monkeypatch.setattr(foreign_file, "MAX_PICKLE_BYTES", 100)
    assert "data.pkl has 0 MiB" in refusal(text_file)
    monkeypatch.setattr(foreign_file, "MAX_FILE_BYTES", 1000)
    assert "has 0 GiB" in refusal(text_file)


def test_a_tensor_that_claims_more_than_its_storage_is_refused(text_file: Path):
    with zipfile.ZipFile(text_file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(name)
    small = (256).to_bytes(2, "little")
    assert b"M" + small in content
    rewritten(text_file, "data.pkl", content.replace(b"M" + small, b"J" + (2**30).to_bytes(4, "little")))
    assert "cannot be read" in refusal(text_file)


def test_truncated_safetensors(rows: Callable[[str], Path], tmp_path: Path):
    file = tmp_path / "model.safetensors"
    export_compvis(Ours.open(rows("faces")), file)
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be read" in refusal(file)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model.diffusion_model.out.2.bias": torch.zeros(5)},
            "out.2.bias has shape (5,), the config requires (3,) (config key out_channels)",
        ),
        ({"model.diffusion_model.giant": torch.zeros(1 << 20)}, "giant, of shape (1048576,), has no place"),
        ({"giant": torch.zeros(1 << 20)}, "giant, of shape (1048576,), has no place"),
        ({"cond_stage_model.giant": torch.zeros(1)}, "cond_stage_model.giant, of shape (1,), has no place"),
        ({"first_stage_model.quant_conv.bias": torch.full((6,), torch.nan)}, "first_stage_model.quant_conv.bias holds NaN"),
        ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "another noise schedule"),
        ({"model.diffusion_model.out.2.bias": None}, "out.2.bias is missing"),
        (
            {"cond_stage_model.transformer.pos_emb.emb.weight": torch.zeros(8, 16)},
            "the config requires (9, 16) (config key max_seq_len or n_embed)",
        ),
    ],
    ids=["shape", "giant in the network", "giant", "conditioner", "nan", "schedule", "missing", "text"],
)
def test_a_wrong_tensor_is_one_line(change: dict[str, Tensor | None], message: str, text_file: Path):
    state = state_of(text_file) | change
    torch.save({"state_dict": {name: tensor for name, tensor in state.items() if tensor is not None}}, text_file)
    assert message in refusal(text_file)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("target", "os.system", "unknown target of .*: model 'os.system'"),
        ("params.unet_config.target", "ldm.modules.diffusionmodules.openaimodel.UnetModel", "Did you mean .*UNetModel"),
        ("params.unet_config.params.num_classes", 10, "sets num_classes to 10, which has no counterpart here"),
        ("params.unet_config.params.use_new_attention_order", True, "sets use_new_attention_order to True"),
        ("params.first_stage_config.params.ddconfig.z_channels", 8, "z_channels is 8; only 3 can be imported"),
        ("params.cond_stage_config.target", "ldm.modules.encoders.modules.SpatialRescaler", "has no counterpart|missing"),
        ("params.conditioning_key", "concat", "only be imported where it is crossattn"),
        ("params.cond_stage_config", "__is_first_stage__", "only models conditioned on masked_image by concatenation can be imported"),
        ("params.beta_schedule", "sqrt", "'sqrt' is not allowed"),
    ],
)
def test_a_config_without_counterpart_is_refused(path: str, value: object, message: str, text_file: Path):
    config = yaml.safe_load(text_file.with_suffix(".yaml").read_text())
    *way, leaf = path.split(".")
    place = config["model"]
    for step in way:
        place = place[step]
    place[leaf] = value
    text_file.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message):
        import_checkpoint(text_file, text_file.parent / "again", config=text_file.with_suffix(".yaml"))
    assert not (text_file.parent / "again").exists()


def test_scale_by_std_is_read_from_the_file(rows: Callable[[str], Path], tmp_path: Path):
    export_compvis(Ours.open(rows("churches")), tmp_path / "model.safetensors")
    config = yaml.safe_load((tmp_path / "model.yaml").read_text())
    config["model"]["params"] |= {"scale_by_std": True, "scale_factor": 1.0}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    assert "scale_factor is missing" in refusal(tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors") | {"scale_factor": torch.tensor(0.75)}
    save_file(state, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", config=tmp_path / "model.yaml")
    assert Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec).normalization.scale == (0.75,)


def test_a_first_stage_by_itself(rows: Callable[[str], Path], tmp_path: Path):
    """With the loss's weights beside it, as CompVis's code saves autoencoders."""
    export_compvis(Ours.open(rows("faces")), tmp_path / "model.safetensors")
    start = "first_stage_model."
    state = {name.removeprefix(start): t for name, t in load_file(tmp_path / "model.safetensors").items() if name.startswith(start)}
    torch.save({"state_dict": state | {"loss.discriminator.main.0.weight": torch.ones(3)}}, tmp_path / "vq.ckpt")
    config = yaml.safe_load((tmp_path / "model.yaml").read_text())["model"]["params"]["first_stage_config"]
    (tmp_path / "vq.yaml").write_text(yaml.safe_dump({"model": config | {"target": "ldm.models.autoencoder.VQModel"}}))
    notes = import_checkpoint(tmp_path / "vq.ckpt", tmp_path / "again", config=tmp_path / "vq.yaml")
    assert any("loss." in note for note in notes)
    mine, spec, weights = load_first_stage(tmp_path / "again", CPU)
    assert_close(weights, load_first_stage(rows("faces"), CPU)[2], rtol=0, atol=0)
    assert spec.size == 16 and spec.normalization.scale == (1.0,)


def test_classes_without_a_null_class(rows: Callable[[str], Path], tmp_path: Path):
    """1000 rows, as in cin256, have no null class; 1001 rows, as in cin256-v2, are 1000 classes and the null class."""
    export_compvis(Ours.open(rows("class")), tmp_path / "model.safetensors")
    config = yaml.safe_load((tmp_path / "model.yaml").read_text())
    del config["last_class_is_nothing"]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    notes = import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", config=tmp_path / "model.yaml")
    table = everything(tmp_path / "again")["conditioner.parts.class.table.weight"]
    assert_close(table[:-1], everything(rows("class"))["conditioner.parts.class.table.weight"], rtol=0, atol=0)
    spec = Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec)
    assert not table[-1].any() and spec.conditioning["class"].num_classes == 4 and spec.sampling.guidance == 1
    assert any("no null class" in note for note in notes)

    state = load_file(tmp_path / "model.safetensors") | {"cond_stage_model.embedding.weight": torch.ones(1001, 16)}
    save_file(state, tmp_path / "model.safetensors")
    config["model"]["params"]["cond_stage_config"]["params"]["n_classes"] = 1001
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", config=tmp_path / "model.yaml")
    spec = Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec)
    assert spec.conditioning["class"].num_classes == 1000 and spec.sampling.guidance == 3
