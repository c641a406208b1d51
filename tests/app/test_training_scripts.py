"""The training scripts: where a run starts from, pixel space, nothing told; and what they refuse, in one line with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import arguments, checkpoint, metrics

from ldm.app import door, sample, train_ldm, train_vae

STILL = ("train.steps=1", "train.optimizer.learning_rate=1e-30", "seed=1")  # a run whose only step moves nothing
NO_ADVERSARY = "loss.disc_weight=0"
MAINS = {"vae": train_vae.main, "ldm": train_ldm.main, "pixels": train_ldm.main}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    """Two steps of stage one in `vae`, and two of stage two on it in `ldm`."""
    folder = tmp_path_factory.mktemp("trained")
    train_vae.main(arguments("vae", folder / "vae", squares, "train.steps=2", NO_ADVERSARY))
    first_stage = f"first_stage.checkpoint={folder / 'vae' / 'checkpoint'}"
    train_ldm.main(arguments("ldm", folder / "ldm", squares, "train.steps=2", first_stage))
    return folder


@pytest.mark.parametrize("source", ["vae", "ldm"])
def test_stage_one_starts_from_a_checkpoint_of_either_stage(trained: Path, squares: Path, tmp_path: Path, source: str) -> None:
    begin = f"init_from={trained / source / 'checkpoint'}"
    train_vae.main(arguments("vae", tmp_path / "run", squares, begin, NO_ADVERSARY, *STILL))
    wanted = checkpoint(trained / "vae" / "checkpoint")
    torch.testing.assert_close(checkpoint(tmp_path / "run" / "checkpoint"), wanted, rtol=0, atol=1e-20)


def test_stage_two_starts_from_a_checkpoint(trained: Path, squares: Path, tmp_path: Path) -> None:
    """Denoiser and conditioners; the first stage is the same bits."""
    begin = (f"init_from={trained / 'ldm' / 'checkpoint'}", f"first_stage.checkpoint={trained / 'vae' / 'checkpoint'}")
    train_ldm.main(arguments("ldm", tmp_path / "run", squares, *begin, *STILL))
    wanted = checkpoint(trained / "ldm" / "checkpoint")
    torch.testing.assert_close(checkpoint(tmp_path / "run" / "checkpoint"), wanted, rtol=0, atol=1e-20)


def test_cached_latents_teach_what_pictures_teach(trained: Path, squares: Path, tmp_path: Path) -> None:
    """Off by a switch; without augmentation the steps are the same."""
    first_stage = f"first_stage.checkpoint={trained / 'vae' / 'checkpoint'}"
    losses = []
    for cached in ("true", "false"):
        run = tmp_path / cached
        train_ldm.main(arguments("ldm", run, squares, first_stage, f"data.cache_latents={cached}", "prediction=v", "train.steps=3"))
        assert (run / "latents").exists() == (cached == "true")
        losses.append([row["loss"] for row in metrics(run)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no such checkpoint": ("vae", ["init_from=nowhere"], "checkpoint nowhere: no such folder"),
    "first stage of another shape": ("vae", ["init_from=VAE", "first_stage.channels=8"], "the config wants ("),
    "first stage with other blocks": ("vae", ["init_from=VAE", "first_stage.blocks=2"], "weights and config do not belong together"),
    "denoiser of another shape": ("ldm", ["init_from=LDM", "first_stage.checkpoint=VAE", "denoiser.channels=64"], "the config wants ("),
    "no denoiser": ("ldm", ["init_from=VAE", "first_stage.checkpoint=VAE"], "holds a first stage only"),
    "another first stage": ("ldm", ["init_from=LDM", "first_stage.checkpoint=OTHER"], "was trained on another first stage"),
    "no first stage": ("ldm", [], "first_stage.checkpoint is null: name a checkpoint folder, or set first_stage.kind=identity"),
    "no such pictures": ("vae", ["data.train=nowhere"], "nowhere"),
    "wrong channel count, stage one": ("vae", ["data.channels=1"], "data.channels (1) and first_stage.image_channels (3) must be equal"),
    "wrong channel count, stage two": ("ldm", ["first_stage.checkpoint=VAE", "data.channels=1"], "but the first stage takes 3"),
    "unknown key": ("pixels", ["train.stepz=3"], "Did you mean 'train.steps'?"),
    "no steps": ("pixels", ["train.steps=0"], "steps must be at least 1, got 0"),
}


@pytest.mark.parametrize("which, changes, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(
    trained: Path,
    squares: Path,
    tiny: Callable[..., Path],
    tmp_path: Path,
    which: str,
    changes: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"=VAE": f"={trained / 'vae' / 'checkpoint'}", "=LDM": f"={trained / 'ldm' / 'checkpoint'}", "=OTHER": f"={tiny('class')}"}
    for word, place in places.items():
        changes = [change.replace(word, place) for change in changes]
    monkeypatch.setattr(sys, "argv", [f"train_{which}.py", *arguments(which, tmp_path / "run", squares, *changes)])
    with pytest.raises(SystemExit) as left:
        door.run(MAINS[which])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert line.startswith("error: ") and said in line
    assert not list(tmp_path.glob("run/*"))


def test_pixel_space_and_nothing_told_from_end_to_end(tmp_path: Path) -> None:
    """Pictures of one colour, no first stage, no condition: what is drawn after training has that colour."""
    colour = np.array([210, 60, 110])
    (tmp_path / "data").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 11), tuple(colour.tolist())).save(tmp_path / "data" / f"{number}.png")
    train_ldm.main(arguments("pixels", tmp_path / "run", tmp_path / "data"))
    model = tmp_path / "run" / "checkpoint"
    assert [path.name for path in model.glob("*.safetensors")] == ["denoiser.safetensors"]

    sample.main(["--model", str(model), "--num-images", "3", "--out", str(tmp_path / "drawn")])
    for number in range(3):
        with Image.open(tmp_path / "drawn" / f"{number:03d}.png") as picture:
            assert picture.size == (8, 8)
            assert np.abs(np.array(picture).mean((0, 1)) - colour).max() < 20
