"""Remote shards, fetched by webdataset: URLs and `pipe:` commands with brace ranges.

A shard is fetched whole into an unnamed temporary file before its first record is used: so it is read as local shards are, and one that
breaks off can be fetched again. A shard that cannot be had in several attempts is lost for the epoch, by name.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm
from webdataset import SimpleShardList, gopen

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Batch, Sample
from ldm.data.config import DataConfig
from ldm.data.facts import BOXES, LABELS, MAPS, MASKS, DataFacts
from ldm.data.image_dataset import ImageDataset, Share
from ldm.data.loader import report_unreadable
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform, Split
from ldm.data.sources.shards import BareShard, ShardSource, bare_source
from ldm.data.unreadable import UnreadableReport

BUFFER = 1000  # records that are shuffled among each other, besides the shards
WAITS = (1.0, 5.0, 25.0)  # seconds between the attempts to fetch a shard
CURL = {
    "6": "no such host",
    "7": "no connection",
    "18": "the connection breaks off",
    "22": "the server refuses it, as with 404",
    "28": "no answer in time",
    "56": "the connection breaks off",
}  # what its exit codes mean
_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)")
Numbered = tuple[Record, int, int]
"""A record, its epoch, and its number in it."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a `pipe:` command."""
    return _SCHEME.match(place) is not None


class StreamedDataset(ImageDataset):
    """Samples in an order keyed by (seed, epoch): shards permuted, then records within a buffer.

    Every process reads every shard and decodes its share only, so 1 and N processes see the same batches; resuming skips, undecoded, to
    where it was, and loses again, in their epochs, the shards that were lost. What the records have, the first shard decides.
    """

    count = None

    def __init__(self, place: str, config: DataConfig, split: Split, seed: int) -> None:
        self.name, self.digest, self.urls = place, place, SimpleShardList(place).urls  # a change of what lies there goes unnoticed
        self.config, self.split, self.seed = config, split, seed
        self.lost = []
        self._sizes: dict[str, int] = {}  # records of each shard that was fetched
        self._said: set[str] = set()
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

    def _shard(self, url: str, on_any: Callable[[bool], bool] = bool) -> ShardSource | None:
        """A shard's records; None if this process, or another one, cannot have it, which is counted.

        Raises:
            UserError: more is lost than the config allows.
        """
        source, reason = self._first.get(url), f"{url}: another process could not fetch it"
        if source is None:
            try:
                source = _fetched(url)
            except UserError as error:
                reason = str(error)
        if on_any(source is None) or source is None:
            self._count_lost(url, reason)
            return None
        self.unreadable.forget(url)
        self._sizes[url] = len(source)
        self.unreadable.total = round(self._mean_size * len(self.urls))
        for finding in source.findings:
            self._say_once(finding.what, f"{url}: {finding.line()}")
        return source

    @property
    def _mean_size(self) -> float:
        return sum(self._sizes.values()) / len(self._sizes) if self._sizes else 1.0

    def _count_lost(self, url: str, reason: str) -> None:
        self.unreadable.add(url, reason, self._sizes.get(url, max(1, round(self._mean_size))))

    def _say_once(self, what: str, line: str) -> None:
        """Prints what holds for many shards at the first of them."""
        if what not in self._said:
            self._said.add(what)
            tqdm.write(line)

    def _in_epoch(self, url: str, epoch: int, on_any: Callable[[bool], bool]) -> ShardSource | None:
        """As `_shard`; what was lost in this epoch before the run was resumed is lost again."""
        if (epoch, url) in self.lost:
            self._count_lost(url, f"{url}: was lost in epoch {epoch}, before the run was resumed")
            return None
        source = self._shard(url, on_any)
        if source is None:
            self.lost.append((epoch, url))
        return source

    def _readable(self, url: str, source: ShardSource) -> Iterator[Record]:
        """A shard's records that can be read; the others are counted."""
        beyond = (source.conditions & {MASKS, MAPS, BOXES}) - self._has
        if beyond:
            self._say_once(str(beyond), f"{url} has {', '.join(sorted(beyond))}, which the first shard has not: they are passed over")
        for index in range(len(source)):
            name = f"{source.key(index)} in {url}"
            try:
                record = source.record(index)
                if isinstance(record.label, int) and self._classes is not None and record.label >= self._classes:
                    raise UserError(f"{name}: label {record.label} is outside 0 to {self._classes - 1}")
            except UserError as error:
                self.unreadable.add(name, str(error) if name in str(error) else f"{url}: {error}")
            else:
                yield replace(record, place=name, label=record.label if LABELS in self._has else None)

    def _of_epoch(self, epoch: int, on_any: Callable[[bool], bool]) -> Iterator[Record]:
        """All records of a training epoch."""
        draw = generator(self.seed, "shards", epoch)
        buffer: list[Record] = []
        for shard in torch.randperm(len(self.urls), generator=draw).tolist():
            source = self._in_epoch(self.urls[shard], epoch, on_any)
            for record in self._readable(self.urls[shard], source) if source is not None else ():
                buffer.append(record)
                if len(buffer) > BUFFER:
                    place = int(torch.randint(len(buffer), (), generator=draw))
                    buffer[place], buffer[-1] = buffer[-1], buffer[place]
                    yield buffer.pop()
        for place in torch.randperm(len(buffer), generator=draw).tolist():
            yield buffer[place]

    def _numbered(self, on_any: Callable[[bool], bool]) -> Iterator[Numbered]:
        """Epoch after epoch, without end."""
        reported = 0
        for epoch in count():
            number = 0
            for record in self._of_epoch(epoch, on_any):
                yield record, epoch, number
                number += 1
            if number == 0:
                raise UserError(f"{self.name}: no record can be read")
            reported = report_unreadable(self.unreadable, reported)

    def batches(self, batch_size: int, first_step: int, part: tuple[int, int], on_any: Callable[[bool], bool] = bool) -> Iterator[Share]:
        records = islice(self._numbered(on_any), (first_step - 1) * batch_size, None)
        places = tuple(range(*part))
        while True:
            whole = list(islice(records, batch_size))
            yield Batch.of([self._decoded(place, whole) for place in places]), places

    def _decoded(self, place: int, batch: list[Numbered]) -> Sample:
        """The sample at a place of a batch, or the next in it that can be decoded."""
        for step in range(len(batch)):
            record, epoch, number = batch[(place + step) % len(batch)]
            try:
                return self.transform(record, epoch, number)
            except UserError as error:
                self.unreadable.add(record.name, str(error))
        raise UserError(f"{self.name}: no record of a whole batch can be decoded (the last: {self.unreadable.line()})")

    def some(self, limit: int | None) -> Iterator[Sample]:
        sources = ((url, source) for url in self.urls if (source := self._shard(url)) is not None)
        records = (record for url, source in sources for record in self._readable(url, source))
        for number, record in enumerate(islice(records, limit)):
            try:
                yield self.transform(record, 0, number)
            except UserError as error:
                self.unreadable.add(record.name, str(error))


