"""Remote shards, fetched by webdataset: URLs and `pipe:` commands with brace ranges.

A shard that cannot be had in several attempts is lost for the epoch, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NoReturn

import torch
from tqdm import tqdm
from webdataset import SimpleShardList

from ldm.core.errors import UserError
from ldm.data.batch import Batch, Sample
from ldm.data.config import DataConfig
from ldm.data.facts import LABELS, DataFacts
from ldm.data.image_dataset import ImageDataset, Share
from ldm.data.loader import report_unreadable
from ldm.data.sample_transform import SampleTransform, Split
from ldm.data.shard_fetch import fetched
from ldm.data.sources.shards import ShardSource
from ldm.data.stream_reader import Account, Place, Reader, Shards, num_readers, pieces
from ldm.data.unreadable import UnreadableReport

_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)")


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a `pipe:` command."""
    return _SCHEME.match(place) is not None


class StreamedDataset(ImageDataset):
    """Samples of shards that are read by virtual readers, see `ldm.data.stream_reader`. What the records have, the first shard decides."""

    count = None

    def __init__(self, place: str, config: DataConfig, split: Split, seed: int) -> None:
        self.name, self.digest, self.urls = place, place, SimpleShardList(place).urls  # a change of what lies there goes unnoticed
        self.config, self.split, self.seed = config, split, seed
        self.lost, self.places = [], {}
        self._sizes: dict[str, int] = {}  # records of each shard that was fetched
        self._said: set[str] = set()
        self._share = 1.0  # of the set that this process reads
        self._classes: int | None = None
        self.unreadable = UnreadableReport(len(self.urls), config.max_lost)
        self._first: dict[str, ShardSource] = {}  # the first shard is kept: what is looked at and measured comes from it
        found = next(((url, source) for url in self.urls if (source := self._shard(url)) is not None), None)
        if found is None:
            raise UserError(f"{place}: no shard can be read ({'; '.join(self.unreadable.records.values())})")
        self._first, first = dict([found]), found[1]
        if first.has_maps:
            raise UserError(
                f"{place}: maps of streamed shards have no class names; fetch the shards with their index.json and train on the folder"
            )
        self._has = first.conditions - ({LABELS} if first.label_names else set())  # texts have no numbers until all are known
        self.facts = DataFacts(
            has=self._has, scan=self._refuse_attributes, scan_labels=first.label_numbers, report_classes=self._refuse_labels_beyond
        )
        self.transform = SampleTransform(
            config=config,
            split=split,
            seed=seed,
            label_names=(),
            map_names=(),
            has_masks=first.has_masks,
            has_maps=False,
            has_boxes=first.has_boxes,
        )

    def _refuse_attributes(self) -> NoReturn:
        raise UserError(
            f"{self.name}: attributes of streamed shards are not known before they are read; fetch them and train on the folder"
        )

    def _refuse_labels_beyond(self, classes: int) -> None:
        self._classes = classes

    def _shard(self, url: str) -> ShardSource | None:
        """A shard's records, outside of training; None if it cannot be had, which is counted."""
        account = Account()
        try:
            source = self._first.get(url) or fetched(url)
        except UserError as error:
            self._count_lost(url, str(error))
            return None
        account.sizes[url] = len(source)
        account.remarks |= {finding.what: f"{url}: {finding.line()}" for finding in source.findings}
        self._enter(account)
        return source

    def _enter(self, account: Account) -> None:
        """Counts what was met.

        Raises:
            UserError: more is lost than the config allows.
        """
        for url, size in account.sizes.items():
            self.unreadable.forget(url)
            self._sizes[url] = size
        self.unreadable.total = round(self._mean_size * len(self.urls) * self._share)
        for what, line in account.remarks.items():
            if what not in self._said:  # it holds for many shards
                self._said.add(what)
                tqdm.write(line)
        for epoch, url, reason in account.lost:
            if (epoch, url) not in self.lost:
                self.lost.append((epoch, url))
            self._count_lost(url, reason)
        self.unreadable.add_all(account.unreadable)

    @property
    def _mean_size(self) -> float:
        return sum(self._sizes.values()) / len(self._sizes) if self._sizes else 1.0

    def _count_lost(self, url: str, reason: str) -> None:
        self.unreadable.add(url, reason, self._sizes.get(url, max(1, round(self._mean_size))))

    def _shards(self) -> Shards:
        return Shards(
            urls=self.urls, seed=self.seed, transform=self.transform, has=self._has, classes=self._classes,
            lost=frozenset(self.lost), first=self._first,
        )  # fmt: skip

    def batches(self, batch_size: int, first_step: int, part: tuple[int, int]) -> Iterator[Share]:
        number = num_readers(batch_size, len(self.urls))
        if self.places and self.places.keys() != set(range(number)):
            raise UserError(
                f"{self.name}: {len(self.places)} readers were at work before, and now it would be {number}: restore batch and shards"
            )
        if first_step > 1 and not self.places:
            tqdm.write(f"{self.name}: the run's state does not say where in the shards it was: they are read from the first one on")
        width, (start, stop) = batch_size // number, part
        own = {reader: range(reader * width, (reader + 1) * width) for reader in range(start // width, -(-stop // width))}
        shards, before = self._shards(), dict(self.places)
        self.places.clear()
        self.places.update({reader: before.get(reader, Place(reader, 0)) for reader in own})
        readers = {
            reader: Reader(shards, [start <= place < stop for place in filled], Place(*self.places[reader]), number)
            for reader, filled in own.items()
        }
        self._share = (stop - start) / batch_size
        epoch, reported = self._epoch, 0
        for some in pieces(readers, self.config.workers):
            for piece in some:
                self.places |= piece.places
                self._enter(piece.account)
            batch = Batch.joined([piece.batch for piece in some])
            yield batch.pin_memory() if self.config.workers and torch.cuda.is_available() else batch, tuple(range(start, stop))
            if self._epoch > epoch:
                epoch, reported = self._epoch, report_unreadable(self.unreadable, reported)

    @property
    def _epoch(self) -> int:
        """Which all readers of this process are in, or beyond."""
        return min(place[0] for place in self.places.values()) // len(self.urls)

    def some(self, limit: int | None) -> Iterator[Sample]:
        return islice(self._in_order(), limit)

    def _in_order(self) -> Iterator[Sample]:
        """All that can be read, as in epoch 0."""
        shards = self._shards()
        for number, url in enumerate(self.urls):
            source = self._shard(url)
            for index in range(0 if source is None else len(source)):
                assert source is not None
                try:
                    yield self.transform(shards.record(source, url, index), 0, number << 32 | index)
                except UserError as error:
                    self.unreadable.add(f"{source.key(index)} in {url}", str(error))
