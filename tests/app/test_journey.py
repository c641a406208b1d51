"""README's five commands, word for word, on a dozen pictures that nobody tuned for; only sizes and steps are made small."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_runs import ROOT, checkpoint

from ldm.app.arguments import inpaint, prepare_data, sample, train_ldm, train_vae, txt2img

MAINS = {
    "scripts/prepare_data.py": prepare_data.main,
    "scripts/train_vae.py": train_vae.main,
    "scripts/train_ldm.py": train_ldm.main,
    "scripts/txt2img.py": txt2img.main,
    "scripts/inpaint.py": inpaint.main,
}
SMALL = ["data.size=32", "train.steps=2", "train.batch_size=4"]
LIGHTER = {
    "scripts/train_vae.py": SMALL,
    "scripts/train_ldm.py": [*SMALL, "data.cache_views=1", "denoiser.channels=32", "sampling.steps=2"],
    "scripts/txt2img.py": ["--steps", "2", "--num-images", "2"],
    "scripts/inpaint.py": ["--steps", "2", "--num-images", "2"],
}


def five_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text().split("## Your own pictures, in five commands")[1]
    block = text.split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines()]


def write_photos(folder: Path) -> None:
    """Twelve pictures of seven sizes: JPEG and PNG, colour, grey and transparent; captions.csv says what each shows."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for number in range(12):
        mode = ("RGB", "RGB", "L", "RGBA")[number % 4]
        name = "one.jpg" if number == 0 else f"{number}.{'jpg' if mode == 'RGB' else 'png'}"
        picture = Image.new(mode, (40 + 9 * (number % 3), 36 + 7 * (number % 4)), int(draw.integers(256)) if mode == "L" else "orange")
        ImageDraw.Draw(picture).ellipse((4, 4, 30, 30), fill=int(draw.integers(256)) if mode == "L" else "navy")
        picture.save(folder / name)
        rows.append((name, f"a navy disc, number {number}"))
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])


@pytest.mark.timeout(900)
def test_five_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    write_photos(tmp_path / "photos")
    before = np.array(Image.open("photos/one.jpg"))
    hole = np.zeros(before.shape[:2], dtype=bool)
    hole[10:22, 8:24] = True
    Image.fromarray(hole.astype(np.uint8) * 255).save("hole.png")

    said = []
    for python, script, *words in five_commands():
        assert python == "python"
        MAINS[script]([*words, *LIGHTER.get(script, [])])
        said.append(capsys.readouterr().out)
    sample.main(["--model", "runs/mine/checkpoint", "--steps", "2", "--num-images", "1"])

    assert [script for _, script, *_ in five_commands()] == list(MAINS)
    assert "done: 11 train, 1 val pictures" in said[0]
    shipped, tuned = checkpoint(Path("checkpoints/emoji")), checkpoint(Path("runs/mine-vae/checkpoint"))
    moved = torch.cat([(tensor - shipped[name]).float().flatten() for name, tensor in tuned.items()])
    length = torch.cat([shipped[name].float().flatten() for name in tuned])
    assert 0 < moved.norm() / length.norm() < 0.05  # it started from the shipped autoencoder
    own = checkpoint(Path("runs/mine/checkpoint"))
    assert all(torch.equal(own[name], tensor) for name, tensor in tuned.items())  # and stage two stands on it
    for out in ("txt2img", "sample"):
        assert np.array(Image.open(f"outputs/{out}/000.png")).shape == (32, 32, 3)
    for number in range(2):
        after = np.array(Image.open(f"outputs/inpaint/{number:03d}.png"))
        assert np.array_equal(after[~hole], before[~hole]) and not np.array_equal(after[hole], before[hole])
