"""kill -9, Ctrl-C or SIGTERM at any moment of a training, the same command again: the same weights to the bit."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import FORKS, Mishap, arguments, checkpoint, finish, metrics, start, state

from ldm.checkpoints.folder import Checkpoint, write_checkpoint
from ldm.checkpoints.model import load_first_stage
from ldm.core.distributed import World
from ldm.core.files import recover_all
from ldm.training.state import Progress, mark_published, open_state, save_state

STEPS = 12
CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    """Both stages and a classifier, trained without a break, in `vae`, `ldm` and `classifier`."""
    folder = tmp_path_factory.mktemp("kill")
    for which in ("vae", "ldm", "classifier"):
        train(folder, squares, which, which)
    return folder


def train(home: Path, squares: Path, which: str, run: str, mishap: Mishap | None = None, kill_at: int | None = None) -> None:
    """One process of a training script; something may happen to it, or it is killed once so many steps are logged."""
    first_stage = [f"first_stage.checkpoint={home / 'vae' / 'checkpoint'}"] if which != "vae" else []
    log = home / f"{run}.log"
    process = start(f"train_{which}", arguments(which, home / run, squares, *first_stage), log, mishap=mishap)
    rows = home / run / "metrics.jsonl"
    while kill_at is not None and process.is_alive():
        if rows.exists() and rows.read_bytes().count(b"\n") >= kill_at:
            process.kill()
            break
        time.sleep(0.002)
    finish(process, log, -signal.SIGKILL if kill_at is not None or (mishap and mishap[0] is signal.SIGKILL) else 0)


def assert_ends_as_if_nothing_had_happened(home: Path, squares: Path, which: str, run: str) -> None:
    train(home, squares, which, run)
    whole, resumed = ({**state(home / name, STEPS), **checkpoint(home / name / "checkpoint")} for name in (which, run))
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []
    assert [row["step"] for row in metrics(home / run)] == list(range(1, STEPS + 1))


def test_what_a_whole_run_says_and_leaves(home: Path) -> None:
    log = (home / "vae.log").read_text()
    assert re.search(
        r"parameters: first_stage 0\.\d+M, discriminator 0\.\d+M; weights and optimizer 0\.\d+ GiB .*batch 4; step 1 of 12\n", log
    )
    assert re.search(r"speed: [\d.]+ samples/s; about \d+ minutes left, finished near \d{4}-\d\d-\d\d \d\d:\d\d", log)
    spoken_of = {"vae": "training reconstruction (10 pictures): L1", "ldm": "training loss", "classifier": "training cross-entropy"}
    for which, spoken in spoken_of.items():
        run = home / which
        assert spoken in (run / "report.txt").read_text() and spoken in (home / f"{which}.log").read_text()
        board = EventAccumulator(str(run)).Reload()
        rows = metrics(run)
        named = {name.partition("/")[0] for name in rows[-1] if "/" in name}
        assert "train_eval" in named and "val" not in named  # nothing was held out
        assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
        assert set(board.Tags()["scalars"]) == {name for row in rows for name in row} - {"step"}
        for picture in ("curves.png", f"samples/step-{STEPS:08d}.png"):
            with Image.open(run / picture) as opened:
                assert len(opened.convert("RGB").getcolors(1 << 24) or ()) > 10


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["vae", "ldm", "classifier"])
def test_killed_at_a_random_step(home: Path, squares: Path, which: str) -> None:
    at = random.Random(time.time_ns()).randint(1, STEPS - 2)
    train(home, squares, which, f"{which}-killed-at-{at}", kill_at=at)
    assert_ends_as_if_nothing_had_happened(home, squares, which, f"{which}-killed-at-{at}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["vae", "ldm"])
def test_asked_to_stop(home: Path, squares: Path, which: str) -> None:
    """Ctrl-C, then SIGTERM, both in the middle of a save: the next step is the last, is saved and said, and the exit code is 0."""
    run = f"{which}-asked"
    for sent, step in ((signal.SIGINT, 3), (signal.SIGTERM, 6)):
        train(home, squares, which, run, (sent, f".step-{step:08d}.tmp-"))
        assert f"stopped after step {step + 1}, state saved; the same command goes on from here" in (home / f"{run}.log").read_text()
        assert [row["step"] for row in metrics(home / run)] == list(range(1, step + 2))
        assert max(path.name for path in (home / run / "state").iterdir()) == f"step-{step + 1:08d}"
    assert_ends_as_if_nothing_had_happened(home, squares, which, run)


@pytest.mark.timeout(900)
def test_killed_while_saving(home: Path, squares: Path) -> None:
    """Before a complete state gets its name; before the one before it goes; then twice while its checkpoint is made up for."""
    run = home / "vae-saving"
    for name, saved in ((".step-00000006.tmp-", 3), ("step-00000003", 9), (".checkpoint.tmp-", 9), (".published.tmp-", 9)):
        train(home, squares, "vae", run.name, (signal.SIGKILL, name))
        found = open_state(run / "state", ALONE)
        assert found and found.step == saved
        load_first_stage(run / "checkpoint", CPU)
    assert_ends_as_if_nothing_had_happened(home, squares, "vae", run.name)
    assert [path.name for path in run.glob(".*")] == []


def test_killed_at_every_change_on_disk(tmp_path: Path) -> None:
    """State and checkpoint of a step are whole, and of the step before it or of this one; the next save goes on from there."""
    process = FORKS.Process(target=_save_killed_everywhere, args=(tmp_path,))
    process.start()
    finish(process, tmp_path / "no log")
    runs = sorted(tmp_path.glob("killed-*"))
    found = []
    for run in runs:
        saved = open_state(run / "state", ALONE)
        assert saved
        opened = Checkpoint.open(run / "checkpoint")
        for step, weight in ((saved.step, saved.tensors()["weight"]), (opened.config["step"], opened.tensors("first_stage")["weight"])):
            torch.testing.assert_close(weight, torch.full_like(weight, step))
        found.append((saved.step, opened.config["step"]))
        recover_all(run / "state", alone=True)
        _save(run, 3)
        assert sorted(path.name for path in (*run.iterdir(), *run.glob("state/*"))) == [
            "checkpoint",
            "state",
            f"step-{saved.step:08d}",
            "step-00000003",
        ]
    assert found == sorted(found) and set(found) == {(1, 1), (2, 1), (2, 2)}


def _save_killed_everywhere(folder: Path) -> None:
    """One save a folder, in a fork each: killed before its first change on disk, its second, ..., until one is through."""
    torch.set_num_threads(1)
    _save(folder / "before", 1)
    for number in itertools.count(1):
        run = folder / f"killed-{number:03d}"
        shutil.copytree(folder / "before", run)
        if (child := os.fork()) == 0:
            _die_at_change(number)
            _save(run, 2)
            os._exit(0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            return


def _save(run: Path, step: int) -> None:
    weights = {"weight": torch.full((300,), float(step))}
    save_state(run / "state", step, weights, Progress(data="", scaler={}, texts={}), ALONE)
    write_checkpoint(run / "checkpoint", f"step: {step}\n", {"first_stage": weights}, "a card")
    mark_published(run / "state", step)


def _die_at_change(number: int) -> None:
    """This process kills itself just before it makes, renames or removes a file or folder for the so-manieth time."""
    changes = itertools.count(1)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        changing = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and "w" in (details[1] or ""))
        if changing and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
