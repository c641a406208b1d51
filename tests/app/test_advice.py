"""What a training's messages advise: each refusal, then what it says to do, which must work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import arguments, metrics

from ldm.app.arguments import train_vae
from ldm.checkpoints.folder import Checkpoint
from ldm.core.errors import UserError
from ldm.training.run_folder import RunFolder

QUICK = ["train.steps=4", "train.checkpoint_every=2", "loss.disc_factor=0"]
TOO_HIGH = "train.optimizer.learning_rate=1e38"


@pytest.fixture
def train(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains stage one in a folder of that name, from there or the start; returns the folder."""
    monkeypatch.setattr(RunFolder, "draw_curves", lambda self: None)  # which would take most of the time

    def run(name: str, *changes: str) -> Path:
        train_vae.main(arguments("vae", tmp_path / name, squares, *QUICK, *changes))
        return tmp_path / name

    return run


def steps(run: Path) -> list[float]:
    return [row["step"] for row in metrics(run)]


def test_after_a_rate_too_high_the_same_command_with_a_lower_one_starts_again(train: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match="step 2, 3, 4: .* not a finite number.*lower train.optimizer.learning_rate.*with that starts again"
    ):
        train("run", TOO_HIGH)
    assert steps(train("run", "train.optimizer.learning_rate=1e-4")) == [1, 2, 3, 4]


def test_after_a_rate_too_high_the_same_command_with_a_lower_one_goes_on(train: Callable[..., Path]) -> None:
    run = train("run", "train.steps=2")
    with pytest.raises(UserError, match=r"not a finite number.*with that goes on from step 2\."):
        train("run", TOO_HIGH)
    assert steps(train("run", "train.optimizer.learning_rate=1e-4", "train.precision=bf16")) == [1, 2, 3, 4]
    Checkpoint.open(run / "checkpoint")


def test_weights_that_are_not_finite_are_not_saved(train: Callable[..., Path]) -> None:
    """A gradient that is finite may still take them out of float32."""
    run = train("run", "train.steps=2")
    with pytest.raises(UserError, match=r"step 3: first_stage has \d+ tensors that are not finite.*not saved: lower .*goes on from step 2"):
        train("run", TOO_HIGH, "train.steps=3")
    assert [path.name for path in (run / "state").iterdir()] == ["step-00000002"]
    assert all(tensor.isfinite().all() for tensor in Checkpoint.open(run / "checkpoint").tensors("first_stage").values())
    assert steps(train("run")) == [1, 2, 3, 4]


def test_precision_may_change(train: Callable[..., Path]) -> None:
    for number, precision in enumerate(("fp32", "bf16", "fp16", "fp32"), 1):
        run = train("run", f"train.steps={number}", f"train.precision={precision}", "train.accumulate=2", "data.max_lost=0.5")
    assert steps(run) == [1, 2, 3, 4]


def test_a_model_without_state_goes_on_in_a_new_folder(train: Callable[..., Path]) -> None:
    run = train("run")
    shutil.rmtree(run / "state")
    with pytest.raises(UserError, match=f"no state .*a new folder, where init_from={run}/checkpoint starts from its weights"):
        train("run")
    with pytest.raises(UserError, match="another config .differs in init_from"):
        train("run", f"init_from={run / 'checkpoint'}")
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="holds '.*', which training would overwrite"):
        train("run", f"init_from={run / 'checkpoint'}")
    Checkpoint.open(run / "checkpoint")
    assert steps(train("new", f"init_from={run / 'checkpoint'}")) == [1, 2, 3, 4]


def test_a_damaged_state_goes_on_in_a_new_folder(train: Callable[..., Path]) -> None:
    run = train("run")
    (run / "state" / "step-00000004" / "progress.json").write_text("{}")
    with pytest.raises(UserError, match=f"step-00000004 was truncated .*in a new --run-dir, with init_from={run}/checkpoint"):
        train("run", "train.steps=8")
    train("new", f"init_from={run / 'checkpoint'}", "train.steps=1")


def test_changed_data_goes_on_in_a_new_folder(train: Callable[..., Path], squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    run = train("run", f"data.train={data}", "train.steps=2")
    Image.new("RGB", (20, 20), "red").save(data / "odd" / "new.png")
    with pytest.raises(UserError, match="training data changed .*new folder .with init_from to start from this run's checkpoint"):
        train("run", f"data.train={data}")
    train("new", f"data.train={data}", f"init_from={run / 'checkpoint'}", "train.steps=1")
