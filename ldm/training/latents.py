"""What tasks on a frozen first stage train on: pictures with the moments of their latents, from the cache or encoded at each use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor

from ldm.core.distributed import ALONE, World
from ldm.core.random import Streams
from ldm.data.batch import Batch, by_size
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.loader import steps_in_order
from ldm.data.order import Order
from ldm.first_stage.stage import FirstStage

PART = 32  # held-out pictures encoded at once


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Some samples, for example a process's share of a global batch; positions are their numbers in it."""

    records: Batch
    positions: tuple[int, ...]
    moments: tuple[Tensor, Tensor] | None  # raw mean and std, if cached

    def pin_memory(self) -> LatentBatch:
        """See `Batch.pin_memory`."""
        moments = self.moments and (self.moments[0].pin_memory(), self.moments[1].pin_memory())
        return LatentBatch(records=self.records.pin_memory(), positions=self.positions, moments=moments)

    def part(self, start: int, stop: int) -> LatentBatch:
        moments = self.moments and (self.moments[0][start:stop], self.moments[1][start:stop])
        return LatentBatch(records=self.records.part(start, stop), positions=self.positions[start:stop], moments=moments)

    def parts(self, most: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of at most so many parts of about one size; one at least, none of them empty if the batch is not."""
        number = max(1, min(most, len(self.positions)))
        bounds = [len(self.positions) * i // number for i in range(number + 1)]
        return zip(bounds, bounds[1:], strict=False)


@dataclass(frozen=True, kw_only=True)
class LatentData:
    """
    Attributes:
        train_set: to train on.
        held_out: to measure on; None = the training set stands in for it.
        cache: of the training set's latents; None = pictures are encoded at each use.
        workers: processes that read the cache ahead, see `DataConfig`.
    """

    train_set: ImageDataset
    held_out: ImageDataset | None = None
    cache: LatentCache | None = None
    workers: int = 0


@dataclass(frozen=True)
class ShareOfLatents:
    """Reads the share [start, stop) of a step's global batch from the cache."""

    cache: LatentCache
    order: Order
    start: int
    stop: int

    def __call__(self, step: int) -> LatentBatch:
        items = [self.cache.item(index, epoch) for index, epoch in self.order.indices(step)[self.start : self.stop]]
        samples, means, stds = zip(*items, strict=True)
        moments = torch.stack(means), torch.stack(stds)
        return LatentBatch(records=Batch.of(samples), positions=tuple(range(self.start, self.stop)), moments=moments)


class Latents:
    """The latents of a training and a held-out set; the pictures themselves where the first stage is the identity.

    Args:
        first_stage: frozen, on the device where latents come to lie.
        data: the pictures.
        device: see first_stage.
    """

    def __init__(self, first_stage: FirstStage, data: LatentData, device: torch.device) -> None:
        self.first_stage, self.train_set, self.held_out, self.workers = first_stage, data.train_set, data.held_out, data.workers
        self.cache, self.device = data.cache, device

    def batches(self, batch_size: int, first_step: int, share: tuple[int, int]) -> Iterator[LatentBatch]:
        """The share [start, stop) of the global batches of steps first_step, ...; see `ImageDataset.batches`."""
        if self.cache is None:
            for records, positions in self.train_set.batches(batch_size, first_step, share):
                yield LatentBatch(records=records, positions=positions, moments=None)
            return
        assert isinstance(self.train_set, IndexedDataset)  # no other has a cache
        read = ShareOfLatents(self.cache, self.train_set.order(batch_size), *share)
        for _, batch in steps_in_order(read, first_step, self.workers):
            yield batch

    @property
    def measured(self) -> ImageDataset:
        """The held-out set, or the training set where there is none."""
        return self.held_out or self.train_set

    def first_records(self, count: int) -> list[Batch]:
        """Of the first held-out pictures; those of one size together."""
        some = list(self.measured.some(count))
        return [Batch.of([some[number] for number in numbers]) for numbers in by_size(some)]

    @torch.no_grad()
    def first_held_out(self, limit: int, world: World = ALONE) -> Iterator[LatentBatch]:
        """The first held-out pictures in order, encoded, PART at a time; of several sizes, those of one size together.

        Of several processes each has its parts, see `World.in_turn`.
        """
        samples = self.measured.some(limit)
        for number in count():
            some, first = list(islice(samples, PART)), number * PART
            if not some:
                return
            for numbers in by_size(some) if number % world.size == world.rank else ():
                records = Batch.of([some[one] for one in numbers])
                moments = self.first_stage.moments(records.images.to(self.device))
                yield LatentBatch(records=records, positions=tuple(first + one for one in numbers), moments=moments)

    @torch.no_grad()
    def draw(self, batch: LatentBatch, streams: Streams) -> Tensor:
        """(B, C, h, w), normalised, drawn from the posterior under the streams' name "posterior"."""
        mean, std = batch.moments or self.first_stage.moments(batch.records.images.to(self.device, non_blocking=True))
        mean, std = mean.to(self.device, non_blocking=True), std.to(self.device, non_blocking=True)
        noise = streams.normal("posterior", mean.shape[1:], mean.device).to(mean)
        return self.first_stage.normalise(mean + std * noise)
