"""`scripts/evaluate.py` called from a test, on tiny models and pictures, with a stand-in for Inception. Its fixtures are in conftest.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm.app import cli
from ldm.app.arguments import evaluate
from ldm.evaluation.dataset import Preprocessing, training_images

COUNTS = {"train": 12, "val": 6}


class StandIn(nn.Module):
    """Sixteen average colours: 48 features."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        self.calls += len(images)
        return nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1) / 255


def write_images(folder: Path, count: int, seed: int, captions: bool = True, mode: str = "RGB") -> Path:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        shape = (4, 4, 3) if mode == "RGB" else (4, 4)
        levels = draw.integers(0, 256, shape, dtype=np.uint8).repeat(5, 0).repeat(5, 1)
        Image.fromarray(levels).save(folder / f"{i:03d}.png")
        if captions:
            (folder / f"{i:03d}.txt").write_text(f"picture {i} of {seed}")
    return folder


def call(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words.split()])
    with pytest.raises(SystemExit) as left:
        cli.run(evaluate.main)
    return int(left.value.code)


LDM = "ldm --data train --held-out val --steps 1"


def measured(words: str, monkeypatch, capsys) -> dict:
    """The JSON, which is all that stdout holds."""
    assert call(f"{words} --json --out made", monkeypatch) == 0
    text = capsys.readouterr().out
    assert text == Path("made/evaluation.json").read_text()
    return json.loads(text)


def perfect(picture_of):
    """A `render` that gives data pictures instead of making any."""

    def render(self, conditions, unconditional, how, *, offset):
        return torch.stack([picture_of(offset + number) for number in range(len(conditions))])

    return render


def pictures_of(folder: str) -> list[torch.Tensor]:
    drawn = training_images(folder, Preprocessing(size=16, channels=3, background=(255, 255, 255)))
    return [drawn.data.sample(i, 0).image for i in range(drawn.count)]
