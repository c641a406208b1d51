"""Stage two: a conditional denoiser on the frozen first stage's latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.distributed import World
from ldm.core.random import Streams
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts
from ldm.diffusion.importance import LossMemory
from ldm.diffusion.objective import Objective
from ldm.diffusion.time_density import UniformSteps
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.training.config import TrainConfig
from ldm.training.diffusion_model import DiffusionModel, DiffusionParts
from ldm.training.draws import StepDraws
from ldm.training.ema import Ema
from ldm.training.latents import LatentBatch, LatentData, Latents
from ldm.training.sample_grid import COLUMNS, Row, rows_of, sample_grid, words_of
from ldm.training.task import Evaluation, MeasuredOn, Pass

EVALUATED = 256  # held-out pictures whose loss is measured, at always the same times and noises


class DiffusionTask:
    """Trains a denoiser and its conditioners, or adapters beside them; see `ldm.training.task.Task`.

    Args:
        parts: the model.
        objective: the loss.
        data: what it is trained and measured on.
        config: of the engine.
        drop_all: probability that all conditions of a row are dropped together.
        prompts: of the sample grid; may be empty.
        seed: of everything drawn.
        world: the processes.
    """

    def __init__(
        self,
        parts: DiffusionParts,
        objective: Objective,
        data: LatentData,
        config: TrainConfig,
        *,
        drop_all: float,
        prompts: tuple[str, ...],
        seed: int,
        world: World,
    ) -> None:
        self.config, self.objective, self.seed, self.world = config, objective, seed, world
        self.model = DiffusionModel(parts, config, seed, world)
        self.draws = StepDraws(seed, world.device)
        self.train_set = data.train_set
        self.latents = Latents(self.model.first_stage, data, world.device)
        self.drop_all, self.prompts = drop_all, prompts
        self.trained: dict[str, nn.Module] = dict(self.model.trained)
        self.averaged: dict[str, Ema[Any]] = self.model.averaged
        self.groups = {"denoiser": self.model.trained_parameters()}
        self.memory = objective.density if isinstance(objective.density, LossMemory) else None
        if self.memory is not None:
            self.trained["density"] = self.memory
        # What is measured on held-out pictures must not depend on what training has learned of its steps.
        self.measure = objective if self.memory is None else dataclasses.replace(objective, density=UniformSteps())
        self.data_digest = f"{data.train_set.digest} {parts.spec.normalization.digest}"
        self.lost, self.places = data.train_set.lost, data.train_set.places
        self._call = torch.compile(self.model.network) if config.compile else self.model.network
        self._held_out: list[LatentBatch] = []
        self._grid: list[tuple[Row, ...]] = []

    def describe(self) -> dict[str, int]:
        return self.model.counts()

    def batches(self, first_step: int) -> Iterator[LatentBatch]:
        return self.latents.batches(self.config.batch_size, first_step, self.world.part(self.config.batch_size))

    def names(self, batch: LatentBatch) -> tuple[str, ...]:
        return batch.records.names

    def accumulate(self, batch: LatentBatch, now: Pass) -> dict[str, Tensor]:
        streams = self.draws.streams(now.step, batch.positions)
        total, losses = torch.zeros((), device=self.world.device), []
        for start, stop in batch.parts(now.micro_batches):
            work = functools.partial(self._loss, batch.part(start, stop), streams.part(start, stop), now.autocast())
            each = now.forward("denoiser", work, is_last=stop == len(batch.positions))
            loss = each.sum() / now.batch_size
            now.backward(loss)
            total += loss.detach()
            losses.append(each.detach())
        if self.memory is not None:
            self.memory.learn(torch.cat(losses), streams, self.objective.process, now.batch_size, self.world.sum_)
        return {"loss": total}

    def _loss(self, batch: LatentBatch, streams: Streams, autocast: AbstractContextManager[Any]) -> Tensor:
        """Per sample, (B,)."""
        conditioners = self.model.conditioners
        latents = self._drawn(batch, streams)
        drops = self._drops(streams)
        inputs = self._inputs(batch.records, self.train_set.facts, drops, streams)
        inputs = inputs.beside(
            {name: part.dropped(inputs.values[name], streams) for name, part in conditioners.items() if name in inputs.values}
        )
        with autocast:
            condition = conditioners(inputs, (latents.shape[2], latents.shape[3]), drops)
            return self.objective(self._call, latents, condition, streams)

    def _drawn(self, batch: LatentBatch, streams: Streams) -> Tensor:
        """Normalised latents, drawn anew from the posterior each time."""
        return self.latents.draw(batch, streams).contiguous(memory_format=self.model.memory_format)

    def _drops(self, streams: Streams) -> dict[str, Tensor]:
        """By conditioner, rows, (B,) bool, whose condition is dropped: by its own probability, and with all the others by `drop_all`."""
        together = streams.uniform("drop") < self.drop_all
        return {name: together | rows for name, rows in self.model.conditioners.draw_drops(streams).items()}

    @torch.no_grad()
    def _inputs(self, records: Batch, facts: DataFacts, drops: dict[str, Tensor], streams: Streams) -> ConditionInputs:
        """What each conditioner reads of the records, if it is not dropped from all of them."""
        values = {
            name: part.for_training(records, facts, ~drops[name], streams)
            for name, part in self.model.conditioners.items()
            if not drops[name].all()
        }
        return ConditionInputs(count=len(records.names), values={name: value for name, value in values.items() if value is not None})

    def _held_out_parts(self) -> list[LatentBatch]:
        """Of the first held-out pictures (training pictures, if there are none) this process's parts, encoded once."""
        self._held_out = self._held_out or list(self.latents.first_held_out(EVALUATED, self.world))
        return self._held_out

    def evaluate(self, autocast: AbstractContextManager[Any]) -> Evaluation:
        """Loss of the averaged weights, under all conditions that training ever gives, at times and noises that are always the same."""
        model, facts, losses = self.model, self.latents.measured.facts, []
        for batch in self._held_out_parts():
            streams = Streams.of(self.seed, "evaluate", samples=batch.positions)
            drops = {name: torch.full((len(batch.positions),), part.drop == 1) for name, part in model.conditioners.items()}
            latents, inputs = self._drawn(batch, streams), self._inputs(batch.records, facts, drops, streams)
            with autocast:
                condition = model.mean_conditioners(inputs, (latents.shape[2], latents.shape[3]), drops)
                losses.append(self.measure(model.mean_network, latents, condition, streams).cpu())
        loss = torch.cat(list(self.world.in_turn(losses))).mean().item()
        on = MeasuredOn.of(self.latents.held_out)
        line = f"{on.pictures} loss {loss:.4f} (averaged weights)"
        return Evaluation(metrics={f"{on.prefix}/loss": loss}, lines=(line,), samples=words_of(self._rows()))

    def sample_grid(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """See `sample_grid`."""
        return sample_grid(self._averaged(), self._rows(), self.seed, self.world)

    def _rows(self) -> list[tuple[Row, ...]]:
        """Of the sample grid; the same at each evaluation."""
        self._grid = self._grid or list(
            rows_of(self._averaged(), self.latents.first_records(COLUMNS), self.latents.measured.facts, self.prompts)
        )
        return self._grid

    def _averaged(self) -> LatentDiffusion:
        """The model by its averaged weights."""
        return LatentDiffusion(
            spec=self.model.spec,
            first_stage=self.model.first_stage,
            network=self.model.mean_network,
            conditioners=self.model.mean_conditioners,
            device=self.world.device,
            precision=self.config.precision,
        )

    def save(self, folder: Path, step: int, steps: int) -> None:
        """See `DiffusionModel.save`."""
        self.model.save(folder, self.model.card(self.train_set, step, self.seed))