def _fetched(url: str) -> ShardSource:
    """The records of a shard, fetched anew after each of `WAITS` if that fails.

    Raises:
        UserError: it failed every time.
        OSError: the disk is full.
    """
    for wait in (*WAITS, None):
        try:
            return _copied(url)
        except Exception as error:  # of the network, of a command that is not ours, or of what came
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, error.strerror, f"a shard in {tempfile.gettempdir()}") from None
            reason = _reason(error)
        if wait is not None:
            tqdm.write(f"{url}: {reason}; once more in {wait:g} s")
            time.sleep(wait)
    raise UserError(f"{url}: cannot be fetched, {len(WAITS) + 1} times ({reason})")


def _reason(error: Exception) -> str:
    """In few words; webdataset says of a command, as which it also runs curl, how it ended."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    ended = re.search(r": exit (\d+) \(read\)", str(error))
    if ended is None:
        return said
    return f"exit code {ended[1]}" + (f": {CURL[ended[1]]}" if "curl" in said and ended[1] in CURL else "")


def _copied(url: str) -> ShardSource:
    with tempfile.TemporaryFile() as file:
        with gopen(url) as stream:
            shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        shard = BareShard.of(Path(f"/dev/fd/{file.fileno()}"))
        if shard.fault:
            raise UserError(shard.fault)
        return bare_source(url, [shard])
