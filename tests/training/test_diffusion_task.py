"""Stage two's task with what its objective may need: a learned variance, steps drawn by their cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tasks import DrawnPictures, diffusion_task, numbers_of, train_config

from ldm.checkpoints.folder import Checkpoint, load_strictly
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.inputs import ConditionInputs
from ldm.config.loader import build
from ldm.core.condition import Condition
from ldm.core.distributed import World
from ldm.core.random import Streams
from ldm.diffusion.importance import ImportanceSteps
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.training.config import TrainConfig
from ldm.training.diffusion_model import DiffusionParts
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.engine import _Engine
from ldm.training.latents import LatentData
from ldm.training.parallel import SharedGradients
from ldm.training.run_folder import RunFolder
from ldm.training.task import Pass

ALONE = World(0, 1, torch.device("cpu"))
PROCESS = DiscreteVP(num_steps=4, beta_first=0.1, beta_last=0.9)


def hybrid_task(config: TrainConfig) -> DiffusionTask:
    """The tiny task with the hybrid loss on four steps, drawn by the last loss of each."""
    plain = diffusion_task(ALONE, config)
    spec = dataclasses.replace(plain.model.spec, process=PROCESS, learned_variance=True)
    objective = Objective(
        process=PROCESS,
        prediction=VPrediction(),
        density=ImportanceSteps(history=1).begin(PROCESS),
        learned_variance=True,
        vlb_weight=0.001,
    )
    torch.manual_seed(1)
    conditioners = plain.model.conditioners
    parts = DiffusionParts(
        spec=spec,
        first_stage=plain.model.first_stage,
        first_stage_weights={},
        network=spec.build_network(conditioners),
        conditioners=conditioners,
    )
    return DiffusionTask(parts, objective, LatentData(train_set=DrawnPictures()), config, drop_all=0.1, prompts=(), seed=0, world=ALONE)


def engine_of(task: DiffusionTask, config: TrainConfig, folder: Path) -> _Engine:
    return _Engine(task, config, RunFolder(folder, True), 0, ALONE)


def test_what_steps_cost_is_learned_and_survives_a_resume(tmp_path: Path) -> None:
    config = train_config(steps=9)
    task = hybrid_task(config)
    engine, batches = engine_of(task, config, tmp_path), task.batches(1)
    even = task.memory.probabilities()
    for step in (1, 2):
        engine.step(step, next(batches))
    (tmp_path / "metrics.jsonl").touch()  # of which curves are drawn
    engine.save(2)
    learned = task.memory.probabilities()
    assert task.memory.seen.tolist() == [1, 1, 1, 1]
    assert (learned - even).abs().max() > 0.01

    again = hybrid_task(config)
    resumed = engine_of(again, config, tmp_path)
    assert resumed.restore() == 2
    assert torch.equal(again.memory.probabilities(), learned)
    assert numbers_of(resumed, 3, next(again.batches(3)))["loss"] == numbers_of(engine, 3, next(batches))["loss"]
    assert torch.equal(again.memory.losses, task.memory.losses)


def test_micro_batches_learn_the_same(tmp_path: Path) -> None:
    whole, parts = (hybrid_task(train_config(accumulate=count)) for count in (1, 3))
    for task in (whole, parts):
        engine_of(task, task.config, tmp_path).step(1, next(task.batches(1)))
    torch.testing.assert_close(parts.memory.losses, whole.memory.losses, rtol=1e-4, atol=1e-6)
    assert torch.equal(parts.memory.seen, whole.memory.seen)


def test_held_out_times_do_not_depend_on_what_was_learned() -> None:
    task = hybrid_task(train_config())
    before = task.evaluate(torch.autocast("cpu", enabled=False)).metrics
    task.memory.record(torch.arange(1, 5) / 4, torch.tensor([9.0, 0.0, 0.0, 0.0]))
    streams = Streams.of(0, samples=range(20))
    assert (task.memory.draw(streams, PROCESS) == 0.25).sum() > 15
    assert task.evaluate(torch.autocast("cpu", enabled=False)).metrics == before


def test_a_learned_variance_is_saved_and_read_back(tmp_path: Path) -> None:
    task = hybrid_task(train_config())
    task.save(tmp_path / "model", 1, 1)
    opened = Checkpoint.open(tmp_path / "model")
    spec = build(opened.config, LatentDiffusionSpec)
    assert spec.learned_variance
    network = spec.build_network(spec.build_conditioners())
    load_strictly(network, opened.tensors("denoiser"), "saved")
    assert network.out[-1].weight.shape[0] == 2 * 2  # twice the latent's channels
    grid = task.sample_grid(torch.autocast("cpu", enabled=False))
    assert grid.isfinite().all()


def test_a_checkpoint_is_in_its_precision(tmp_path: Path) -> None:
    """The average, rounded: two bytes a number."""
    task = diffusion_task(ALONE, train_config(checkpoint_dtype="fp16"))
    task.save(tmp_path / "model", 1, 1)
    opened = Checkpoint.open(tmp_path / "model")
    for part, average in (("denoiser", task.model.mean_network), ("conditioner", task.model.mean_conditioners)):
        halves = {name: tensor.half() for name, tensor in average.state_dict().items()}
        torch.testing.assert_close(opened.tensors(part), halves, rtol=0, atol=0)


def test_conditions_are_dropped_apart_and_together() -> None:
    """A row keeps a condition unless the condition's own `drop` or `drop_all` takes it; the latter takes all at once."""
    task, count = diffusion_task(ALONE, train_config()), 4000
    drops = torch.stack(list(task._drops(Streams.of(0, "train", 1, samples=range(count))).values()))
    error = 4 * 0.5 / count**0.5
    assert drops.float().mean(1).tolist() == pytest.approx([0.1 + 0.9 * 0.3] * 3, abs=error)
    assert drops.all(0).float().mean().item() == pytest.approx(0.1 + 0.9 * 0.3**3, abs=error)


def test_what_drop_all_takes_is_unconditional_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    task = diffusion_task(ALONE, train_config())
    task.drop_all = 1.0
    seen: list[Condition] = []
    call, conditioners = task.model.network.forward, task.model.conditioners
    monkeypatch.setattr(task.model.network, "forward", lambda x, t, condition: seen.append(condition) or call(x, t, condition))
    batch = next(task.batches(1))
    scaler, shared = torch.amp.GradScaler(enabled=False), {"denoiser": SharedGradients(task.groups["denoiser"], ALONE)}
    task.accumulate(batch, Pass(step=1, world=ALONE, autocast_dtype=None, scaler=scaler, batch_size=7, accumulate=1, shared=shared))
    null = conditioners(ConditionInputs(count=7), task.model.spec.latent_size)
    torch.testing.assert_close((seen[0].vector, seen[0].concat), (null.vector, null.concat))
