"""A classifier of noisy samples, which guides; or of clean ones, which judges."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoints.classifier import ClassifierSpec, write_classifier
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.precision import DTYPES
from ldm.core.random import Streams
from ldm.core.settings import in_pixels
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.time_density import TimeDensity
from ldm.networks.classifier import ClassifierNetwork
from ldm.training.config import TrainConfig
from ldm.training.draws import StepDraws
from ldm.training.ema import Ema
from ldm.training.image_grid import framed, grid_of
from ldm.training.latents import LatentBatch, Latents
from ldm.training.task import Evaluation, MeasuredOn, Pass

EVALUATED = 512  # held-out pictures at an evaluation, at times and noises that are always the same
MEASURED = 10_000  # held-out pictures, at most, on which the finished classifier's accuracy is measured
LEVELS = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # log-SNRs at which accuracy is measured, as far as the process goes
SHOWN = 8  # pictures a row of the sample grid


class ClassifierTask:
    """Trains a classifier; see `ldm.training.task.Task`. Pictures without a label are left out of the loss, and counted."""

    def __init__(
        self,
        spec: ClassifierSpec,
        network: ClassifierNetwork,
        density: TimeDensity,
        latents: Latents,
        config: TrainConfig,
        seed: int,
        world: World,
    ) -> None:
        self.spec, self.density, self.latents, self.config, self.seed, self.world = spec, density, latents, config, seed, world
        config.parallel.refuse_fsdp("a classifier's weights are few")
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(world.device).to(memory_format=self.memory_format)
        self.trained: dict[str, nn.Module] = {"classifier": self.network}
        self.average = Ema(self.network, config.ema_decay)
        self.averaged: dict[str, Ema[Any]] = {"classifier": self.average}
        self.groups = {"classifier": list(self.network.parameters())}
        self.data_digest = f"{latents.train_set.digest} {spec.normalization.identity}"
        self.lost, self.places = latents.train_set.lost, latents.train_set.places
        self._call = torch.compile(self.network) if config.compile else self.network
        self.draws = StepDraws(seed, world.device)
        self._held_out: list[LatentBatch] = []
        self._unlabelled: set[str] = set()  # names of this process's training pictures so far

    def describe(self) -> dict[str, int]:
        parts = {"classifier": self.network, "first_stage": self.latents.first_stage}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def batches(self, first_step: int) -> Iterator[LatentBatch]:
        return self.latents.batches(self.config.batch_size, first_step, self.world.part(self.config.batch_size))

    def names(self, batch: LatentBatch) -> tuple[str, ...]:
        return batch.records.names

    def accumulate(self, batch: LatentBatch, now: Pass) -> dict[str, Tensor]:
        streams = self.draws.streams(now.step, batch.positions)
        labels = self._labels(batch)
        self._unlabelled.update(name for name, label in zip(batch.records.names, batch.records.labels.tolist(), strict=True) if label < 0)
        labelled = (labels >= 0).sum().float()
        self.world.sum_([labelled])  # of the global batch
        numbers = {name: torch.zeros((), device=self.world.device) for name in ("loss", "accuracy")}
        for start, stop in batch.parts(now.micro_batches):
            piece_streams = streams.part(start, stop)
            t = self._times(piece_streams)
            x = self._seen(batch.part(start, stop), piece_streams, t)
            with now.autocast():
                work = functools.partial(self.spec.logits, self._call, x, t)
                logits = now.forward("classifier", work, is_last=stop == len(batch.positions))
            each, is_right = _judged(logits, labels[start:stop])
            loss = each.sum() / labelled.clamp(min=1)
            now.backward(loss)
            numbers["loss"] += loss.detach()
            numbers["accuracy"] += is_right.sum() / labelled.clamp(min=1)
        return numbers

    def _labels(self, batch: LatentBatch) -> Tensor:
        """(B,) on the device; -1 = none."""
        classes = len(self.spec.label_names)
        for name, label in zip(batch.records.names, batch.records.labels.tolist(), strict=True):
            if not -1 <= label < classes:
                raise UserError(f"{name}: its label is {label}, but there are {classes} classes, from 0")
        return batch.records.labels.to(self.world.device)

    def _times(self, streams: Streams, log_snr: float | None = None) -> Tensor | None:
        """(B,) times: drawn, or those of a given log-SNR; None for a judge."""
        process = self.spec.process
        if process is None:
            return None
        if log_snr is None:
            return self.density.draw(streams, process)
        return process.time_at(torch.full((len(streams),), log_snr, dtype=torch.float64))

    def _seen(self, batch: LatentBatch, streams: Streams, t: Tensor | None) -> Tensor:
        """(B, C, h, w), noised to t; clean without a time."""
        x0 = self.latents.draw(batch, streams).contiguous(memory_format=self.memory_format)
        if self.spec.process is None or t is None:
            return x0
        eps = streams.normal("noise", x0.shape[1:], x0.device)
        return self.spec.process.blend(Estimate(x0=x0, eps=eps), t)

    @torch.no_grad()
    def _measured(
        self, network: nn.Module, parts: Iterable[LatentBatch], autocast: AbstractContextManager[Any], log_snr: float | None = None
    ) -> tuple[float, float]:
        """Mean cross-entropy and top-1 accuracy of pictures that have a label; at drawn times, or all at one log-SNR. parts: this
        process's."""
        found = []
        for batch in parts:
            streams = Streams.of(self.seed, "evaluate", samples=batch.positions)
            labels, t = self._labels(batch), self._times(streams, log_snr)
            x = self._seen(batch, streams, t)
            with autocast:
                logits = self.spec.logits(network, x, t)
            each, is_right = _judged(logits, labels)
            found.append(torch.stack([each[labels >= 0].float(), is_right[labels >= 0].float()]).cpu())
        loss, accuracy = torch.cat(list(self.world.in_turn(found)), dim=1).mean(1).tolist()
        return loss, accuracy

    def _held_out_parts(self) -> list[LatentBatch]:
        """Of the first held-out pictures (training pictures, if there are none) this process's parts, encoded once."""
        self._held_out = self._held_out or list(self.latents.first_held_out(EVALUATED, self.world))
        return self._held_out

    def _levels(self) -> tuple[float, ...]:
        """Those of LEVELS that the process passes through; none for a judge."""
        process = self.spec.process
        if process is None:
            return ()
        least, most = process.log_snr(torch.tensor([process.t_last, process.t_first], dtype=torch.float64)).tolist()
        return tuple(level for level in LEVELS if least <= level <= most)

    def evaluate(self, autocast: AbstractContextManager[Any]) -> Evaluation:
        """Of the averaged weights on held-out pictures, at times and noises that are the same at every evaluation; then level by level."""
        network, parts = self.average.module, self._held_out_parts()
        loss, accuracy = self._measured(network, parts, autocast)
        on = MeasuredOn.of(self.latents.held_out)
        metrics = {f"{on.prefix}/loss": loss, f"{on.prefix}/accuracy": accuracy}
        lines = [f"{on.pictures} cross-entropy {loss:.4f}, top-1 accuracy {accuracy:.1%} (averaged weights)"]
        of_levels = {level: self._measured(network, parts, autocast, level)[1] for level in self._levels()}
        if of_levels:
            metrics |= {f"{on.prefix}/accuracy_log_snr_{level:+g}": share for level, share in of_levels.items()}
            lines.append("accuracy by log-SNR: " + ", ".join(f"{level:+g} {share:.1%}" for level, share in of_levels.items()))
        unlabelled = set().union(*self.world.of_all(self._unlabelled))
        if unlabelled:
            lines.append(f"{len(unlabelled)} pictures without a label left out so far, e.g. {min(unlabelled)}")
        return Evaluation(metrics=metrics, lines=tuple(lines))

    def sample_grid(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """Held-out images as the network gets them, a row a noise level; framed green where the class is right, else red."""
        batch = next(self.latents.first_held_out(SHOWN))
        streams, labels = Streams.of(self.seed, "evaluate", samples=batch.positions), self._labels(batch)
        rows = []
        for level in self._levels() or (None,):
            t = self._times(streams, level)
            x = self._seen(batch, streams, t)
            with autocast:
                _, is_right = _judged(self.spec.logits(self.average.module, x, t), labels)
            rows.append(framed(self.latents.first_stage.decode(self._scaled(x, t)), is_right))
        return grid_of(torch.cat(rows), columns=len(labels))

    def _scaled(self, x: Tensor, t: Tensor | None) -> Tensor:
        """The network's input, as large as data of standard deviation 1, for the eye."""
        if self.spec.process is None or t is None:
            return x
        alpha, sigma = self.spec.process.scales(t, x)
        return x / (alpha**2 + sigma**2).sqrt()

    @torch.no_grad()
    def save(self, folder: Path, step: int, steps: int) -> None:
        """The averaged weights in the checkpoint's precision; at the end with what these very weights are worth on held-out pictures."""
        dtype = DTYPES[self.config.checkpoint_dtype]
        weights = {key: tensor.to(dtype) for key, tensor in self.average.module.state_dict().items()}
        spec = self.spec
        if step == steps and self.latents.held_out is not None:
            rounded = spec.build_network().to(self.world.device).to(memory_format=self.memory_format).eval()
            rounded.load_state_dict(weights)
            _, accuracy = self._measured(rounded, self.latents.first_held_out(MEASURED, self.world), nullcontext())
            spec = dataclasses.replace(spec, accuracy=accuracy)
        card, most = self._card(spec, step), self.config.checkpoint_file_mib << 20
        self.world.on_first(lambda: write_classifier(folder, spec, weights, card, most))

    def _card(self, spec: ClassifierSpec, step: int) -> str:
        kind = "judge: trained on clean samples" if spec.process is None else f"noise-aware: trained with process {spec.process}"
        sees = "pixels" if spec.sees_pixels else f"latents of the first stage with digest {spec.normalization.digest}"
        worth = "not measured" if spec.accuracy is None else f"{spec.accuracy:.2%} of at most {MEASURED} held-out pictures"
        return (
            f"# Classifier: {spec.name}\n\n"
            f"Of {len(spec.label_names)} classes ({', '.join(spec.label_names)}); {kind}.\n\n"
            f"- Input: {sees}, of pictures of {in_pixels(spec.size)}.\n"
            f"- Parameters: {self.describe()['classifier']:,}; averaged weights in {self.config.checkpoint_dtype}.\n"
            f"{self.latents.train_set.card}"
            f"- Trained {step} steps of batch {self.config.batch_size}, seed {self.seed}, {self.config.precision}.\n"
            f"- Top-1 accuracy{'' if spec.process is None else ', at times drawn as in training'}: {worth}.\n"
        )


def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B,), 0 where there is no label (-1); and whether the likeliest class is the label, (B,) bool."""
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none"), logits.argmax(1) == labels
