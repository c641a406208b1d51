"""`scripts/evaluate.py` called from a test, on tiny models and pictures, with a stand-in for Inception. Its fixtures are in conftest.py."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldm.app.evaluate  # noqa: F401 - imported for the processes that are forked
from ldm.app import cli
from ldm.app.arguments import evaluate
from ldm.evaluation import dataset
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.metrics import features

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["evaluations"])
SEVERAL_BATCHES = 5  # pictures in each
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


def call_by_two(words: str, folder: Path, cache: Path) -> None:
    """The same by two processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"LDM_CACHE": cache, "LDM_OFFLINE": 1, "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": 2}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        FORKS.Process(target=_main, args=(words, folder, variables | {"RANK": rank, "LOCAL_RANK": rank}), daemon=True) for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
        assert process.exitcode == 0


def _main(words: str, folder: Path, variables: dict[str, object]) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    os.chdir(folder)
    dataset.AT_ONCE = SEVERAL_BATCHES
    features.fid_inception = lambda progress: StandIn()
    sys.argv = ["evaluate.py", *words.split()]
    cli.run(evaluate.main)


LDM = "ldm --data train --held-out val --steps 1"


def measured(words: str, monkeypatch, capsys) -> dict:
    """The JSON, which is all that stdout holds."""
    assert call(f"{words} --json --out made", monkeypatch) == 0
    text = capsys.readouterr().out
    assert text == Path("made/evaluation.json").read_text()
    return json.loads(text)


def perfect(picture_of):
    """A `render` that gives data pictures instead of making any."""

    def render(self, conditions, unconditional, how, *, numbers):
        return torch.stack([picture_of(number) for number in numbers])

    return render


def pictures_of(folder: str) -> list[torch.Tensor]:
    drawn = training_images(folder, Preprocessing(size=16, channels=3, background=(255, 255, 255)))
    return [drawn.data.sample(i, 0).image for i in range(drawn.count)]
