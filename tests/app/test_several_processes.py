"""One process and two: the same pictures from the same seed, the same training, and one stop for both."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import arguments, finish, metrics, start, start_two, state

from ldm.training.lock import locked

STEPS = 3
LEARNING_RATE = 1e-3  # of the tiny runs
CHANGES = {
    "vae": ["first_stage.dropout=0", "loss.disc_start=2"],
    "ldm": ["denoiser.dropout=0"],
}


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture).astype(int)


def test_a_picture_is_the_same_from_two_processes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """At the same time, with other numbers of threads and of pictures a batch."""
    words = ["--model", str(tiny("text", "class")), "--label", "dog", "--seed", "7"]
    logs = [tmp_path / "few.log", tmp_path / "many.log"]
    few = start("sample", [*words, "--num-images", "2", "--out", str(tmp_path / "few")], logs[0])
    many = start("sample", [*words, "--num-images", "5", "--out", str(tmp_path / "many")], logs[1], threads=2)
    finish(few, logs[0])
    finish(many, logs[1])
    for name in ("000.png", "001.png"):
        assert np.abs(levels(tmp_path / "few" / name) - levels(tmp_path / "many" / name)).max() <= 1
    assert np.abs(levels(tmp_path / "few" / "000.png") - levels(tmp_path / "few" / "001.png")).max() > 1


@pytest.mark.parametrize("count", [1, 5])
def test_two_processes_draw_what_one_does(count: int, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Each some of the pictures; there may be fewer than processes."""
    words = ["--model", str(tiny("class")), "--label", "dog", "--seed", "7", "--num-images", str(count), "--out"]
    log = tmp_path / "log"
    for process in [start("sample", [*words, str(tmp_path / "alone")], log), *start_two("sample", [*words, str(tmp_path / "two")], log)]:
        finish(process, log)
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names and len(names) == count + 3
    for name in (name for name in names if name.endswith(".png")):
        assert np.abs(levels(tmp_path / "alone" / name) - levels(tmp_path / "two" / name)).max() <= 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["vae", "ldm"])
def test_two_processes_train_the_same_weights(which: str, squares: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """The whole script. Numbers, weights and the sample grid; five samples a step do not divide by two."""
    changes = [f"train.steps={STEPS}", "train.batch_size=5", f"train.sample_every={STEPS}", *CHANGES[which]]
    if which == "ldm":
        changes.append(f"first_stage.checkpoint={tiny('class')}")
    log = tmp_path / "run.log"
    alone = start(f"train_{which}", arguments(which, tmp_path / "alone", squares, *changes), log)
    finish(alone, log)
    for process in start_two(f"train_{which}", arguments(which, tmp_path / "two", squares, *changes), log):
        finish(process, log)

    for one, other in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "two"), strict=True):
        del one["samples_per_second"], other["samples_per_second"]
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    one_state, other_state = state(tmp_path / "alone", STEPS), state(tmp_path / "two", STEPS)
    assert one_state.keys() == other_state.keys()
    for part in ("trained", "averaged"):
        gaps = torch.cat([(one_state[name] - other_state[name]).flatten() for name in one_state if name.startswith(part)])
        # Adam steps by about the learning rate whatever the gradient's size, so rounding turns what has no gradient but rounding
        assert gaps.square().mean().sqrt() < 0.02 * LEARNING_RATE
    grids = [levels(tmp_path / run / "samples" / f"step-{STEPS:08d}.png") for run in ("alone", "two")]
    assert np.abs(grids[0] - grids[1]).max() <= 1


def test_one_process_asked_to_stop_stops_both(squares: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    processes = start_two("train_ldm", arguments("ldm", run, squares, f"first_stage.checkpoint={tiny('class')}", "train.steps=500"), log)
    rows = run / "metrics.jsonl"
    while all(process.is_alive() for process in processes) and not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(processes[1].pid or 0, signal.SIGTERM)
    for process in processes:
        finish(process, log)
    assert max(path.name for path in (run / "state").iterdir()) == f"step-{len(metrics(run)):08d}"


def test_a_folder_in_use_is_refused_once_by_two_processes(squares: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    run.mkdir()
    with locked(run):
        for process in start_two("train_vae", arguments("vae", run, squares), log):
            finish(process, log, 2)
    said = [line for line in log.read_text().splitlines() if "error" in line.lower()]
    assert len(said) == 1 and f"in use by another training (process {os.getpid()} on host" in said[0]
    assert list(run.iterdir()) == []
