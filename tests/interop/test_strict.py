"""CompVis's files: every tensor's name and shape is checked, even if it is passed over; and what is passed over is reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from interop_rows import ROWS, stable, write_clip, write_row
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import load_first_stage
from ldm.core.errors import UserError
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.interop.compvis.export import export_compvis
from ldm.interop.compvis.tables import TABLES, tables_of
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours

CPU = torch.device("cpu")
LAST = "model.diffusion_model."
WORDS_OF = "cond_stage_model.transformer.to_logits."


@pytest.fixture(scope="module")
def published(module_folder: Path) -> Path:
    """The text model's file, with its YAML; read-only."""
    export_compvis(Ours.open(write_row(module_folder / "ours", ROWS["text"])), module_folder / "model.safetensors")
    return module_folder / "model.safetensors"


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's EMA by CompVis's names; each weight is larger by 1 than in the denoiser."""
    average = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1 for name, tensor in state.items() if name.startswith(LAST)
    }
    return average | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


@pytest.fixture
def imported(published: Path, tmp_path: Path) -> Iterator[Callable[[dict[str, Tensor | None]], tuple[str, ...]]]:
    """The notes of importing the file with an EMA and changed tensors; None = without that tensor."""
    state = load_file(published)
    shutil.copy(published.with_suffix(".yaml"), tmp_path / "model.yaml")

    def run(change: dict[str, Tensor | None]) -> tuple[str, ...]:
        changed = {name: tensor for name, tensor in (state | averaged(state) | change).items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        return import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", config=tmp_path / "model.yaml")

    yield run


@pytest.mark.parametrize(
    "change, message",
    [
        ({f"{LAST}giant": torch.zeros(1 << 20)}, f"{LAST}giant, of shape (1048576,), has no place"),
        ({f"{LAST}out.2.bias": torch.zeros(5)}, "out.2.bias has shape (5,), the config requires (3,) (config key out_channels)"),
        ({f"{LAST}out.2.bias": torch.full((3,), torch.nan)}, f"{LAST}out.2.bias holds NaN"),
        ({f"{LAST}out.2.bias": None}, f"{LAST}out.2.bias is missing"),
        ({"model_ema.decay": torch.zeros(1 << 20)}, "model_ema.decay has shape (1048576,), the config requires ()"),
        ({"lvlb_weights": torch.full((1 << 20,), torch.nan)}, "lvlb_weights has shape (1048576,), the config requires (1000,)"),
        ({"posterior_variance": torch.zeros(())}, "the config requires (1000,) (config key timesteps)"),
        ({"lvlb_weights": torch.full((1000,), torch.nan)}, "lvlb_weights holds NaN"),
        ({"logvar": torch.zeros(1 << 20)}, "logvar has shape (1048576,), the config requires (1000,)"),
        ({"cond_ids": torch.zeros(7)}, "cond_ids has shape (7,), the config requires (1000,)"),
        ({"scale_factor": torch.zeros(7)}, "scale_factor has shape (7,); it is one number"),
        ({"scale_factor": torch.tensor(torch.nan)}, "scale_factor holds NaN"),
        ({"betas": torch.zeros(1000), "alphas_cumprod": None}, "betas belongs to another noise schedule"),
        ({f"{WORDS_OF}evil": torch.zeros(3)}, f"{WORDS_OF}evil, of shape (3,), has no place"),
        ({f"{WORDS_OF}bias": torch.zeros(3)}, f"{WORDS_OF}bias has shape (3,), the config requires (30522,)"),
        ({f"{WORDS_OF}bias": torch.full((30522,), torch.nan)}, f"{WORDS_OF}bias holds NaN"),
        ({"first_stage_model.loss.giant": torch.zeros(3)}, "first_stage_model.loss.giant, of shape (3,), has no place"),
        ({"first_stage_model.loss.logvar": torch.zeros(3)}, "loss.logvar has shape (3,), the config requires ()"),
        ({"first_stage_model.loss.discriminator.a": torch.tensor(torch.nan)}, "loss.discriminator.a holds NaN"),
    ],
)
def test_tensors_that_are_not_read_are_checked_too(change: dict[str, Tensor | None], message: str, imported, tmp_path: Path):
    """In a file with an EMA, where none of these is needed."""
    with pytest.raises(UserError) as caught:
        imported(change)
    assert message in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "again").exists()


def test_passed_over_tensors_are_reported_in_one_line_per_kind(imported):
    """All tensors of published files beside the networks."""
    beside: dict[str, Tensor | None] = {name: torch.ones(1000) for name in TABLES if name not in ("betas", "alphas_cumprod")}
    beside |= {"logvar": torch.zeros(1000), "cond_ids": torch.full((1000,), 999), "scale_factor": torch.tensor(0.5)}
    loss = "first_stage_model.loss."
    beside |= {f"{loss}logvar": torch.tensor(0.0)} | {f"{loss}{name}.a": torch.ones(2) for name in ("discriminator", "perceptual_loss")}
    assert imported(beside) == (
        "passed over betas, alphas_cumprod and 11 more: the noise schedule's tables, which are computed anew",
        "passed over logvar, cond_ids: of training",
        "passed over scale_factor, 0.5: the latents' scale is 0.18215",
        f"passed over {loss}discriminator.*, {loss}perceptual_loss.*, {loss}logvar: of the loss: the discriminator and the perceptual "
        "network of training",
        "the denoiser has the EMA weights (model_ema); passed over: those of the last training step, and the settings of the average",
        f"passed over {WORDS_OF}*: the layer that would predict words, which no picture depends on",
    )


def test_an_ema_alone_is_enough(published: Path, imported, tmp_path: Path):
    last = [name for name in load_file(published) if name.startswith(LAST)]
    imported(dict.fromkeys(last))
    found, before = Checkpoint.open(tmp_path / "again").tensors("denoiser"), Checkpoint.open(published.parent / "ours").tensors("denoiser")
    assert_close(found, {name: tensor + 1 for name, tensor in before.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("process", [DiscreteVP(), DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02, num_steps=50)])
def test_the_tables_are_of_the_schedule(process: DiscreteVP):
    """By their definition (Ho et al. 2020, sec. 2): alpha_bar is the product of 1 - beta over the steps."""
    tables = tables_of(process)
    ends = (process.beta_first, process.beta_last)
    root = 0.5 if process.spacing == "sqrt_linear" else 1.0
    betas = torch.linspace(ends[0] ** root, ends[1] ** root, process.num_steps, dtype=torch.float64) ** (1 / root)
    assert_close(tables["betas"], betas.float(), rtol=1e-5, atol=0)
    assert_close(tables["alphas_cumprod"], (1 - betas).cumprod(0).float(), rtol=1e-5, atol=0)


def test_clips_further_tensors_are_checked_by_name_and_shape(tmp_path: Path):
    """As in Stable Diffusion's files, of either version."""
    for version, start, beside in (
        (1, "cond_stage_model.transformer.text_model.", {"embeddings.position_ids": torch.arange(9)[None]}),
        (
            2,
            "cond_stage_model.model.",
            {
                "text_projection": torch.zeros(64, 64),
                "logit_scale": torch.tensor(4.6),
                "attn_mask": torch.full((9, 9), -torch.inf).triu(1),
            },
        ),
    ):
        encoder = str(write_clip(tmp_path / f"clip-{version}", is_open=version == 2))
        file = tmp_path / f"sd{version}.safetensors"
        export_compvis(Ours.open(write_row(tmp_path / f"ours-{version}", stable(Path(encoder), version=version))), file)
        state, options = load_file(file), {"config": file.with_suffix(".yaml"), "text_encoder": encoder}
        save_file(state | {start + name: tensor for name, tensor in beside.items()}, file)
        notes = import_checkpoint(file, tmp_path / "again", **options)
        for name in beside:
            assert sum(f"{start}{name}" in note for note in notes) == 1, name
            save_file(state | {start + name: torch.zeros(1 << 20)}, file)
            with pytest.raises(UserError, match=rf"{name} has shape \(1048576,\), the config requires"):
                import_checkpoint(file, tmp_path / "third", **options)
            save_file(state | {f"{start}{name}.evil": torch.zeros(3)}, file)
            with pytest.raises(UserError, match=rf"{name}.evil, of shape \(3,\), has no place"):
                import_checkpoint(file, tmp_path / "third", **options)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("name, target", [("faces", "VQModel"), ("text", "AutoencoderKL")])
