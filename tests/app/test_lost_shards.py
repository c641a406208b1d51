"""Remote shards that are lost in training: the run goes on, and resuming it stays exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import arguments, write_squares

from ldm.app.arguments.train_vae import main
from ldm.core.distributed import World
from ldm.data import attempts
from ldm.data.shards import write_shards
from ldm.data.sources.folder import FolderSource
from ldm.training.state import SavedState, open_state


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two shards of ten records, the second of which is away while the file `away` is there."""
    monkeypatch.setattr(attempts, "WAITS", (0.0,))
    source = FolderSource(write_squares(tmp_path / "squares"))
    for shard in range(2):
        write_shards(tmp_path, f"part{shard}", map(source.record, range(10)))
    (tmp_path / "away").touch()
    return f"pipe:f={tmp_path}/part{{0..1}}-000000.tar; case $f in *1-000000.tar) [ ! -e {tmp_path}/away ];; esac && cat $f"


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = newest(run)
    lost = saved.progress.lost
    assert lost[0][0] == 0 and all("part1" in url for _, url in lost) and len(saved.progress.places) == 2
    return {name: tensor for name, tensor in saved.tensors().items() if name.startswith("trained/first_stage/")}


def newest(run: Path) -> SavedState:
    saved = open_state(run / "state", World(0, 1, torch.device("cpu")))
    assert saved is not None
    return saved


def train(run: Path, place: str, steps: int, *more: str) -> None:
    words = [*arguments("vae", run, Path("unused"))[:4], f"data.train={place}", "data.allow_remote=true", "data.max_lost=0.6"]
    main([*words, "train.batch_size=2", f"train.steps={steps}", *more])


def test_a_run_that_lost_a_shard_resumes_exactly(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "whole", place, 4)
    train(tmp_path / "cut", place, 2)
    (tmp_path / "away").unlink()
    capsys.readouterr()
    train(tmp_path / "cut", place, 4)
    said = capsys.readouterr().out
    assert (
        "shards that were lost before are left out again: pipe:" in said and " in epoch 0" in said and "; --retry-lost fetches them" in said
    )
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_lost_shards_are_fetched_again_if_asked(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", place, 2)
    (tmp_path / "away").unlink()
    train(tmp_path / "run", place, 4, "--retry-lost")
    assert "left out again" not in capsys.readouterr().out
    assert newest(tmp_path / "run").progress.lost == ()
