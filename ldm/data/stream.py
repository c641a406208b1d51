"""Remote shards, streamed by webdataset: URLs and `pipe:` commands with brace ranges. Only our own `SampleTransform` decodes."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from itertools import count, groupby, islice
from typing import Any, NoReturn

import torch
from tqdm import tqdm
from webdataset import SimpleShardList, gopen

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Batch, Sample
from ldm.data.config import DataConfig
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MASKS, PIXELS, DataFacts
from ldm.data.image_dataset import ImageDataset, Share
from ldm.data.loader import report_unreadable
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform, Split
from ldm.data.shards import split_name, split_records
from ldm.data.unreadable import ENOUGH, UnreadableReport

BUFFER = 1000  # records that are shuffled among each other, besides the shards
_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)")
Numbered = tuple[Record, int, int]
"""A record, its epoch, and its number in it."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a `pipe:` command."""
    return _SCHEME.match(place) is not None


class _Tail:
    """A stream that remembers its last bytes: a whole tar ends in 1,024 zeros."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._last = stream, b""

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        self._last = (self._last + content)[-1024:]
        return content

    def ends_well(self) -> bool:
        """Reads what is left; whether the end mark was there."""
        while rest := self.read(1 << 16):
            if any(rest):
                return False
        self._stream.close()
        return len(self._last) == 1024 and not any(self._last)


class StreamedDataset(ImageDataset):
    """Samples in an order keyed by (seed, epoch): shards permuted, then records within a buffer.

    Every process reads every shard and decodes its share only, so 1 and N processes see the same batches; resuming skips, undecoded, to
    where it was. A shard that breaks off loses its tail, which is counted under the shard's name.
    """

    count = None

    def __init__(self, place: str, config: DataConfig, split: Split, seed: int) -> None:
        self.name, self.digest, self.urls = place, place, SimpleShardList(place).urls  # a change of what lies there goes unnoticed
        self.config, self.split, self.seed, self._has_told = config, split, seed, False
        self.unreadable = UnreadableReport(ENOUGH, config.max_lost)
        first = next(self._records(0, shuffled=False), None)
        if first is None:
            raise UserError(f"{place}: no record can be read ({'; '.join(self.unreadable.records.values()) or 'it is empty'})")
        if first.map is not None:
            raise UserError(
                f"{place}: maps of streamed shards have no class names; fetch the shards with their index.json and train on the folder"
            )
        has_masks = first.mask is not None
        there = {
            PIXELS: True,
            CAPTIONS: bool(first.captions),
            LABELS: isinstance(first.label, int),
            MASKS: has_masks,
            BOXES: bool(first.boxes),
            ATTRIBUTES: bool(first.attributes),
        }
        self.facts = DataFacts(has=frozenset(name for name, is_there in there.items() if is_there), scan=self._refuse_attributes)
        self.transform = SampleTransform(
            config=config,
            split=split,
            seed=seed,
            label_names=(),
            map_names=(),
            has_masks=has_masks,
            has_maps=False,
            has_boxes=bool(first.boxes),
        )

    def _refuse_attributes(self) -> NoReturn:
        raise UserError(
            f"{self.name}: attributes of streamed shards are not known before they are read; fetch them and train on the folder"
        )

    def _records(self, epoch: int, shuffled: bool) -> Iterator[Record]:
        """All records of an epoch."""
        draw = generator(self.seed, "shards", epoch)
        order = torch.randperm(len(self.urls), generator=draw).tolist() if shuffled else range(len(self.urls))
        buffer: list[Record] = []
        for shard in order:
            for record in self._of_shard(self.urls[shard]):
                if not shuffled:
                    yield record
                    continue
                buffer.append(record)
                if len(buffer) > BUFFER:
                    place = int(torch.randint(len(buffer), (), generator=draw))
                    buffer[place], buffer[-1] = buffer[-1], buffer[place]
                    yield buffer.pop()
        for place in torch.randperm(len(buffer), generator=draw).tolist():
            yield buffer[place]

    def _of_shard(self, url: str) -> Iterator[Record]:
        try:
            stream, known = _Tail(gopen(url)), set[str]()
            for key, members in _grouped(stream):
                if key in known:
                    raise UserError(
                        f"{url}: the members of record {key} do not lie side by side, as a stream needs them: write the tar sorted by "
                        "name, or fetch it and train on the file"
                    )
                known.add(key)
                records, others = split_records(key, members)
                if others and not self._has_told:
                    tqdm.write(f"{url}: {key}.{others[0]} and its like are pictures beside their records' own, and passed over")
                    self._has_told = True
                for one, parts in records.items():
                    try:
                        yield Record.of(one, {own: members[suffix] for own, suffix in parts.items()})
                    except UserError as error:
                        self.unreadable.add(one, str(error))
            if not stream.ends_well():
                self.unreadable.add(
                    url, f"{url}: breaks off (no end mark), or more follows behind it"
                )  # tarfile takes a cut header for the end, without a word
        except UserError:
            raise
        except Exception as error:  # of the network or of a command that is not ours
            self.unreadable.add(url, f"{url}: breaks off ({' '.join(str(error).split())[:200]})")

    def _numbered(self, shuffled: bool) -> Iterator[Numbered]:
        """Epoch after epoch, without end."""
        reported = 0
        for epoch in count():
            number = 0
            for record in self._records(epoch, shuffled):
                yield record, epoch, number
                number += 1
                self.unreadable.total = max(self.unreadable.total, number)
            if number == 0:
                raise UserError(f"{self.name}: no record can be read")
            reported = report_unreadable(self.unreadable, reported)

    def batches(self, batch_size: int, first_step: int, part: tuple[int, int]) -> Iterator[Share]:
        records = islice(self._numbered(shuffled=True), (first_step - 1) * batch_size, None)
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
                self.unreadable.add(record.key, str(error))
        raise UserError(f"{self.name}: no record of a whole batch can be decoded (the last: {self.unreadable.line()})")

    def some(self, limit: int | None) -> Iterator[Sample]:
        for number, record in enumerate(islice(self._records(0, shuffled=False), limit)):
            try:
                yield self.transform(record, 0, number)
            except UserError as error:
                self.unreadable.add(record.key, str(error))


def _grouped(stream: _Tail) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and members of a tar, compressed or not: neighbours of one key are a record. Only regular files count."""
    with tarfile.open(fileobj=stream, mode="r|*") as tar:  # type: ignore[call-overload]

        def members() -> Iterator[tuple[str, str, bytes]]:
            for member in tar:
                key, suffix = split_name(member.name)
                if member.islnk() or member.issym() or member.issparse():
                    raise UserError(
                        f"{member.name} in a shard is a link or a sparse file, which no stream can follow: write the tar with files"
                    )
                content = tar.extractfile(member) if member.isreg() and suffix else None
                if content is not None:
                    yield key, suffix, content.read()
                tar.members.clear()

        for key, group in groupby(members(), key=lambda member: member[0]):
            yield key, {suffix: content for _, suffix, content in group}
