"""Stage one: reconstruction, KL or codebook, LPIPS and an adversary, balanced by the gradients of the decoder's last layer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.model import AutoencoderSpec, write_autoencoder
from ldm.core.distributed import World
from ldm.core.precision import DTYPES
from ldm.core.random import Streams
from ldm.data.batch import by_size
from ldm.data.buckets import sizes_in_words
from ldm.data.image_dataset import ImageDataset, Share
from ldm.first_stage.latent_normalization import LatentNormalization, measure, weights_digest
from ldm.first_stage.posterior import Encoded
from ldm.first_stage.stage import FirstStage
from ldm.losses.autoencoder_loss import AutoencoderLoss
from ldm.losses.diagnostics import AdversaryState, diagnose
from ldm.losses.equivariance import SpatialTransform
from ldm.losses.slopes import Slopes
from ldm.losses.statistics import StatisticsCollector
from ldm.training.config import TrainConfig
from ldm.training.draws import StepDraws
from ldm.training.ema import Ema
from ldm.training.image_grid import grid_of, on_one_canvas
from ldm.training.task import Evaluation, MeasuredOn, Pass

QUICK_MEASURE = 1024  # pictures that the latent normalization is measured on at checkpoints before the last
EVALUATED = 512  # held-out pictures at most
SHOWN = 8  # held-out pictures in the sample grid


@dataclass(frozen=True)
class _Forward:
    """One micro-batch, from pictures to losses (each a sum over samples / global batch)."""

    images: Tensor
    reconstruction: Tensor
    nll: Tensor
    penalties: Tensor
    adversarial: Tensor | None
    numbers: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """An encoder that stays as it is, with its latents.

    Attributes:
        weights: as they are stored.
        normalization: of these latents.
    """

    weights: dict[str, Tensor]
    normalization: LatentNormalization


class AutoencoderTask:
    """Trains a first stage; see `ldm.training.task.Task`."""

    def __init__(
        self,
        spec: AutoencoderSpec,
        first_stage: FirstStage,
        loss: AutoencoderLoss,
        train_set: ImageDataset,
        held_out: ImageDataset | None,
        config: TrainConfig,
        seed: int,
        world: World,
        frozen: FrozenEncoder | None = None,
    ) -> None:
        self.spec, self.config, self.seed, self.world, self.frozen = spec, config, seed, world, frozen
        config.parallel.refuse_fsdp("an autoencoder's memory is its activations, not its weights")
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.first_stage = first_stage.to(world.device).to(memory_format=memory_format)
        self.loss = loss.to(world.device).to(memory_format=memory_format)
        if loss.perceptual is not None:
            loss.perceptual.network.to(memory_format=memory_format)  # which is no submodule
        self.memory_format = memory_format
        self.train_set, self.held_out = train_set, held_out
        self.trained: dict[str, nn.Module] = {"first_stage": self.first_stage, "loss": self.loss}
        self.average = Ema(self.first_stage, config.ema_decay)
        self.averaged: dict[str, Ema[Any]] = {"first_stage": self.average}
        if frozen is not None:
            for name, parameter in self.first_stage.named_parameters():
                parameter.requires_grad_(name not in frozen.weights)
        own = [parameter for parameter in self.first_stage.parameters() if parameter.requires_grad]
        self.groups = {"autoencoder": [*own, *loss.autoencoder_parameters()]}
        if loss.config.has_discriminator:
            self.groups["discriminator"] = loss.discriminator_parameters()
        self._reconstruct = self.first_stage.reconstruct
        if config.compile:
            # A compiled graph may be gone through only once; the adaptive weight goes through the last layer besides.
            last = self.first_stage.last_layer
            last.forward = torch.compiler.disable(last.forward)  # type: ignore[method-assign]
            self._reconstruct = torch.compile(self.first_stage.reconstruct)
        self.draws = StepDraws(seed, world.device)
        self.data_digest = train_set.digest
        self.lost, self.places = train_set.lost, train_set.places
        self._latest: dict[str, Tensor] = {}  # the adversary's numbers over all processes, for the diagnostics

    def describe(self) -> dict[str, int]:
        lpips = self.loss.perceptual and self.loss.perceptual.network
        parts = {"first_stage": self.first_stage, "discriminator": self.loss.discriminator, "lpips": lpips}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}

    def batches(self, first_step: int) -> Iterator[Share]:
        return self.train_set.batches(self.config.batch_size, first_step, self.world.part(self.config.batch_size))

    def names(self, batch: Share) -> tuple[str, ...]:
        return batch[0].names

    def accumulate(self, batch: Share, now: Pass) -> dict[str, Tensor]:
        records, positions = batch
        images = records.images.to(self.world.device, memory_format=self.memory_format, non_blocking=True)
        streams = self.draws.streams(now.step, positions)
        count = min(now.micro_batches, len(images)) or 1
        bounds = [len(images) * i // count for i in range(count + 1)]
        pieces = [(images[a:b], streams.part(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]

        with_adversary = self.loss.is_adversarial(now.step)
        kept: _Forward | None = None
        slopes: Slopes | None = None
        weight = torch.zeros((), device=self.world.device)
        if with_adversary:
            weight, kept, slopes = self._adversarial_weight(pieces, now)

        numbers: dict[str, Tensor] = {}
        for number, (piece, piece_streams) in enumerate(pieces, 1):
            is_last = number == count
            done = kept or self._forward(piece, piece_streams, now, with_adversary, is_last=is_last)
            total = done.nll + done.penalties + (0 if done.adversarial is None else weight * done.adversarial)
            now.backward(total if slopes is None else slopes.loss(weight, done.penalties))
            found = {"loss": total, **done.numbers}
            if with_adversary:
                found |= self._discriminator_gradients(done, now, is_last=is_last)
            for name, value in found.items():
                numbers[name] = numbers.get(name, torch.zeros((), device=self.world.device)) + value.detach()
        if with_adversary:
            numbers["adversarial_weight"] = weight / self.world.size
            logged = [name for name in numbers if name.startswith(("adversarial", "disc"))]
            of_all = torch.stack([numbers[name].float() for name in logged])
            self.world.sum_([of_all])
            self._latest = dict(zip(logged, of_all, strict=True))
        return numbers

    def _forward(self, images: Tensor, streams: Streams, now: Pass, with_adversary: bool, *, is_last: bool) -> _Forward:
        return now.forward("autoencoder", functools.partial(self._losses, images, streams, now, with_adversary), is_last=is_last)

    def _losses(self, images: Tensor, streams: Streams, now: Pass, with_adversary: bool) -> _Forward:
        noise = streams.normal("posterior", self.first_stage.latent_shape(images), images.device).to(images)
        with now.autocast():
            reconstruction, posterior = self._reconstruct(images, noise)
            terms = self.loss.terms(images, reconstruction, posterior, self._equivariance(images, posterior, noise, now.step))
            adversarial = self.loss.generator_loss(reconstruction).sum() / now.batch_size if with_adversary else None
        found = {"nll": terms.nll, **terms.penalties, "pixel": terms.pixel, "lpips": terms.perceptual}
        numbers = {name: part.sum() / now.batch_size for name, part in found.items()}
        penalties = self.loss.penalties(terms).sum() / now.batch_size
        if adversarial is not None:
            numbers["adversarial"] = adversarial
        return _Forward(images, reconstruction, numbers["nll"], penalties, adversarial, numbers)

    def _equivariance(self, images: Tensor, encoded: Encoded, noise: Tensor, step: int) -> Tensor | None:
        if not self.loss.config.equivariance_weight:
            return None
        transform = SpatialTransform.draw(self.seed, step, self.loss.config.equivariance_mirror)
        return self.loss.equivariance(images, encoded.sample(noise), self.first_stage.decode_raw, transform)

    def _adversarial_weight(self, pieces: list[tuple[Tensor, Streams]], now: Pass) -> tuple[Tensor, _Forward | None, Slopes | None]:
        """Weight from last-layer gradients of the whole global batch; and the forward pass, if there was one and it can be used again."""
        last = self.first_stage.last_layer.weight
        of_nll, of_adversarial = torch.zeros_like(last), torch.zeros_like(last)
        done: _Forward | None = None
        slopes: Slopes | None = None
        for piece, streams in pieces if self.loss.config.adaptive else ():
            done = self._forward(piece, streams, now, True, is_last=len(pieces) == 1)
            assert done.adversarial is not None
            slopes = Slopes.of(done.reconstruction, done.nll, done.adversarial, self.loss.log_variance)
            for found, part in zip((of_nll, of_adversarial), slopes.at(last), strict=True):
                found += part
        self.world.sum_([of_nll, of_adversarial])
        weight = self.loss.adversarial_weight(now.step, of_nll, of_adversarial)
        return (weight, done, slopes) if len(pieces) == 1 else (weight, None, None)

    def _discriminator_gradients(self, done: _Forward, now: Pass, *, is_last: bool) -> dict[str, Tensor]:
        with now.autocast():
            work = functools.partial(self.loss.discriminator_loss, done.images, done.reconstruction)
            found = now.forward("discriminator", work, is_last=is_last)
        now.backward(found.loss.sum() * self.loss.config.disc_factor / now.batch_size)
        values = {
            "disc_loss": found.loss,
            "disc_real_logit": found.real_logit,
            "disc_fake_logit": found.fake_logit,
            "disc_accuracy": found.accuracy,
        }
        return {name: value.sum() / now.batch_size for name, value in values.items()}

    def _images(self, dataset: ImageDataset, world: World, limit: int | None = None) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The first pictures of a set in batches, each of one size, with their numbers; of several processes each has its own."""
        samples, at_once = dataset.some(limit), max(1, self.config.batch_size // self.world.size)
        for number in itertools.count():
            batch, first = list(islice(samples, at_once)), number * at_once
            if not batch:
                return
            for numbers in by_size(batch) if number % world.size == world.rank else ():
                images = torch.stack([batch[one].image for one in numbers])
                rows = tuple(first + one for one in numbers)
                yield images.to(self.world.device, memory_format=self.memory_format), rows

    def evaluate(self, autocast: AbstractContextManager[Any]) -> Evaluation:
        average = self.average.module
        collector = StatisticsCollector()
        with autocast:
            for images, rows in self._images(self.held_out or self.train_set, self.world, limit=EVALUATED):
                noise = Streams.of(self.seed, "evaluate", samples=rows).normal("posterior", average.latent_shape(images)).to(images)
                reconstruction, posterior = average.reconstruct(images, noise)
                perceptual = None if self.loss.perceptual is None else self.loss.perceptual(images, reconstruction)
                collector.add(images, reconstruction, posterior, perceptual)
        whole = StatisticsCollector.joined(self.world.of_all(collector))
        found = diagnose(whole.result(), self._adversary(), is_scaled_per_channel=self.spec.first_stage.scale_per_channel)
        on = MeasuredOn.of(self.held_out)
        metrics = {f"{on.prefix}/{name}": value for name, value in found.numbers.items()}
        first, *others = found.summary
        return Evaluation(metrics=metrics, lines=(f"{on.pictures} {first}", *others, *found.findings))

    def _adversary(self) -> AdversaryState | None:
        """The discriminator in the latest step; None before its start."""
        if "adversarial_weight" not in self._latest:
            return None
        names = ("adversarial_weight", "disc_real_logit", "disc_fake_logit", "disc_accuracy")
        weight, real, fake, accuracy = (self._latest[name].item() for name in names)
        return AdversaryState(
            weight=weight,
            largest_weight=self.loss.largest_weight,
            real_logit=real,
            fake_logit=fake,
            accuracy=accuracy,
        )

    def sample_grid(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """Held-out pictures above their reconstructions."""
        average = self.average.module
        samples = list((self.held_out or self.train_set).some(SHOWN))
        shown: dict[int, tuple[Tensor, Tensor]] = {}
        for numbers in by_size(samples):
            images = torch.stack([samples[number].image for number in numbers])
            images = images.to(self.world.device, memory_format=self.memory_format)
            with autocast:
                mean, _ = average.moments(images)
                reconstruction = average.decode(average.normalise(mean))
            shown |= dict(zip(numbers, zip(images, reconstruction.float(), strict=True), strict=True))
        above, below = zip(*(shown[number] for number in sorted(shown)), strict=True)
        return grid_of(on_one_canvas([*above, *below]), columns=len(above))

    @torch.no_grad()
    def save(self, folder: Path, step: int, steps: int) -> None:
        """The averaged weights as stored, with the latent normalization measured over the training set with those very weights."""
        dtype = DTYPES[self.config.checkpoint_dtype]
        weights = {name: tensor.to(dtype) for name, tensor in self.average.module.state_dict().items()}
        if self.frozen is not None:
            weights |= self.frozen.weights
            normalization = replace(self.frozen.normalization, digest=weights_digest(weights))
            self._write(folder, weights, normalization, step)
            return
        rounded = self.spec.first_stage.build().to(self.world.device).to(memory_format=self.memory_format).eval()
        rounded.load_state_dict(weights)
        limit = None if step == steps else QUICK_MEASURE

        def moments() -> Iterator[tuple[Tensor, Tensor]]:
            for images, _ in self._images(self.train_set, self.world, limit):
                mean, std = rounded.moments(images)
                yield mean.cpu(), std.cpu()

        normalization = measure(
            self.world.in_turn(moments()),
            per_channel=self.spec.first_stage.scale_per_channel,
            downsampling_factor=self.spec.first_stage.downsampling_factor,
            weights=weights,
        )
        self._write(folder, weights, normalization, step)

    def _write(self, folder: Path, weights: dict[str, Tensor], normalization: LatentNormalization, step: int) -> None:
        spec, card = self.spec.with_normalization(normalization), self._card(step, normalization)
        self.world.on_first(lambda: write_autoencoder(folder, spec, weights, card, self.config.checkpoint_file_mib << 20))

    def _card(self, step: int, normalization: LatentNormalization) -> str:
        return (
            f"# First stage: {self.spec.name}\n\n"
            f"{self.spec.first_stage.kind.upper()} autoencoder of {sizes_in_words(self.spec.size, self.spec.buckets)} pictures, "
            f"{sum(p.numel() for p in self.first_stage.parameters()):,} parameters, downsampling factor "
            f"{normalization.downsampling_factor}, {normalization.channels} latent channels, averaged weights in "
            f"{self.config.checkpoint_dtype}.\n\n"
            f"{self.train_set.card}"
            f"- Trained {step} steps of batch {self.config.batch_size}, seed {self.seed}, {self.config.precision}.\n"
            f"- Latent normalization: shift {normalization.shift}, scale {normalization.scale}, measured over the training set.\n"
        )
