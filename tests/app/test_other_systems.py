"""Windows and macOS, of which nothing has run here: what only Linux has is hidden, and everything is imported and trains all the same."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import arguments, metrics, write_squares

from ldm.data.classic import LAY_OUT
from ldm.data.config import DataConfig
from ldm.data.loader import start_method
from ldm.data.open import open_dataset
from ldm.data.order import GlobalOrder

HIDING = [sys.executable, "-X", "warn_default_encoding", str(Path(__file__).with_name("without_linux.py"))]


def run(*words: str) -> str:
    done = subprocess.run([*HIDING, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_module_and_script_is_imported() -> None:
    count = int(run().split()[-1])
    assert count > 200


@pytest.mark.timeout(300)
def test_both_stages_train_three_steps_and_go_on(tmp_path: Path) -> None:
    """From a folder and from shards, by worker processes that share no memory; a run goes on, its checkpoint replaced."""
    few = ("train.sample_every=3", "data.workers=1")
    vae = arguments("vae", tmp_path / "vae", write_squares(tmp_path / "photos"), *few, "train.checkpoint_every=2")
    assert "done: checkpoint in" in run("train_vae", *vae, "train.steps=3")
    assert "step 4 of 4" in run("train_vae", *vae, "train.steps=4")
    assert [row["step"] for row in metrics(tmp_path / "vae")] == [1, 2, 3, 4]
    trained = tmp_path / "vae" / "checkpoint"
    ldm = arguments("ldm", tmp_path / "ldm", Path("emoji-128"), *few, f"first_stage.checkpoint={trained}")
    assert "done: checkpoint in" in run("train_ldm", *ldm, "train.steps=3")
    assert len(metrics(tmp_path / "ldm")) == 3


def test_workers_are_forked_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert start_method() == "fork"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert start_method() == "spawn"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert start_method() == "spawn"


def test_a_data_set_is_sent_to_a_process(tmp_path: Path) -> None:
    """The built-in shards and a folder: samples are the same there, and the order."""
    for place in ("emoji-128", str(write_squares(tmp_path / "photos"))):
        data = open_dataset(DataConfig(train=place, val=None, size=16), "train", 0)
        sent = pickle.loads(pickle.dumps(data))
        assert sent.digest == data.digest and torch.equal(sent.sample(3, 1).image, data.sample(3, 1).image)
    order = GlobalOrder(10, 4, 7)
    assert pickle.loads(pickle.dumps(order)).indices(3) == order.indices(3)


def test_raw_files_are_copied_where_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    (tmp_path / "raw" / "below").mkdir(parents=True)
    (tmp_path / "raw" / "below" / "data_batch_1").write_bytes(b"pictures")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    LAY_OUT["cifar10"](tmp_path / "raw", tmp_path)
    assert (tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes() == b"pictures"
