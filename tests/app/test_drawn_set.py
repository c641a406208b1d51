"""`sample.py --out-set`: a prepared set of drawn pictures, whole after kills and by several processes, that says what was asked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import finish, start_two

from ldm import LatentDiffusion
from ldm.app import drawn_set
from ldm.app.arguments import prepare_data, sample
from ldm.app.drawn_set import BLOCK, DrawnSource
from ldm.core.errors import UserError
from ldm.data.sources.shards import open_indexed
from ldm.pipelines.canvas import to_pil

TEXTS = ("a cat", "a dog", "an owl")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    return path


def words(model: Path, out: Path, *more: object) -> list[str]:
    return ["--model", str(model), "--steps", "2", "--out-set", str(out), *map(str, more)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_of_prompts_are_those_of_one_call(tiny: Callable[..., Path], prompts: Path, tmp_path: Path) -> None:
    """Picture i depends on (seed, i), and its caption is what was asked."""
    sample.main(words(tiny("text"), tmp_path / "set", "--count", 20, "--prompts", prompts, "--seed", 5))
    source = open_indexed(tmp_path / "set", "train")
    assert [source.record(i).captions for i in range(20)] == [(TEXTS[i % 3],) for i in range(20)]
    assert "seed 5" in source.credits[0] and json.loads((tmp_path / "set" / "index.json").read_text())["version"] == 3
    model = LatentDiffusion.from_pretrained(tiny("text"), "cpu")
    how = model.sampling(steps=2, seed=5)
    cond = [model.encode_condition(model.text_inputs(TEXTS[i % 3])) for i in range(20)]
    uncond = [model.encode_condition(model.uncond())] * 20
    for drawn, i in zip(to_pil(model.render(cond[16:], uncond[16:], how, numbers=range(16, 20))), range(16, 20), strict=True):
        stored = np.asarray(Image.open(io.BytesIO(source.record(i).image))).astype(int)
        assert np.abs(stored - np.asarray(drawn)).max() <= 1


def test_a_killed_drawing_goes_on_and_the_set_is_the_same(
    tiny: Callable[..., Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = DrawnSource._drawn

    def counted(source: DrawnSource, block: int) -> torch.Tensor:
        if len(drawn) == 2:
            drawn.append(-1)
            raise KeyboardInterrupt
        drawn.append(block)
        return draw(source, block)

    monkeypatch.setattr(DrawnSource, "_drawn", counted)
    asked = ("--count", 3 * BLOCK + 5, "--prompts", prompts)
    with pytest.raises(KeyboardInterrupt):
        sample.main(words(tiny("text"), tmp_path / "set", *asked))
    assert not (tmp_path / "set").exists()
    sample.main(words(tiny("text"), tmp_path / "set", *asked))
    assert drawn == [0, 1, -1, 2, 3] and not (tmp_path / "set.parts").exists()
    sample.main(words(tiny("text"), tmp_path / "other", *asked))
    assert files(tmp_path / "set") == files(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        drawn[:] = [0, 0]
        sample.main(words(tiny("text"), tmp_path / "third", *asked))
    with pytest.raises(UserError, match="holds parts of another preparing"):
        sample.main(words(tiny("text"), tmp_path / "third", *asked, "--seed", 1))


def test_two_processes_draw_the_set_of_one(tiny: Callable[..., Path], prompts: Path, tmp_path: Path) -> None:
    asked = ("--count", 3 * BLOCK + 5, "--prompts", prompts)
    sample.main(words(tiny("text"), tmp_path / "one", *asked))
    for process in start_two("sample", words(tiny("text"), tmp_path / "two", *asked), tmp_path / "log"):
        finish(process, tmp_path / "log")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_records_of_a_set_have_is_asked_and_stored(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and maps, that the model reads; not the captions, which it does not."""
    photos = tmp_path / "photos"
    for number, label in enumerate(("dog", "cat")):
        (photos / label).mkdir(parents=True)
        (photos / "maps" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(photos / label / "it.png")
        (photos / label / "it.txt").write_text("not read")
        classes = np.full((8, 8), number, np.uint8)
        classes[:4] = 3
        Image.fromarray(classes).save(photos / "maps" / label / "it.png")
    model = tiny("class", "map")
    sample.main(words(model, tmp_path / "set", "--count", 5, "--like", photos))
    source = open_indexed(tmp_path / "set", "train")
    assert [source.record(i).label for i in range(5)] == ["cat", "dog", "cat", "dog", "cat"]
    assert source.record(0).captions == () and source.label_names == ("cat", "dog")
    maps = [np.asarray(Image.open(io.BytesIO(source.record(i).map or b""))) for i in range(2)]
    assert [sorted(set(classes.flatten().tolist())) for classes in maps] == [[1, 3], [0, 3]] and maps[0].shape == (16, 16)

    seen: list[object] = []
    loaded = LatentDiffusion.from_pretrained(model, "cpu")
    monkeypatch.setattr(drawn_set, "open_model", lambda options, device: loaded)
    render = LatentDiffusion.render
    monkeypatch.setattr(LatentDiffusion, "render", lambda self, cond, *a, **k: seen.extend(cond) or render(self, cond, *a, **k))
    sample.main(words(model, tmp_path / "again", "--count", 2, "--like", photos))
    for number, (label, condition) in enumerate(zip(("cat", "dog"), seen, strict=True)):
        layout = torch.as_tensor(maps[number].copy()).long()
        wanted = loaded.encode_condition(loaded.inputs({}, label=label, layout=layout))
        assert torch.equal(condition.vector, wanted.vector) and torch.equal(condition.concat, wanted.concat)  # type: ignore[attr-defined]


def test_pictures_of_other_channels_are_arrays(tiny: Callable[..., Path], tmp_path: Path) -> None:
    sample.main(words(tiny("class", image_channels=2), tmp_path / "set", "--count", 2))
    record = open_indexed(tmp_path / "set", "train").record(1)
    array = np.load(io.BytesIO(record.image))
    assert (record.suffix, array.shape, array.dtype) == ("npy", (16, 16, 2), np.uint8)


def test_one_class_or_nothing_in_particular(tiny: Callable[..., Path], tmp_path: Path) -> None:
    sample.main(words(tiny("class"), tmp_path / "set", "--count", 3, "--label", "dog"))
    assert {open_indexed(tmp_path / "set", "train").record(i).label for i in range(3)} == {"dog"}
    sample.main(words(tiny("class"), tmp_path / "plain", "--count", 2))
    assert open_indexed(tmp_path / "plain", "train").record(1).label is None
    prepare_data.main([str(tmp_path / "set"), "--verify"])


@pytest.mark.parametrize(
    "given, message",
    [
        (["--out-set", "a"], "--out-set needs --count, the number of pictures, at least 1; got None"),
        (["--count", "3"], "--count is of a set of pictures: name its folder with --out-set"),
        (["--out-set", "a", "--count", "3", "--like", "b", "--label", "c"], "give one of them"),
        (["--out-set", "a", "--count", "3", "--cond", "b=1"], "--cond does not go with --out-set: --like takes conditions"),
        (["--out-set", "a", "--count", "3", "--prompts", "nothing.txt"], "--prompts nothing.txt: cannot be read"),
    ],
)
def test_contradictions_are_refused(given: list[str], message: str, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=message):
        sample.main(["--model", str(tiny("text")), *given])
