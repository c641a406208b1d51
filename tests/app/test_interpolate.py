"""`scripts/interpolate.py` and `scripts/invert.py`: what they leave, and one line for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.app.arguments import interpolate, invert, txt2img
from ldm.core.errors import UserError

FEW = ["--steps", "2", "--device", "cpu"]
MAINS = {"interpolate": interpolate.main, "invert": invert.main}


@pytest.fixture
def home(tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(tiny("text"))
    for name, colour in {"red": (200, 30, 30), "green": (30, 200, 30)}.items():
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(one: str, other: str) -> bool:
    with Image.open(one) as a, Image.open(other) as b:
        return a.tobytes() == b.tobytes()


def test_between_prompts_and_seeds_the_first_picture_is_that_of_txt2img(home: Path) -> None:
    common = ["--model", "model", *FEW]
    interpolate.main([*common, "--prompt", "a cat", "--to-prompt", "a dog", "--to-seed", "7", "--num-images", "3", "--out", "way"])
    txt2img.main([*common, "--prompt", "a cat", "--num-images", "1", "--out", "first"])
    txt2img.main([*common, "--prompt", "a dog", "--num-images", "1", "--seed", "7", "--out", "last"])
    assert same("way/000.png", "first/000.png") and same("way/002.png", "last/000.png")
    assert not same("way/001.png", "way/000.png")
    assert json.loads(Path("way/parameters.json").read_text())["to_prompt"] == "a dog"


def test_between_pictures_it_takes_ddim_at_guidance_1(home: Path) -> None:
    interpolate.main(["--model", "model", *FEW, "--image", "red.png", "--to-image", "green.png", "--num-images", "2", "--out", "way"])
    said = json.loads(Path("way/parameters.json").read_text())
    assert (said["sampler"], said["guidance"], said["steps"]) == ("ddim", 1.0, 2)


def test_inversion_draws_the_picture_again_and_changed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invert.main(["--model", "model", *FEW, "--image", "red.png", "--prompt", "a cat", "--to-prompt", "a dog", "--out", "again"])
    assert sorted(path.name for path in Path("again").glob("0*.png")) == ["000.png", "001.png"] and not same(
        "again/000.png", "again/001.png"
    )
    assert "drawn again: PSNR " in capsys.readouterr().out


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("interpolate", ["--prompt", "a"], "nothing to interpolate to: give --to-prompt, --to-seed or --to-image"),
        ("interpolate", ["--to-prompt", "a"], "--to-prompt needs --prompt"),
        ("interpolate", ["--prompt", " ", "--to-prompt", "a"], "--prompt is empty"),
        ("interpolate", ["--image", "red.png"], "--image and --to-image go together"),
        ("interpolate", ["--image", "red.png", "--to-image", "green.png", "--to-seed", "1"], "--to-seed does not go with pictures"),
        ("interpolate", ["--to-seed", "1", "--num-images", "1"], "--num-images must be at least 2"),
        ("invert", ["--image", "red.png", "--sampler", "heun"], "inversion is DDIM's"),
        ("invert", ["--image", "red.png", "--seed", "1"], "--seed is no flag here: the noise is the picture's own"),
        ("invert", ["--image", "red.png", "--to-prompt", ""], "--to-prompt is empty"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(script: str, words: list[str], said: str, home: Path) -> None:
    with pytest.raises(UserError, match=said):
        MAINS[script](["--model", "model", *FEW, "--out", "out", *words])
    assert not Path("out").exists()
