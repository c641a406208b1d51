"""The training scripts: where a run starts from, pixel space, no condition; and what they refuse, in one line with exit code 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import arguments, checkpoint, metrics

from ldm.app import cli
from ldm.app.arguments import sample, train_classifier, train_ldm, train_vae
from ldm.checkpoints.classifier import load_classifier
from ldm.core.errors import UserError
from ldm.data.record import Record
from ldm.data.shards import write_shards

STILL = ("train.steps=1", "train.optimizer.learning_rate=1e-30", "seed=1")  # a run whose only step moves nothing
NO_ADVERSARY = "loss.disc_weight=0"
MAINS = {"vae": train_vae.main, "ldm": train_ldm.main, "pixels": train_ldm.main, "classifier": train_classifier.main}
CPU = torch.device("cpu")


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


PIXELS = "first_stage.kind=identity"
MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no such checkpoint": ("vae", ["init_from=nowhere"], "checkpoint nowhere: no such folder"),
    "first stage of another shape": ("vae", ["init_from=VAE", "first_stage.channels=8"], "the config requires ("),
    "first stage with other blocks": ("vae", ["init_from=VAE", "first_stage.blocks=2"], "weights and config do not belong together"),
    "denoiser of another shape": ("ldm", ["init_from=LDM", "first_stage.checkpoint=VAE", "denoiser.channels=64"], "the config requires ("),
    "no denoiser": ("ldm", ["init_from=VAE", "first_stage.checkpoint=VAE"], "holds a first stage only"),
    "another first stage": ("ldm", ["init_from=LDM", "first_stage.checkpoint=OTHER"], "was trained on another first stage"),
    "no first stage": ("ldm", [], "first_stage.checkpoint is null: name a checkpoint folder, or set first_stage.kind=identity"),
    "no such pictures": ("vae", ["data.train=nowhere"], "nowhere"),
    "wrong channel count, stage one": ("vae", ["data.channels=1"], "data.channels (1) and first_stage.image_channels (3) must be equal"),
    "wrong channel count, stage two": ("ldm", ["first_stage.checkpoint=VAE", "data.channels=1"], "but the first stage takes 3"),
    "unknown key": ("pixels", ["train.stepz=3"], "Did you mean 'train.steps'?"),
    "a classifier of nothing": ("classifier", [PIXELS, "data.train=DOTS"], "is taught by labels, and dots has none"),
    "numbers instead of names": ("classifier", [PIXELS, "data.train=NUMBERS"], "numbers without names: set num_classes"),
    "another number of classes": ("classifier", [PIXELS, "num_classes=3"], "num_classes is 3, but data.train names 2 labels"),
    "other labels held out": (
        "classifier",
        [PIXELS, "data.val=NUMBERS"],
        "data.val names other labels (numbers) than data.train (even, odd)",
    ),
    "a density that learns": ("classifier", [PIXELS, "density=importance"], "density 'importance' learns from a denoiser's losses"),
    "a classifier too deep": ("classifier", [PIXELS, "data.size=9"], "samples of 9x9 cannot be halved down to the classifier's last level"),
    "a classifier from a model": ("classifier", [PIXELS, "init_from=LDM"], "holds a diffusion model, not a classifier"),
    "no steps": ("pixels", ["train.steps=0"], "steps must be at least 1, got 0"),
}


def write_dots(folder: Path) -> None:
    """Pictures without labels."""
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(folder / f"{number}.png")


def write_numbers(folder: Path) -> None:
    """A shard whose labels are numbers: black is 0, red 1, green 2."""
    records = []
    for number in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), [(0, 0, 0), (255, 0, 0), (0, 255, 0)][number % 3]).save(buffer, "PNG")
        records.append(Record(key=f"picture-{number}", suffix="png", image=buffer.getvalue(), label=number % 3))
    write_shards(folder, "train", records)


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
    write_dots(tmp_path / "dots")
    write_numbers(tmp_path / "numbers")
    places = {"=DOTS": f"={tmp_path / 'dots'}", "=NUMBERS": f"={tmp_path / 'numbers'}"}
    places |= {"=VAE": f"={trained / 'vae' / 'checkpoint'}", "=LDM": f"={trained / 'ldm' / 'checkpoint'}", "=OTHER": f"={tiny('class')}"}
    for word, place in places.items():
        changes = [change.replace(word, place) for change in changes]
    monkeypatch.setattr(sys, "argv", [f"train_{which}.py", *arguments(which, tmp_path / "run", squares, *changes)])
    with pytest.raises(SystemExit) as left:
        cli.run(MAINS[which])
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


def test_a_judge_of_numbered_classes_from_end_to_end(tmp_path: Path) -> None:
    """Three colours: after training it names each, on the very pictures and as a start for another."""
    write_numbers(tmp_path / "data")
    changes = [PIXELS, "process=null", "num_classes=3", "network.dropout=0", "train.steps=40", "train.ema_decay=0.8"]
    words = arguments("classifier", tmp_path / "run", tmp_path / "data", *changes, "data.cache_latents=false", "train.batch_size=6")
    train_classifier.main([*words, "train.optimizer.learning_rate=3e-3"])
    judge = load_classifier(tmp_path / "run" / "checkpoint", CPU)
    assert judge.spec.label_names == ("0", "1", "2") and judge.spec.process is None
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [-1, 1, -1]])[:, :, None, None].expand(-1, -1, 16, 16)
    assert judge.logits(colours).argmax(1).tolist() == [0, 1, 2]
    assert not (tmp_path / "run" / "latents").exists()

    begin = [*words, "--run-dir", str(tmp_path / "again"), f"init_from={tmp_path / 'run' / 'checkpoint'}", *STILL]
    train_classifier.main(begin)
    wanted = checkpoint(tmp_path / "run" / "checkpoint")
    torch.testing.assert_close(checkpoint(tmp_path / "again" / "checkpoint"), wanted, rtol=0, atol=1e-20)


def test_a_classifier_of_latents_leads_a_model_on_the_same_first_stage(trained: Path, squares: Path, tmp_path: Path) -> None:
    """The scripts in a row: first stage, model, classifier on its cached latents, pictures."""
    first_stage = f"first_stage.checkpoint={trained / 'vae' / 'checkpoint'}"
    train_classifier.main(arguments("classifier", tmp_path / "run", squares, first_stage, "train.steps=2"))
    assert (tmp_path / "run" / "latents" / "meta.json").is_file()
    guide, drawn = str(tmp_path / "run" / "checkpoint"), {}
    for scale in ("0", "1000"):
        words = ["--model", str(trained / "ldm" / "checkpoint"), "--label", "odd", "--num-images", "1", "--out", str(tmp_path / scale)]
        sample.main([*words, "--classifier", guide, "--classifier-scale", scale])
        with Image.open(tmp_path / scale / "000.png") as picture:
            drawn[scale] = np.array(picture)
    assert not np.array_equal(drawn["0"], drawn["1000"])


@pytest.mark.parametrize(
    "script, config, said",
    [
        (train_ldm, "configs/vae/emoji-f4.yaml", "is a stage-one config: use scripts/train_vae.py"),
        (train_vae, "configs/ldm/emoji-text.yaml", "is a stage-two config: use scripts/train_ldm.py"),
        (train_vae, "configs/ldm/finetune.yaml", "is a stage-two config: use scripts/train_ldm.py"),
        (train_ldm, "configs/classifier/emoji.yaml", "is a classifier's config: use scripts/train_classifier.py"),
        (train_classifier, "configs/vae/emoji-f4.yaml", "is a stage-one config"),
        (train_ldm, "checkpoints/emoji/config.yaml", "is a checkpoint's, which says what a model is and not how it trains"),
    ],
)
def test_a_config_of_another_script_is_named_as_such(script, config, said, tmp_path) -> None:
    with pytest.raises(UserError, match=f"config {config} {said}"):
        script.main(["--config", config, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
