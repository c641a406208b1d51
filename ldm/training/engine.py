"""How a run goes: steps, logs, samples, states, resume. The loss is a task's."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.training.best import is_best
from ldm.training.config import TrainConfig
from ldm.training.learned import Learned
from ldm.training.overfitting import overfitting
from ldm.training.parallel import SharedGradients, own, whole
from ldm.training.preflight import SPEED_STEPS, sizes, speed
from ldm.training.run_folder import RunFolder
from ldm.training.state import Progress, is_published, mark_published, open_state, save_state
from ldm.training.step_numbers import StepNumbers, read
from ldm.training.stop import Stop
from ldm.training.task import Pass, Task, autocast_to
from ldm.training.undone import NAMED, UndoneSteps


def fit(task: Task, config: TrainConfig, run: RunFolder, seed: int, world: World, *, retry_lost: bool = False) -> bool:
    """Trains from the run folder's newest state, or from the start, to `config.steps`.

    Args:
        task: what is trained.
        config: how.
        run: its folder.
        seed: of dropout; a task has its own.
        world: the processes.
        retry_lost: forget, on resume, which remote shards could not be had before; the order of pictures is another one then.

    Returns:
        True if the run is finished, False if a signal stopped it after a saved state.

    Raises:
        UserError: losses or gradients of too many steps are not finite, see `UndoneSteps`, and nothing of them has reached weights or
            average; or weights are not, and they are not saved.
    """
    if config.batch_size < world.size:
        raise UserError(
            f"train.batch_size ({config.batch_size}) is the global batch: it must be at least the number of processes ({world.size})"
        )
    engine = _Engine(task, config, run, seed, world)
    first_step = engine.restore(retry_lost) + 1
    if world.is_first:
        trained = sum(p.numel() for group in task.groups.values() for p in group)
        print(sizes(task.describe(), trained, config, first_step), flush=True)
    was_killed = first_step > 1 and not is_published(run.state_path, first_step - 1)  # between a state and its checkpoint
    if world.any(was_killed and world.is_first):
        engine.publish(first_step - 1)
    if first_step > config.steps:
        return True
    run.open(first_step - 1)
    stop = Stop()
    try:
        with stop.listening():
            return engine.run_steps(first_step, stop)
    finally:
        run.close()


class _Engine:
    def __init__(self, task: Task, config: TrainConfig, run: RunFolder, seed: int, world: World) -> None:
        self.task, self.config, self.run, self.seed, self.world = task, config, run, seed, world
        self.shared = {name: SharedGradients(group, world) for name, group in task.groups.items()}
        self.optimizers = {name: config.optimizer.build(group.own) for name, group in self.shared.items()}
        self.learned = Learned(task.trained, task.averaged, self.shared, self.optimizers)
        self.has_loss_scale = config.precision == "fp16"
        # Without a loss's scale it only skips, on the device, the optimizer's step if a gradient is not finite.
        self.scaler = torch.amp.GradScaler(world.device.type) if self.has_loss_scale else torch.amp.GradScaler(world.device.type, 1.0)
        self.buffers = [buffer for module in task.trained.values() for buffer in module.buffers()]
        self.undone = UndoneSteps()
        self.saved = 0  # step of the newest state

    def restore(self, retry_lost: bool = False) -> int:
        """Loads the newest state; returns its step, 0 if there is none."""
        if self.world.is_first:
            self.run.recover()
        self.world.wait()
        saved = open_state(self.run.state_path, self.world)
        if saved is None:
            return 0
        step, progress = saved.step, saved.progress
        if progress.data != self.task.data_digest:
            raise UserError(
                f"the training data changed since this run was stopped at step {step}; put it back as it was, "
                "or give --run-dir a new folder (with init_from to start from this run's checkpoint)"
            )
        if saved.held is not None and self.world.is_first:
            print(
                f"an earlier release made the first {step} steps: from here on the order of samples and the random numbers are this one's, "
                "so in this epoch some samples come twice and others not at all, and the run ends otherwise than it would have there",
                flush=True,
            )
        self.learned.restore(saved, self.world)
        if self.has_loss_scale:
            self.scaler.load_state_dict(self.scaler.state_dict() | progress.scaler)  # which is empty before a change to fp16
        self.undone.restore(progress.undone)
        self.task.places.update({reader: (turn, offset) for reader, turn, offset in progress.places})
        if not retry_lost:
            self.task.lost[:] = progress.lost
        if self.task.lost and self.world.is_first:
            names = ", ".join(f"{shard} in epoch {epoch}" for epoch, shard in self.task.lost[:3]) + ", ..." * (len(self.task.lost) > 3)
            print(f"shards that were lost before are left out again: {names}; --retry-lost fetches them", flush=True)
        self.saved = step
        return step

    def save(self, step: int) -> None:
        """State first, then the loadable checkpoint made from it."""
        self._copy_buffers()
        self._refuse_non_finite_weights(step)
        of_all = self.world.of_all((self.task.lost, self.task.places))  # each process reads other shards of a stream
        progress = Progress(
            data=self.task.data_digest,
            lost=tuple(dict.fromkeys(shard for lost, _ in of_all for shard in lost)),
            places=tuple(sorted({(reader, *place) for _, places in of_all for reader, place in places.items()})),
            undone=tuple(self.undone.steps),
            scaler=self.scaler.state_dict() if self.has_loss_scale else {},
            texts=self.learned.texts(),
        )
        save_state(self.run.state_path, step, self.learned.tensors(), progress, self.world)
        self.saved = step
        self.publish(step)

    def publish(self, step: int) -> None:
        """The loadable checkpoint and the curves of a saved state."""
        if self.config.keeps(step):
            self.task.save(self.run.kept_path(step), step, self.config.steps)
        self.task.save(self.run.checkpoint_path, step, self.config.steps)
        if self.world.is_first:
            mark_published(self.run.state_path, step)
            self.run.draw_curves()
        self.world.wait()

    def run_steps(self, first_step: int, stop: Stop) -> bool:
        config = self.config
        bar = tqdm(
            total=config.steps,
            initial=first_step - 1,
            unit="step",
            disable=not self.world.is_first,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10,  # a log file gets a line now and then
        )
        batches = self.task.batches(first_step)
        block: list[StepNumbers] = []
        owed = False  # a checkpoint, since the step that it was due at was undone
        started = block_started = time.perf_counter()
        with bar:
            for step in range(first_step, config.steps + 1):
                block.append(self.step(step, next(batches)))
                bar.update()

                stopping = self.world.any(stop.requested)
                last, has_speed = step == config.steps, step - first_step + 1 == SPEED_STEPS
                is_evaluated = last or (step % config.sample_every == 0 and not stopping)
                is_saved = last or stopping or owed or step % config.checkpoint_every == 0 or config.keeps(step)
                if not (is_evaluated or is_saved or has_speed or step % config.log_every == 0):
                    continue
                rows = read(block)
                rate = config.batch_size * len(block) / (time.perf_counter() - block_started)
                *_, metrics = self.log(block, rows, rate, bar)
                block = []
                if has_speed and self.world.is_first:
                    bar.write(speed(config, step, time.perf_counter() - started, self.world.device), file=sys.stdout)
                if is_saved and self.undone.includes(step):  # it may be the first of many
                    if last or stopping:
                        self._refuse_undone()
                    owed, is_saved = True, False
                try:
                    if is_evaluated:
                        metrics |= self.evaluate(step, bar)
                finally:  # an evaluation that fails must not lose the steps before it
                    self.run.log(step, metrics)
                    if is_saved:
                        self.save(step)
                        owed = False
                if stopping and not last:
                    if self.world.is_first:
                        bar.write(f"stopped after step {step}, state saved; the same command goes on from here", file=sys.stdout)
                    return False
                block_started = time.perf_counter()
        return True

    def log(
        self, block: Sequence[StepNumbers], found: Sequence[dict[str, float]], samples_per_second: float, bar: tqdm[Any]
    ) -> list[dict[str, float]]:
        """Writes a block's lines but the last, which an evaluation may add to; names the steps that were undone; returns all lines.

        Raises:
            UserError: they are too many.
        """
        rows = []
        for one, numbers in zip(block, found, strict=True):
            judged = one.names[: one.num_losses] if self.has_loss_scale else one.names  # in fp16 an overflow is the scaler's to handle
            undone = self.undone.add(one.step, {name: numbers[name] for name in judged}, one.samples)
            if undone is not None and self.world.is_first:
                bar.write(f"step {one.step}: {undone.line}", file=sys.stdout)
                self.run.note(one.step, undone.line)
            known = {name: value for name, value in numbers.items() if name in judged or math.isfinite(value)}
            rows.append(known | {"learning_rate": one.learning_rate, "samples_per_second": samples_per_second})
            if one is not block[-1]:
                self.run.log(one.step, rows[-1])
        bar.set_postfix_str(f"loss {rows[-1]['loss']:.4g}, {samples_per_second:.1f} samples/s", refresh=False)
        if self.undone.too_many:
            self.run.log(block[-1].step, rows[-1])
            self._refuse_undone()
        return rows

    def step(self, step: int, batch: Any) -> StepNumbers:
        """One optimizer step, undone on the device if a number of it is not finite; returns the numbers of the global batch."""
        self._seed(digest(self.seed, "step", step, self.world.rank))  # dropout
        now = Pass(
            step=step,
            world=self.world,
            autocast_dtype=self.config.autocast_dtype,
            scaler=self.scaler,
            batch_size=self.config.batch_size,
            accumulate=self.config.accumulate,
            shared=self.shared,
        )
        for group in self.shared.values():
            group.clear()
        before = [buffer.clone() for buffer in self.buffers]
        shares = self.task.accumulate(batch, now)
        losses = torch.stack([value.detach().float() for value in shares.values()])
        self.world.sum_([losses])

        scale = self.scaler.scale(torch.ones((), device=self.world.device))
        of = {name: group.with_gradients() for name, group in self.shared.items()}
        of = {name: parameters for name, parameters in of.items() if parameters}  # no discriminator before its start
        norms = {f"gradient_norm/{name}": self.shared[name].gradient_norm() / scale for name in of}
        values = torch.cat([losses, torch.stack(list(norms.values()))]) if norms else losses
        is_finite = values.isfinite().all()

        rate = self.config.optimizer.rate_at(step, self.config.steps)
        for name, parameters in of.items():
            optimizer = self.optimizers[name]
            self._update(optimizer, parameters, norms[f"gradient_norm/{name}"], rate, is_finite)
        if of:
            self.scaler.update(None if self.has_loss_scale else 1.0)
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(is_finite.to(buffer.device), buffer, old))
        for average in self.task.averaged.values():
            average.update(step, is_finite)
        return StepNumbers(
            step=step,
            names=(*shares, *norms),
            values=values,
            num_losses=len(shares),
            learning_rate=rate,
            samples=self.task.names(batch)[:NAMED],
        )

    def _seed(self, seed: int) -> None:
        if self.world.device.type == "cpu":  # torch.manual_seed looks for all kinds of GPUs, which takes a millisecond
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _update(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, rate: float, is_finite: Tensor
    ) -> None:
        """The optimizer's step, which the scaler skips if a gradient is not finite: on the device, as fused optimizers can.

        So one NaN among the gradients leaves all weights and moments as they are, at no cost in memory, and of any optimizer; one that is
        not fused makes the host wait.
        """
        first = next(p.grad for p in parameters if p.grad is not None and p.grad.numel())  # of a weight there may be no part here
        first.add_(torch.where(is_finite, 0.0, math.nan))
        self.scaler.unscale_(optimizer)
        if self.config.optimizer.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.clip_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(optimizer)

    def _refuse_undone(self) -> None:
        raise UserError(f"{self.undone.why}; {self._advice}")

    def _copy_buffers(self) -> None:
        for average in self.task.averaged.values():
            average.copy_buffers()

    def _refuse_non_finite_weights(self, step: int) -> None:
        modules = {**self.task.trained, **{f"average of {name}": average.module for name, average in self.task.averaged.items()}}
        found = {}
        for name, module in modules.items():
            tensors = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
            found[name] = [key for key, value in tensors.items() if not own(value).isfinite().all()]
        of_all = self.world.of_all(found)
        for name in modules:
            bad = list(dict.fromkeys(key for one in of_all for key in one[name]))
            if bad:
                raise UserError(
                    f"step {step}: {name} has {len(bad)} tensors that are not finite, {bad[0]} first; not saved: {self._advice}"
                )

    @property
    def _advice(self) -> str:
        where = f"goes on from step {self.saved}" if self.saved else "starts again, since no step was saved yet"
        return f"lower train.optimizer.learning_rate, or set train.precision=fp32; the same command with that {where}."

    def evaluate(self, step: int, bar: tqdm[Any]) -> dict[str, float]:
        """Numbers and sample grid, of which each process makes its share."""
        self._copy_buffers()
        bar.set_postfix_str("evaluating")
        with torch.no_grad(), whole(average.module for average in self.task.averaged.values()):
            autocast = functools.partial(autocast_to, self.world.device, self.config.autocast_dtype)
            found = self.task.evaluate(autocast())
            grid = self.task.sample_grid(autocast())
        if self.world.is_first:
            self.run.save_sample_grid(step, grid, found.samples)
            for line in found.lines:
                bar.write(f"step {step}: {line}", file=sys.stdout)
                self.run.note(step, line)
        self._judge(step, found.metrics, bar)
        return found.metrics

    def _judge(self, step: int, metrics: dict[str, float], bar: tqdm[Any]) -> None:
        """Says what the evaluations so far show together, and keeps the best."""
        history = self.run.history() if self.world.is_first else []
        if self.world.is_first and (line := overfitting([*history, {"step": step, **metrics}])):
            bar.write(f"step {step}: {line}", file=sys.stdout)
            self.run.note(step, line)
        name = self.config.keep_best
        if name is None:
            return
        if name not in metrics:
            raise UserError(f"train.keep_best={name}: no such number is measured here; allowed: {', '.join(metrics)}")
        earlier = [row for row in history if row["step"] < step]
        if self.world.any(self.world.is_first and (not self.run.best_path.exists() or is_best(name, metrics[name], earlier))):
            self.task.save(self.run.best_path, step, step)
            self.run.note(step, f"best {name} so far, {metrics[name]:.4g}: kept in checkpoints/{self.run.best_path.name}")
