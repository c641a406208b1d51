"""The virtual readers of a stream: each reads every so manieth shard, in an order keyed by (seed, epoch), and a shard's records in an order
keyed by (seed, epoch, shard).

How many there are depends on the global batch and the number of shards alone, and each fills places of its own in every batch. So where a
stream is after a step is a few numbers, whatever number of processes and workers reads it, and resuming fetches the shards in hand alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Batch, Sample
from ldm.data.facts import BOXES, LABELS, MAPS, MASKS
from ldm.data.loader import start_method
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform
from ldm.data.shard_fetch import fetched
from ldm.data.sources.shards import ShardSource

FEW, A_READER = 8, 16  # readers; more than these where each would have more than so many places of the batch


class Place(NamedTuple):
    """Where a reader is: the turn of its shard, in the sequence of all epochs' shards, and how many of its records are used."""

    turn: int
    offset: int


def num_readers(batch_size: int, num_shards: int) -> int:
    """The largest divisor of the batch that is not too many."""
    most = min(num_shards, max(FEW, batch_size // A_READER))
    return max(number for number in range(1, most + 1) if batch_size % number == 0)


@dataclass(kw_only=True)
class Account:
    """What was met in reading, on its way from a worker process.

    Attributes:
        sizes: records of shards that were fetched.
        lost: (epoch, shard, reason) of those that could not be.
        unreadable: reasons, by record.
        remarks: lines to be printed once, by what they say.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    lost: list[tuple[int, str, str]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The shards of a stream, and how their records become samples.

    Attributes:
        urls, seed, transform: of the stream.
        has: what its records have, see `ldm.data.facts`.
        classes: labels from there on are refused; None = none is.
        lost: (epoch, shard) of those that are lost again without a try.
        first: shards that are at hand in this process.
    """

    urls: Sequence[str]
    seed: int
    transform: SampleTransform
    has: frozenset[str]
    classes: int | None
    lost: frozenset[tuple[int, str]]
    first: dict[str, ShardSource]

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that do not share this one's memory, nor its open files."""
        return {**vars(self), "first": {}}

    def at(self, turn: int) -> tuple[int, int]:
        """Epoch and number of the shard of a turn."""
        epoch, place = divmod(turn, len(self.urls))
        return epoch, _order(self.seed, epoch, len(self.urls))[place]

    def fetch(self, turn: int, account: Account) -> ShardSource | None:
        """The shard of a turn; None if it is lost."""
        epoch, number = self.at(turn)
        url = self.urls[number]
        if (epoch, url) in self.lost:
            account.lost.append((epoch, url, f"{url}: was lost in epoch {epoch}, before the run was resumed"))
            return None
        try:
            source = self.first[url] if url in self.first else fetched(url)
        except UserError as error:
            account.lost.append((epoch, url, str(error)))
            return None
        account.sizes[url] = len(source)
        account.remarks |= {finding.what: f"{url}: {finding.line()}" for finding in source.findings}
        beyond = (source.conditions & {MASKS, MAPS, BOXES}) - self.has
        if beyond:
            what = f"has {', '.join(sorted(beyond))}, which the first shard has not: they are passed over"
            account.remarks[what] = f"{url} {what}"
        return source

    def record(self, source: ShardSource, url: str, index: int) -> Record:
        """A record, named with its shard.

        Raises:
            UserError: it cannot be read, or its label is no class.
        """
        name = f"{source.key(index)} in {url}"
        try:
            record = source.record(index)
        except UserError as error:
            raise UserError(f"{url}: {error}") from None
        if isinstance(record.label, int) and self.classes is not None and record.label >= self.classes:
            raise UserError(f"{name}: label {record.label} is outside 0 to {self.classes - 1}")
        return replace(record, place=name, label=record.label if LABELS in self.has else None)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    found: list[int] = torch.randperm(count, generator=generator(seed, "shards", epoch)).tolist()
    return found


class Reader:
    """One of several readers; it has the same places in every batch.

    Attributes:
        place: of the next record.
    """

    def __init__(self, shards: Shards, wanted: Sequence[bool], place: Place, stride: int) -> None:
        """
        Args:
            shards: of the stream.
            wanted: of its places in the batch, which this process fills; the others are passed by, for another process.
            place: where to begin.
            stride: number of readers.
        """
        self.shards, self.wanted, self.place, self._stride = shards, wanted, place, stride
        self._source: ShardSource | None = None
        self._order: list[int] = []

    def step(self, account: Account) -> list[Sample]:
        """The samples of the next batch that are wanted of it.

        Raises:
            UserError: no shard can be fetched or no record of one be read, or one is lost that another process reads too.
        """
        return [sample for is_wanted in self.wanted if (sample := self._next(is_wanted, account)) is not None]

    def _next(self, is_wanted: bool, account: Account) -> Sample | None:
        source = self._source or self._begun(account)
        sample = self._sample(source, account) if is_wanted else None
        turn, offset = self.place
        self.place = Place(turn, offset + 1)
        if self.place.offset == len(source):
            self.place, self._source = Place(turn + self._stride, 0), None
        return sample

    def _begun(self, account: Account) -> ShardSource:
        """The shard in hand, or the next that can be fetched."""
        failed: set[str] = set()
        while len(failed) < len(self.shards.urls):
            source = self.shards.fetch(self.place.turn, account)
            if source is not None:
                draw = generator(self.shards.seed, "records", *self.shards.at(self.place.turn))
                self._source, self._order = source, torch.randperm(len(source), generator=draw).tolist()
                return source
            if not all(self.wanted):
                raise UserError(
                    f"{account.lost[-1][2]}; another process reads it too, so it cannot be left out here: run as many processes as divide "
                    f"{self._stride}, or cut the set into more shards"
                )
            failed.add(account.lost[-1][1])
            self.place = Place(self.place.turn + self._stride, 0)
        raise UserError(f"no shard can be had; the last: {account.lost[-1][2]}")

    def _sample(self, source: ShardSource, account: Account) -> Sample:
        """Of the record in turn, or of the next in this shard that can be read."""
        epoch, shard = self.shards.at(self.place.turn)
        url = self.shards.urls[shard]
        reason = ""
        for step in range(len(source)):
            index = self._order[(self.place.offset + step) % len(source)]
            try:
                return self.shards.transform(self.shards.record(source, url, index), epoch, shard << 32 | index)
            except UserError as error:
                reason = account.unreadable[f"{source.key(index)} in {url}"] = str(error)
        raise UserError(f"{url}: no record can be read (the last: {reason})")


class Piece(NamedTuple):
    """What some readers give for a batch, where they are after it, and what they met."""

    batch: Batch
    places: dict[int, Place]
    account: Account


class _Pieces(IterableDataset[Piece | UserError]):
    """The pieces of batch after batch, of a worker process's readers."""

    def __init__(self, readers: dict[int, Reader]) -> None:
        self.readers = readers

    def __iter__(self) -> Iterator[Piece | UserError]:
        """An error is returned, to be raised by the caller: a worker process would wrap it in a traceback."""
        worker, numbers = get_worker_info(), sorted(self.readers)
        if worker is not None:
            numbers = [number for i, number in enumerate(numbers) if i * worker.num_workers // len(numbers) == worker.id]
        readers = {number: self.readers[number] for number in numbers}
        while True:
            account = Account()
            try:
                samples = [sample for reader in readers.values() for sample in reader.step(account)]
            except UserError as error:
                yield error
                return
            yield Piece(Batch.of(samples), {number: reader.place for number, reader in readers.items()}, account)


def pieces(readers: dict[int, Reader], workers: int) -> Iterator[list[Piece]]:
    """What the readers give, batch after batch, in the order of their numbers.

    Args:
        readers: of this process, by number.
        workers: processes that share them; 0 = none, they are read here.
    """
    data, share = _Pieces(readers), min(workers, len(readers))
    found = iter(data)
    if share:
        found = iter(DataLoader(data, batch_size=None, num_workers=share, multiprocessing_context=start_method()))
    while True:
        some = []
        for one in (next(found) for _ in range(max(1, share))):  # from each worker process in turn
            if isinstance(one, UserError):
                raise one
            some.append(one)
        yield some