def test_a_first_stage_by_itself_with_an_ema(name: str, target: str, tmp_path: Path):
    """As CompVis's code writes it: of all trained weights, including the discriminator, by names without dots."""
    ours = write_row(tmp_path / "ours", ROWS[name])
    export_compvis(Ours.open(ours), tmp_path / "model.safetensors")
    start = "first_stage_model."
    last = {key.removeprefix(start): tensor for key, tensor in load_file(tmp_path / "model.safetensors").items() if key.startswith(start)}
    loss = {"loss.discriminator.main.0.weight": torch.ones(3)}
    ema = {f"model_ema.{key.replace('.', '')}": tensor + 1 for key, tensor in (last | loss).items()}
    ema |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    config = yaml.safe_load((tmp_path / "model.yaml").read_text())["model"]["params"]["first_stage_config"]
    config["params"] |= {"use_ema": True} if target == "VQModel" else {"ema_decay": 0.999, "learn_logvar": True}
    file = tmp_path / "first.ckpt"
    file.with_suffix(".yaml").write_text(yaml.safe_dump({"model": config | {"target": f"ldm.models.autoencoder.{target}"}}))

    def notes_of(state: dict[str, Tensor]) -> tuple[str, ...]:
        torch.save({"state_dict": state}, file)
        return import_checkpoint(file, tmp_path / "again", config=file.with_suffix(".yaml"))

    note = "the first stage has the EMA weights (model_ema); passed over: those of the last training step, and the settings of the average"
    assert note in notes_of(last | loss | ema)
    one, other = (load_first_stage(folder, CPU)[2] for folder in (ours, tmp_path / "again"))
    assert_close(other, {key: tensor + 1 for key, tensor in one.items()}, rtol=0, atol=0)
    assert note not in notes_of(last | loss)
    assert_close(load_first_stage(tmp_path / "again", CPU)[2], one, rtol=0, atol=0)
    for change, message in (
        ({"encoder.conv_in.bias": torch.full((64,), torch.nan)}, "first.ckpt: encoder.conv_in.bias holds NaN"),
        ({"model_ema.decoderconv_inbias": torch.zeros(3)}, r"model_ema., as decoder.conv_in.bias has shape \(3,\)"),
        ({"model_ema.giant": torch.zeros(3)}, r"model_ema.giant, of shape \(3,\), has no place"),
    ):
        with pytest.raises(UserError, match=message):
            notes_of(last | loss | ema | change)
