"""The engine, with a toy task: resume, distribution, refusal of NaN, signals."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tasks import TASKS, HalfLabelled, train_config
from torch import Tensor, nn

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.files import _beside, sha256_of
from ldm.core.precision import Precision
from ldm.core.random import Streams
from ldm.training.config import OptimizerConfig, TrainConfig
from ldm.training.ema import Ema
from ldm.training.engine import _Engine, fit
from ldm.training.run_folder import RunFolder
from ldm.training.state import Progress, open_state, save_state
from ldm.training.step_numbers import read
from ldm.training.task import Evaluation, Pass
from ldm.training.undone import UndoneSteps

WORLD = World(0, 1, torch.device("cpu"))
PROGRESS = Progress(data="", scaler={}, texts={})


class Regression:
    """A network with dropout learns a line, on data drawn by (step, position)."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.trained: dict[str, nn.Module] = {"net": self.net}
        self.averaged = {"net": Ema(self.net, config.ema_decay)}
        self.groups = {"net": list(self.net.parameters())}
        self.data_digest = "lines"
        self.lost: list[tuple[int, str]] = []
        self.places: dict[int, tuple[int, int]] = {}
        self.poison_at = self.stop_at = 0

    def describe(self) -> dict[str, int]:
        return {"net": sum(p.numel() for p in self.net.parameters())}

    def batches(self, first_step: int) -> Iterator[tuple[int, Tensor]]:
        step = first_step
        while True:
            if step == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step, Streams.of("data", step, samples=range(self.config.batch_size)).normal("x", (3,))
            step += 1

    def names(self, batch: tuple[int, Tensor]) -> tuple[str, ...]:
        return tuple(f"sample-{i}" for i in range(len(batch[1])))

    def accumulate(self, batch: tuple[int, Tensor], now: Pass) -> dict[str, Tensor]:
        step, x = batch
        total = torch.zeros(())
        for piece in x.chunk(self.config.accumulate):
            loss = (self.net(piece)[:, 0] - piece.sum(1)).square().sum() / now.batch_size
            if step == self.poison_at:
                loss = loss * float("nan")
            now.backward(loss)
            total += loss.detach()
        return {"loss": total}

    def evaluate(self, autocast) -> Evaluation:  # noqa: ANN001
        return Evaluation(metrics={"val/loss": 1.0}, lines=("fine",))

    def sample_grid(self, autocast) -> Tensor:  # noqa: ANN001
        return torch.zeros(3, 4, 4)

    def save(self, folder: Path, step: int, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step").write_text(str(step))


def config(**changes) -> TrainConfig:  # noqa: ANN003
    values = {"steps": 12, "batch_size": 4, "checkpoint_every": 5, "sample_every": 100, "optimizer": OptimizerConfig(learning_rate=0.01)}
    return TrainConfig(**{**values, **changes})


def weights(task: Regression) -> Tensor:
    return torch.cat([p.detach().flatten() for module in (task.net, task.averaged["net"].module) for p in module.parameters()])


def trained(folder: Path, train: TrainConfig) -> Regression:
    task = Regression(train)
    assert fit(task, train, RunFolder(folder, True), 0, WORLD)
    return task


@pytest.fixture
def whole(tmp_path: Path) -> Tensor:
    return weights(trained(tmp_path / "whole", config()))


def test_resume_is_bitwise_equal_to_the_uninterrupted_run(tmp_path: Path, whole: Tensor) -> None:
    """Stopped by SIGTERM after step 7; dropout, Adam moments, average and data order all go on as if nothing had happened."""
    task = Regression(config())
    task.stop_at = 7
    assert not fit(task, config(), RunFolder(tmp_path / "cut", True), 0, WORLD)
    found = open_state(tmp_path / "cut" / "state", WORLD)
    assert found and found.step == 7
    resumed = trained(tmp_path / "cut", config())
    assert torch.equal(weights(resumed), whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_run_that_an_earlier_release_began_goes_on(tmp_path: Path, whole: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    """Its one file has weights, averages and moments, these by the weights' numbers; here all else is as today, so the end is the same."""
    trained(tmp_path / "cut", config(steps=5))
    task = Regression(config())
    engine = _Engine(task, config(), RunFolder(tmp_path / "cut", True), 0, WORLD)
    assert engine.restore() == 5
    state = tmp_path / "cut" / "state" / "step-00000005"
    for file in (*state.glob("*.safetensors"), state / "progress.json"):
        file.unlink()
    content = {
        "data": task.data_digest,
        "trained": {"net": task.net.state_dict()},
        "averaged": {"net": task.averaged["net"].module.state_dict()},
        "optimizers": {"net": engine.optimizers["net"].state_dict()},
        "scaler": {},
    }
    torch.save(content, state / "state.pt")
    (state / "manifest.json").write_text(json.dumps({"step": 5, "sha256": sha256_of(state / "state.pt")}))
    capsys.readouterr()
    assert torch.equal(weights(trained(tmp_path / "cut", config())), whole)
    said = "an earlier release made the first 5 steps"
    assert said in capsys.readouterr().out
    trained(tmp_path / "cut", config(steps=13))
    assert said not in capsys.readouterr().out


def test_the_bar_of_a_resumed_run_counts_all_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, config(steps=5))
    assert "5/5" in capsys.readouterr().err
    trained(tmp_path, config())
    assert "12/12" in capsys.readouterr().err


def test_checkpoints_that_are_kept(tmp_path: Path, whole: Tensor) -> None:
    """Those of every fourth step stay, beside the newest; also that of a step after whose state the run was killed."""
    keeping = config(keep_every=4)
    run = RunFolder(tmp_path / "run", True)
    assert torch.equal(weights(trained(run.path, config(keep_every=4, steps=8))), weights(trained(tmp_path / "eight", config(steps=8))))
    (run.kept_path(8) / "step").unlink()
    (run.state_path / "step-00000008" / "published").unlink()
    assert torch.equal(weights(trained(run.path, keeping)), whole)
    assert {folder.name: (folder / "step").read_text() for folder in (run.path / "checkpoints").iterdir()} == {
        "step-000004": "4",
        "step-000008": "8",
        "step-000012": "12",
    }
    assert (run.checkpoint_path / "step").read_text() == "12"
    with pytest.raises(UserError, match="keep_every must be at least 1, or null, got 0"):
        config(keep_every=0)


class Measured(Regression):
    """Evaluations give what is wanted of them."""

    def __init__(self, config: TrainConfig, values: list[float], name: str = "val/loss") -> None:
        super().__init__(config)
        self.values, self.name = values, name
        self.step = 0

    def accumulate(self, batch: tuple[int, Tensor], now: Pass) -> dict[str, Tensor]:
        self.step = now.step
        return super().accumulate(batch, now)

    def evaluate(self, autocast) -> Evaluation:  # noqa: ANN001
        return Evaluation(metrics={self.name: self.values[self.step // 2 - 1]})


@pytest.mark.parametrize(
    "name, values, best",
    [
        ("val/loss", [3.0, 1.0, 2.0, 1.0, 4.0, 5.0], "4"),  # the first of two equal ones
        ("val/psnr", [3.0, 1.0, 2.0, 3.5, 4.0, 2.0], "10"),
        ("val/accuracy_log_snr_+2", [3.0, 1.0, 2.0, 3.5, 4.0, 2.0], "10"),
        ("val/loss", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "2"),
    ],
)
def test_the_best_evaluations_checkpoint_is_kept(tmp_path: Path, name: str, values: list[float], best: str) -> None:
    """Also where the run was stopped and went on."""
    run, train = RunFolder(tmp_path / "run", True), config(sample_every=2, keep_best=name)
    task = Measured(train, values, name)
    task.stop_at = 7
    assert not fit(task, train, run, 0, WORLD)
    assert fit(Measured(train, values, name), train, run, 0, WORLD)
    assert (run.best_path / "step").read_text() == best
    assert f"step {best}: best {name} so far" in run.report_path.read_text()


def test_a_number_that_is_not_measured_is_no_best(tmp_path: Path) -> None:
    train = config(sample_every=2, keep_best="val/fid")
    with pytest.raises(UserError, match="train.keep_best=val/fid: no such number is measured here; allowed: val/loss"):
        fit(Measured(train, [1.0] * 6), train, RunFolder(tmp_path, True), 0, WORLD)


def test_a_run_says_when_it_overfits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = config(sample_every=2, steps=12)
    assert fit(Measured(train, [3.0, 1.0, 2.0, 3.0, 4.0, 5.0]), train, RunFolder(tmp_path, True), 0, WORLD)
    assert "overfitting: the held-out error was least at step 4 (val/loss 1) and is 5 now" in capsys.readouterr().out
    assert "overfitting" in (tmp_path / "report.txt").read_text()


def test_what_is_logged_past_the_restored_step_is_cut(tmp_path: Path, whole: Tensor) -> None:
    """A kill leaves lines, one of them half written, that the restored state knows nothing of."""
    trained(tmp_path / "run", config(steps=5))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    (tmp_path / "run" / "report.txt").write_text("step 5: fine\nstep 6: all is well\nstep 7: al")
    resumed = trained(tmp_path / "run", config())
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
    assert torch.equal(weights(resumed), whole)
    report = (tmp_path / "run" / "report.txt").read_text()
    assert "step 5: fine\n" in report and "all is well" not in report and "step 7: al" not in report


LINES = [
    "[]",
    "3",
    '"x"',
    "{}",
    '{"step": "a"}',
    '{"step": 1e999}',
    '{"step": 1, "loss": null}',
    "\udcff",
    "",
    "[" * 100_000,
    f'{{"step": {10**400}}}',
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
@pytest.mark.parametrize("name", ["metrics.jsonl", "report.txt"])
def test_a_line_that_no_run_writes_is_named_and_stays(tmp_path: Path, name: str, line: str) -> None:
    broken = b"\n".join(
        [{"metrics.jsonl": b'{"step": 1, "loss": NaN}', "report.txt": b"step 1: a"}[name], line.encode(errors="surrogateescape"), b""]
    )
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(UserError, match=f"{name}, line 2: no run writes such a line .*: remove it"):
        RunFolder(tmp_path, True).open(5)
    assert (tmp_path / name).read_bytes() == broken


def test_micro_batches_make_the_same_gradient(tmp_path: Path) -> None:
    def first_step(accumulate: int) -> Tensor:
        task = Regression(config(steps=1, accumulate=accumulate, ema_decay=0.0))
        task.net[1].p = 0.0
        fit(task, task.config, RunFolder(tmp_path / str(accumulate), True), 0, WORLD)
        return torch.cat([p.grad.flatten() for p in task.net.parameters() if p.grad is not None])

    torch.testing.assert_close(first_step(3), first_step(1))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_whole_gradient_is_clipped_and_logged_as_it_was(tmp_path: Path, precision: Precision) -> None:
    """In fp16 as well: the loss's scale is taken out before the norm is measured."""

    def first_step(clip_norm: float | None) -> tuple[Tensor, float]:
        task = Regression(config(steps=1, precision=precision, optimizer=OptimizerConfig(learning_rate=0.01, clip_norm=clip_norm)))
        run = RunFolder(tmp_path / str(clip_norm), True)
        fit(task, task.config, run, 0, WORLD)
        logged = json.loads(run.metrics_path.read_text())["gradient_norm/net"]
        return torch.cat([p.grad.flatten() for p in task.net.parameters() if p.grad is not None]), logged

    free, norm = first_step(None)
    assert norm == pytest.approx(free.norm().item(), rel=1e-5)
    clipped, logged = first_step(norm / 4)
    assert logged == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=1e-7)
    untouched, _ = first_step(norm * 4)
    torch.testing.assert_close(untouched, free)


class Normed(Regression):
    """Counts in a buffer what it has seen, as batch normalization does."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.trained["norm"] = self.norm

    def accumulate(self, batch: tuple[int, Tensor], now: Pass) -> dict[str, Tensor]:
        step, x = batch
        self.norm(x * float("nan") if step == self.poison_at else x)
        return super().accumulate(batch, now)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_whose_loss_is_nan_is_undone(tmp_path: Path, precision: Precision, fused: bool) -> None:
    """Weights, moments, buffers and average are as before it to the bit, and the next step moves them."""
    task = Normed(config(precision=precision))
    task.poison_at = 6
    engine, batches = _Engine(task, task.config, RunFolder(tmp_path, True), 0, WORLD), task.batches(1)
    if not fused:
        engine.optimizers = {"net": torch.optim.SGD(task.groups["net"], lr=0.01, momentum=0.9)}

    def state() -> list[Tensor]:
        moments = [value for one in engine.optimizers["net"].state.values() for value in one.values() if isinstance(value, Tensor)]
        parts = [*task.net.state_dict().values(), *task.norm.state_dict().values(), *task.averaged["net"].module.state_dict().values()]
        return [tensor.clone() for tensor in (*parts, *moments)]

    for step in range(1, 6):
        engine.step(step, next(batches))
    before = state()
    assert not engine.step(6, next(batches)).values.isfinite().all()
    assert all(torch.equal(now, old) for now, old in zip(state(), before, strict=True))
    engine.step(7, next(batches))
    assert not any(torch.equal(now, old) for now, old in zip(state(), before, strict=True))


def test_a_run_goes_on_past_a_step_that_is_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and a state that was due at it comes with the next step: what is saved is not the first of a row of them."""
    task = Regression(config(steps=7, checkpoint_every=6))
    task.poison_at = 6
    run = RunFolder(tmp_path, True)
    saved: list[int] = []
    task.save = lambda folder, step, steps: saved.append(step)  # type: ignore[method-assign]
    assert fit(task, replace(task.config, steps=7, checkpoint_every=6), run, 0, WORLD)
    said = "step 6: loss, gradient_norm/net is not a finite number: the step is undone. Batch: sample-0, sample-1"
    assert said in run.report_path.read_text() and said in capsys.readouterr().out
    rows = run.history()
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["step"] for row in rows if not math.isfinite(row["loss"])] == [6]
    assert saved == [7]


@pytest.mark.parametrize("apart", [1, 3])
def test_ten_undone_steps_end_the_run_and_a_resumed_one_counts_on(tmp_path: Path, apart: int) -> None:
    """Ten in a row, or among the last thousand; steps and pictures are named, and weights are as before."""
    task = Regression(config(steps=60, checkpoint_every=5))
    poisoned = range(7, 7 + 10 * apart, apart)
    accumulate = task.accumulate

    def poisoning(batch: tuple[int, Tensor], now: Pass) -> dict[str, Tensor]:
        task.poison_at = now.step if now.step in poisoned else 0
        return accumulate(batch, now)

    task.accumulate = poisoning  # type: ignore[method-assign]
    run = RunFolder(tmp_path, True)
    if apart > 1:
        assert fit(task, replace(task.config, steps=20), run, 0, WORLD)
    with pytest.raises(UserError, match=f"step {', '.join(map(str, poisoned))}: loss, gradient_norm/net is not a finite .*sample-0"):
        fit(task, task.config, run, 0, WORLD)
    found = open_state(run.state_path, WORLD)
    assert found and found.step == (5 if apart == 1 else 30)
    if apart == 1:
        assert torch.equal(weights(task)[:10], weights(trained(tmp_path / "six", config(steps=6)))[:10])


def test_undone_steps_are_forgotten_after_a_thousand() -> None:
    undone = UndoneSteps()
    for step in range(1, 2001):
        undone.add(step, {"loss": float("nan" if step % 112 == 0 else 1)}, ())
        assert not undone.too_many
    assert undone.steps == [1008, 1120, 1232, 1344, 1456, 1568, 1680, 1792, 1904]


def test_a_run_that_ends_with_undone_steps_is_not_called_finished(tmp_path: Path) -> None:
    task = Regression(config(steps=6))
    task.poison_at = 6
    with pytest.raises(UserError, match="step 6: loss, .*goes on from step 5"):
        fit(task, task.config, RunFolder(tmp_path, True), 0, WORLD)
    found = open_state(tmp_path / "state", WORLD)
    assert found and found.step == 5


def test_a_gradient_that_is_not_finite_reaches_no_weight(tmp_path: Path) -> None:
    """Of a loss that is; nor does the average move towards the weights."""
    task = Regression(config(steps=3))
    with torch.no_grad():
        task.averaged["net"].module[0].bias += 1
    before = weights(task)
    task.net[2].bias.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(UserError, match=r"step 1, 2, 3: gradient_norm/net is not a finite number.*sample-0, sample-1"):
        fit(task, task.config, RunFolder(tmp_path, True), 0, WORLD)
    assert torch.equal(weights(task), before)


def test_numbers_are_read_and_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of train.log_every steps, a line a step; the block in hand before an evaluation or a state."""
    lines: list[list[int]] = []
    monkeypatch.setattr("ldm.training.engine.read", lambda block: lines.append([one.step for one in block]) or read(block))
    trained(tmp_path / "whole", config(steps=24, checkpoint_every=14, log_every=4))
    assert lines == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12], [13, 14], [15, 16], [17, 18, 19, 20], [21, 22, 23, 24]]
    rows = RunFolder(tmp_path / "whole", True).history()
    assert [row["step"] for row in rows] == list(range(1, 25))
    one_by_one = RunFolder(trained_in(tmp_path / "single", config(steps=24, log_every=1)), True).history()
    assert [row["loss"] for row in rows] == [row["loss"] for row in one_by_one]


def trained_in(folder: Path, train: TrainConfig) -> Path:
    trained(folder, train)
    return folder


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Tensor) -> None:
    """Within step 7: it is neither finished nor saved, and the run goes on from the state of step 5."""
    task, handler = Regression(config()), signal.getsignal(signal.SIGINT)
    accumulate = task.accumulate

    def impatient(batch: tuple[int, Tensor], now: Pass) -> dict[str, Tensor]:
        for _ in range(2 if now.step == 7 else 0):
            signal.raise_signal(signal.SIGINT)
        return accumulate(batch, now)

    monkeypatch.setattr(task, "accumulate", impatient)
    with pytest.raises(KeyboardInterrupt):
        fit(task, config(), RunFolder(tmp_path / "run", True), 0, WORLD)
    assert torch.equal(weights(task), weights(trained(tmp_path / "six", config(steps=6))))
    assert signal.getsignal(signal.SIGINT) is handler
    found = open_state(tmp_path / "run" / "state", WORLD)
    assert found and found.step == 5
    assert torch.equal(weights(trained(tmp_path / "run", config())), whole)


@pytest.mark.parametrize(
    "manifest", ["[]", "{}", '{"step": 6}', '{"step": 6, "files": {}}', "[" * 100_000, '{"sha256": 1e999}', "", "\udcff"]
)
def test_a_state_whose_manifest_is_broken_is_refused_in_one_line(tmp_path: Path, manifest: str) -> None:
    save_state(tmp_path / "state", 6, {}, PROGRESS, WORLD)
    (tmp_path / "state" / "step-00000006" / "manifest.json").write_bytes(manifest.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"step-00000006 (cannot be read|was truncated).*with init_from={tmp_path}/checkpoint"):
        open_state(tmp_path / "state", WORLD)


def test_an_altered_state_is_refused_in_one_line(tmp_path: Path) -> None:
    trained(tmp_path / "run", config(steps=5))
    (state,) = (tmp_path / "run" / "state" / "step-00000005").glob("*.safetensors")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(UserError, match="truncated or altered"):
        trained(tmp_path / "run", config())


def test_what_a_killed_save_left_is_put_right(tmp_path: Path, whole: Tensor) -> None:
    """Between its two renames: the old state lies under another name, the new one is not complete."""
    states = tmp_path / "run" / "state"
    trained(tmp_path / "run", config(steps=5))
    (states / "step-00000005").rename(_beside(states / "step-00000005", "old"))
    _beside(states / "step-00000010", "tmp").mkdir()
    assert torch.equal(weights(trained(tmp_path / "run", config())), whole)
    assert sorted(path.name for path in states.iterdir()) == ["step-00000010", "step-00000012"]


def test_tensorboard_forgets_what_is_past_the_restored_step(tmp_path: Path) -> None:
    """Each step stands there once, with what the second sitting says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = RunFolder(tmp_path, True)
    for first, last in ((1, 7), (6, 8)):
        run.open(first - 1)
        for step in range(first, last + 1):
            run.log(step, {"loss": 10 * first + step})
        run.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    said = [(event.step, event.value) for event in events]
    assert said == [(step, 10 + step) for step in range(1, 6)] + [(step, 60 + step) for step in range(6, 9)]


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Tensor) -> None:
    sync = os.fsync

    def full(number: int) -> None:
        if "step-00000010" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path / "run", config())
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["step-00000005"]
    assert torch.equal(weights(trained(tmp_path / "run", config())), whole)


def test_learning_rate_warms_up_and_decays() -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay="cosine", final_rate=0.1)
    rates = [optimizer.rate_at(step, 24) for step in (1, 4, 14, 24)]
    assert rates == pytest.approx([0.5, 2.0, 1.1, 0.2])


def test_average_follows_the_published_rule() -> None:
    """shadow <- d shadow + (1 - d) live, with d = min(decay, (1 + step) / (10 + step))."""
    live = nn.Linear(2, 2)
    average = Ema(live, decay=0.5)
    start = live.weight.detach().clone()
    with torch.no_grad():
        live.weight += 1
    average.update(1, torch.tensor(True))
    torch.testing.assert_close(average.module.weight, start + (1 - 2 / 11))
    average.update(1000, torch.tensor(True))
    torch.testing.assert_close(average.module.weight, start + 1 - 0.5 * 2 / 11)
    average.update(1001, torch.tensor(False))
    torch.testing.assert_close(average.module.weight, start + 1 - 0.5 * 2 / 11)


def test_the_average_has_the_live_buffers_when_it_is_used() -> None:
    live = nn.BatchNorm1d(2)
    average = Ema(live, decay=0.5)
    live(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    average.copy_buffers()
    torch.testing.assert_close(average.module.state_dict(), live.state_dict())


def test_what_has_no_weights_is_averaged_without_complaint() -> None:
    Ema(nn.Identity(), decay=0.9).update(1, torch.tensor(True))


def test_a_finished_run_without_its_checkpoint_writes_it(tmp_path: Path) -> None:
    """A kill between the last state and its checkpoint."""
    trained(tmp_path / "run", config(steps=5))
    (tmp_path / "run" / "state" / "step-00000005" / "published").unlink()
    (tmp_path / "run" / "checkpoint" / "step").unlink()
    trained(tmp_path / "run", config(steps=5))
    assert (tmp_path / "run" / "checkpoint" / "step").read_text() == "5"


def test_changed_data_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run", config(steps=5))
    task = Regression(config())
    task.data_digest = "other lines"
    with pytest.raises(UserError, match="training data changed"):
        fit(task, config(), RunFolder(tmp_path / "run", True), 0, WORLD)


def test_an_evaluation_that_fails_costs_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Regression, autocast: object) -> Evaluation:
        raise UserError("out of luck")

    monkeypatch.setattr(Regression, "evaluate", failing)
    with pytest.raises(UserError, match="out of luck"):
        trained(tmp_path / "run", config(sample_every=5))
    found = open_state(tmp_path / "run" / "state", WORLD)
    assert found and found.step == 5


@pytest.mark.parametrize("is_held_out", [True, False])
@pytest.mark.parametrize("which", TASKS)
def test_numbers_of_training_pictures_are_not_called_held_out(which: str, is_held_out: bool) -> None:
    task = TASKS[which](WORLD, train_config())
    if is_held_out:
        (task.latents if hasattr(task, "latents") else task).held_out = HalfLabelled()
    with torch.no_grad():
        found = task.evaluate(nullcontext())
    pictures, prefix = ("held-out", "val/") if is_held_out else ("training", "train_eval/")
    assert found.metrics and all(name.startswith(prefix) for name in found.metrics)
    assert found.lines[0].startswith(pictures)
