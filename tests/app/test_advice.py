"""What a training's messages advise: each refusal, then what it says to do, which must work."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import arguments, metrics

from ldm.app.arguments import train_ldm, train_vae
from ldm.checkpoints.folder import Checkpoint
from ldm.core.errors import UserError
from ldm.training.lock import NAME

MAINS: dict[str, Callable[[Sequence[str]], None]] = {"vae": train_vae.main, "ldm": train_ldm.main}
QUICK = ["train.steps=6", "train.checkpoint_every=2", "loss.disc_factor=0"]


@pytest.fixture
def train(squares: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains stage one in a folder of that name, from there or the start; returns the folder."""

    def run(name: str, *changes: str) -> Path:
        train_vae.main(arguments("vae", tmp_path / name, squares, *QUICK, *changes))
        return tmp_path / name

    return run


def steps(run: Path) -> list[float]:
    return [row["step"] for row in metrics(run)]


@pytest.mark.parametrize("rate, said", [("1e38", "step 2: .* not a finite number"), ("3e38", "step 2: .* not a finite number")])
def test_after_a_rate_too_high_the_same_command_with_a_lower_one_starts_again(train: Callable[..., Path], rate: str, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*lower train.optimizer.learning_rate.*the same command with that starts again"):
        train("run", f"train.optimizer.learning_rate={rate}")
    assert steps(train("run", "train.optimizer.learning_rate=1e-4")) == [1, 2, 3, 4, 5, 6]


def test_after_a_rate_too_high_the_same_command_with_a_lower_one_goes_on(train: Callable[..., Path]) -> None:
    run = train("run", "train.steps=2")
    with pytest.raises(UserError, match=r"not a finite number.*with that goes on from step 2\."):
        train("run", "train.optimizer.learning_rate=1e38")
    assert steps(train("run", "train.optimizer.learning_rate=1e-4", "train.precision=bf16")) == [1, 2, 3, 4, 5, 6]
    Checkpoint.open(run / "checkpoint")


def test_weights_that_are_not_finite_are_not_saved(train: Callable[..., Path]) -> None:
    """A gradient that is finite may still take them out of float32."""
    run = train("run", "train.steps=2")
    with pytest.raises(UserError, match=r"step 3: first_stage has \d+ tensors that are not finite.*not saved: lower .*goes on from step 2"):
        train("run", "train.optimizer.learning_rate=1e38", "train.steps=3")
    assert [path.name for path in (run / "state").iterdir()] == ["step-00000002"]
    assert all(tensor.isfinite().all() for tensor in Checkpoint.open(run / "checkpoint").tensors("first_stage").values())
    assert steps(train("run")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("before, after", [("fp32", "bf16"), ("bf16", "fp16"), ("fp16", "fp32")])
def test_precision_may_change(train: Callable[..., Path], before: str, after: str) -> None:
    train("run", "train.steps=2", f"train.precision={before}")
    assert steps(train("run", f"train.precision={after}", "train.accumulate=2", "data.max_lost=0.5")) == [1, 2, 3, 4, 5, 6]


def test_a_model_without_state_goes_on_in_a_new_folder(train: Callable[..., Path], tmp_path: Path) -> None:
    run = train("run")
    shutil.rmtree(run / "state")
    for changes in ((), (f"init_from={run / 'checkpoint'}",)):
        with pytest.raises(UserError, match="another config|no state to go on from.*init_from=") as refused:
            train("run", *changes)
    Checkpoint.open(run / "checkpoint")
    with pytest.raises(UserError, match=f"no state .*a new folder, where (init_from={run}/checkpoint) starts from its weights") as refused:
        train("run")
    assert f"init_from={run / 'checkpoint'}" in str(refused.value)
    assert steps(train("new", f"init_from={run / 'checkpoint'}")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"step": 6}', "[" * 100_000, '{"sha256": 1e999}', None])
def test_a_damaged_state_goes_on_in_a_new_folder(train: Callable[..., Path], manifest: str | None) -> None:
    run = train("run")
    state = run / "state" / "step-00000006"
    if manifest is None:
        (state / "state.pt").write_bytes(b"no weights")
    else:
        (state / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=f"step-00000006 (cannot be read|was trunc).*in a new --run-dir, with init_from={run}/checkpoint"):
        train("run", "train.steps=8")
    if manifest is None:
        train("new", f"init_from={run / 'checkpoint'}", "train.steps=1")


def test_changed_data_goes_on_in_a_new_folder(train: Callable[..., Path], squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    run = train("run", f"data.train={data}", "train.steps=2")
    Image.new("RGB", (20, 20), "red").save(data / "odd" / "new.png")
    with pytest.raises(UserError, match="training data changed .*new folder .with init_from to start from this run's checkpoint"):
        train("run", f"data.train={data}")
    train("new", f"data.train={data}", f"init_from={run / 'checkpoint'}", "train.steps=1")


@pytest.mark.parametrize(
    "line",
    ["[]", "3", '"x"', "{}", '{"step": "a"}', '{"step": 1e999}', '{"step": 1, "loss": null}', "\udcff\udcfe", "", "[" * 100_000, f'{{"step": {10**400}}}'],
    ids=range(11),
)  # fmt: skip
def test_a_line_of_the_metrics_that_no_run_writes_is_named(train: Callable[..., Path], line: str) -> None:
    run = train("run", "train.steps=2")
    before = (run / "metrics.jsonl").read_bytes()
    broken = line.encode(errors="surrogateescape") + b"\n" + before
    (run / "metrics.jsonl").write_bytes(broken)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1: no run writes such a line .*: remove it"):
        train("run", "train.steps=3")
    assert (run / "metrics.jsonl").read_bytes() == broken
    (run / "metrics.jsonl").write_bytes(before)
    assert steps(train("run", "train.steps=3")) == [1, 2, 3]
