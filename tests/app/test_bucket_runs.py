"""Both stages on aspect-ratio buckets, from a folder of wide, tall and square pictures to what is drawn at any of their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tiny_runs import arguments, metrics, state

from ldm.app.arguments import describe, sample, train_classifier, train_ldm, train_vae
from ldm.checkpoints.model import load_first_stage, read_spec
from ldm.core.errors import UserError
from ldm.data.buckets import Buckets
from ldm.data.latent_cache import LatentCache

BUCKETS = "data.buckets={pixels: 256, step: 4, aspects: [0.5, 1, 2]}"
SHAPES = ((20, 40), (40, 20), (28, 28))  # height, width
SIZES = [(12, 20), (20, 12), (16, 16)]
STAGES = {"vae": train_vae.main, "ldm": train_ldm.main}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven discs, in turn on wide, tall and square ground, in folders that are their classes."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    for number in range(11):
        height, width = SHAPES[number % 3]
        picture = Image.new("RGB", (width, height), (25 * number, 255 - 25 * number, 90))
        ImageDraw.Draw(picture).ellipse((number, 3, number + 8, 12), fill=(255, 200, 25 * number))
        path = folder / ("even" if number % 2 else "odd") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """`vae` and `ldm`, six steps in one sitting."""
    folder = tmp_path_factory.mktemp("buckets")
    changes = [BUCKETS, "train.steps=6", "loss.disc_start=2", "loss.disc_layers=1"]
    train_vae.main(arguments("vae", folder / "vae", shapes, *changes))
    train_ldm.main(arguments("ldm", folder / "ldm", shapes, *_of_ldm(folder), "train.steps=6"))
    return folder


def _of_ldm(folder: Path) -> list[str]:
    return [BUCKETS, f"first_stage.checkpoint={folder / 'vae/checkpoint'}"]


@pytest.mark.parametrize("which", STAGES)
def test_a_run_that_was_stopped_goes_on_bitwise(which: str, runs: Path, shapes: Path, tmp_path: Path) -> None:
    changes = [BUCKETS, "loss.disc_start=2", "loss.disc_layers=1"] if which == "vae" else _of_ldm(runs)
    for steps in (3, 6):
        STAGES[which](arguments(which, tmp_path / which, shapes, *changes, f"train.steps={steps}"))
    whole, resumed = state(runs / which, 6), state(tmp_path / which, 6)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in metrics(runs / which)] == [row["loss"] for row in metrics(tmp_path / which)]


def test_checkpoints_know_their_buckets(runs: Path) -> None:
    buckets = Buckets(pixels=256, step=4, aspects=(0.5, 1.0, 2.0))
    first = load_first_stage(runs / "vae/checkpoint", torch.device("cpu"))[1]
    for spec in (first, read_spec(runs / "ldm/checkpoint")):
        assert (spec.size, spec.buckets) == (16, buckets)
    for which in STAGES:
        assert "16x16 (trained on 20x12, 16x16, 12x20)" in (runs / which / "checkpoint/README.md").read_text()
    cell = 20 + 2  # of the largest sides
    for which, rows in (("vae", 2), ("ldm", 1)):
        with Image.open(next((runs / which / "samples").glob("*.png"))) as grid:
            assert grid.size == (8 * cell + 2, rows * cell + 2)


def test_the_latent_cache_holds_several_shapes(runs: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each sample of a cached run has the latent of its own picture in its own bucket."""
    seen: dict[str, torch.Size] = {}
    item = LatentCache.item

    def watched(self: LatentCache, index: int, epoch: int) -> object:
        found = item(self, index, epoch)
        seen[found[0].name] = found[1].shape
        return found

    monkeypatch.setattr(LatentCache, "item", watched)
    train_ldm.main(arguments("ldm", tmp_path / "run", shapes, *_of_ldm(runs), "train.steps=6", "train.batch_size=11"))
    assert len(seen) == 11
    for name, shape in seen.items():
        height, width = SIZES[int(Path(name).stem) % 3]
        assert shape == (2, height // 2, width // 2)


def test_any_bucket_s_size_is_drawn(runs: Path, tmp_path: Path) -> None:
    words = ["--model", str(runs / "ldm/checkpoint"), "--steps", "2", "--num-images", "2", "--label", "odd", "--out", str(tmp_path)]
    for size in SIZES:
        sample.main([*words, "--height", str(size[0]), "--width", str(size[1])])
        with Image.open(tmp_path / "001.png") as image:
            assert image.size == size[::-1]
    sample.main(words)
    with Image.open(tmp_path / "001.png") as image:
        assert image.size == (16, 16)


def test_a_drawn_set_is_of_the_sizes_of_the_set_that_it_is_like(runs: Path, shapes: Path, tmp_path: Path) -> None:
    """Unless one size is asked for."""

    def drawn(name: str, *flags: str) -> list[list[int]]:
        words = ["--model", str(runs / "ldm/checkpoint"), "--steps", "1", "--like", str(shapes), "--out-set", str(tmp_path / name)]
        sample.main([*words, *flags])
        content = (tmp_path / name / "train.sizes").read_bytes()
        return torch.frombuffer(bytearray(content), dtype=torch.int32).reshape(-1, 2).tolist()

    assert drawn("square", "--count", "3", "--height", "16") == [[16, 16]] * 3
    sizes = drawn("like", "--count", "13")
    names = sorted(path.relative_to(shapes).as_posix() for path in shapes.rglob("*.png"))
    assert [tuple(size) for size in sizes] == [SIZES[int(Path(names[number % 11]).stem) % 3] for number in range(13)]


def test_the_largest_bucket_is_described(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe.main(["--config", str(runs / "vae/config.yaml"), "data.buckets.pixels=1024"])
    assert "32x32" in capsys.readouterr().out.replace(" ", "")


@pytest.mark.parametrize(
    "which, changes, message",
    [
        ("vae", ["data.buckets.step=3"], "data.buckets.step must be a multiple of the first stage's downsampling factor"),
        ("vae", ["loss.disc_layers=3"], "the bucket 20x12 is too small for a discriminator of loss.disc_layers=3"),
        ("ldm", ["data.buckets.step=2"], "make data.buckets.step a multiple of 4"),
        ("classifier", [], "a classifier is trained on images of one size: leave out data.buckets"),
    ],
)
def test_buckets_that_fit_nothing_are_refused(
    which: str, changes: list[str], message: str, runs: Path, shapes: Path, tmp_path: Path
) -> None:
    more = [] if which == "vae" else [f"first_stage.checkpoint={runs / 'vae/checkpoint'}"]
    main = {**STAGES, "classifier": train_classifier.main}[which]
    with pytest.raises(UserError, match=message):
        main(arguments(which, tmp_path / "run", shapes, BUCKETS, *more, *changes))


def test_another_bucket_is_another_run(runs: Path, shapes: Path) -> None:
    with pytest.raises(UserError, match="differs in data.buckets.pixels"):
        train_ldm.main(arguments("ldm", runs / "ldm", shapes, *_of_ldm(runs), "train.steps=6", "data.buckets.pixels=320"))


def test_unused_sizes_are_no_error(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Buckets that no picture is in have no batches; the counts are said."""
    changes = ["data.buckets={pixels: 256, step: 4, aspects: [0.5, 1, 2, 4]}", "train.steps=2", "loss.disc_factor=0"]
    train_vae.main(arguments("vae", tmp_path / "run", shapes, *changes))
    assert "pictures in each bucket of data (height x width): 20x12 4, 16x16 3, 12x20 4, 8x32 0" in capsys.readouterr().out
