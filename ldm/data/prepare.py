"""From any source to shards and their index: checks every picture, makes it smaller if asked, holds some out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.core.errors import UserError
from ldm.core.files import Outputs, new_folder, write_file
from ldm.core.ownership import strangers
from ldm.data.checksum import checksum
from ldm.data.formats import HEAD, format_of
from ldm.data.images import Levels, decode_array, decode_map, doubt_about, examine, object_in
from ldm.data.parts import Chunk, Page, Pages, Parts
from ldm.data.picture_file import count_pages
from ldm.data.record import Record
from ldm.data.report import PAGE, TEXT, Report
from ldm.data.set_index import Index
from ldm.data.shard_scan import plain_key
from ldm.data.shards import ShardWriter, shard_writer
from ldm.data.sources.source import Source

CREDITS = "CREDITS.txt"
CHUNK = (16, 128)  # fewest and most records that a process looks at at once; it is a multiple of the fewest
MANY = 4096  # chunks of a set, before they grow
Progress = Callable[[Iterable[Pages], int, str], Iterable[Pages]]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """
    Attributes:
        size: larger pictures are scaled down until their shorter side has this; None = as they are.
        val_every: every so manieth picture is held out, from the last of the first so many on; None = none.
        shard_bytes: most that one shard may have.
        background: RGB that transparent pictures are laid on now; None = at training, on data.background.
        all_pages: whether each page of a TIFF or frame of an animation becomes a record; otherwise the first is taken.
        levels: which numbers are black and white in floats and signed pictures, as at training, data.levels.
        workers: processes that read, check and scale; what is written does not depend on it.
    """

    size: int | None = None
    val_every: int | None = None
    shard_bytes: int = 256 * 2**20
    background: tuple[int, int, int] | None = None
    levels: Levels | None = None
    all_pages: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers must be at least 1, got {self.workers}")
        if self.size is not None and self.size < 1:
            raise UserError(f"--size must be at least 1, got {self.size}")
        if self.val_every is not None and self.val_every < 2:
            raise UserError(f"--val-every must be at least 2, got {self.val_every}")
        if self.shard_bytes < 2**20:
            raise UserError(f"--shard-size must be at least 1 MiB, got {self.shard_bytes / 2**20:g}")
        if self.levels is not None and not -math.inf < self.levels[0] < self.levels[1] < math.inf:
            raise UserError(f"--levels must be two numbers, black before white, as in 0 4095, got {self.levels[0]:g} {self.levels[1]:g}")
        if self.background is not None and not all(0 <= level <= 255 for level in self.background):
            raise UserError(f"--background must be three levels from 0 to 255, got {self.background}")


def prepare_sources(sources: Mapping[str, Source], out: Path, how: Preparation, progress: Progress) -> Report:
    """The records of "train", and of "val" where the source has its own, into `out`, with a report; the whole folder or nothing.

    Raises:
        UserError: not one picture is readable, none would be held out, `out` is a folder of something else, or there is a held-out split
            already.
    """
    _check_own(out)
    _refuse_second_split(sources, how)
    first = sources["train"]
    parts = _parts_of(sources, out, how)
    with new_folder(out) as folder:
        with ExitStack() as shards:
            writers: dict[str, ShardWriter] = {}
            report = Report.of(sources, how.all_pages)
            for split, record in _checked_records(sources, how, report, progress, parts):
                if split not in writers:
                    writers[split] = shards.enter_context(shard_writer(folder, split, how.shard_bytes))
                writers[split].add(record)
        written = {split: writer.written for split, writer in writers.items()}
        report.counts = {split: info.count for split, info in written.items()}
        try:
            _refuse_none(report, how)
        except UserError:
            parts.remove()
            raise
        names = first.map_names or tuple(f"class {number}" for number in range(max(report.map_classes, default=-1) + 1))
        classes = tuple(sorted(report.map_classes))
        about: dict[str, object] = {"credits": list(first.credits)} if first.credits else {}
        Index(splits=written, label_names=first.label_names, map_names=names, map_classes=classes, about=about).write(folder)
        if first.credits:
            write_file(folder / CREDITS, "".join(f"{line}\n" for line in first.credits))
        for name, content in report.files().items():
            write_file(folder / name, content)
    parts.remove()
    return report


def prepare_part(sources: Mapping[str, Source], out: Path, how: Preparation, which: tuple[int, int], progress: Progress) -> None:
    """Looks at a part of the records, as one of several machines, and keeps what `prepare_sources` will find there.

    Args:
        sources: as of all machines.
        out: as of all machines, which see the same files there.
        how: as of all machines.
        which: the part's number, from 1, and how many parts there are.
        progress: shows how far it is.

    Raises:
        UserError: see `Parts`.
    """
    _check_own(out)
    _refuse_second_split(sources, how)
    number, count = which
    parts = _parts_of(sources, out, how)
    for split, source in sources.items():
        chunks = _Chunks(split, source, how, parts)
        own = range(number - 1, len(chunks), count)
        total = sum(len(chunks.numbers(chunk)) for chunk in own)
        done: Iterator[Pages] = ([] for chunk, _ in chunks.done(own) for _ in chunks.numbers(chunk))
        for _ in progress(done, total, split):
            pass


def _parts_of(sources: Mapping[str, Source], out: Path, how: Preparation) -> Parts:
    """Where chunks are kept, under all that they depend on; which are held out, and how large shards are, is decided behind them."""
    looked = (how.size, how.background, how.levels, how.all_pages)
    return Parts(out, ([(split, len(source), source.listing) for split, source in sources.items()], looked))


def _refuse_second_split(sources: Mapping[str, Source], how: Preparation) -> None:
    if "val" in sources and how.val_every is not None:
        raise UserError("--val-every does not go with this source: it has a held-out split already")


def check_sources(sources: Mapping[str, Source], out: Path, how: Preparation, progress: Progress) -> Report:
    """The report alone, into a folder: every record is read and decoded as for preparing.

    Raises:
        UserError: not one picture is readable, or none would be held out; a file of that name in `out` is not this tool's.
    """
    _refuse_second_split(sources, how)
    outputs = Outputs(out)
    outputs.check(TEXT, PAGE)
    report = Report.of(sources, how.all_pages)
    for split, _ in _checked_records(sources, how, report, progress, None):
        report.counts[split] = report.counts.get(split, 0) + 1
    _refuse_none(report, how)
    outputs.write(report.files())
    return report


def _refuse_none(report: Report, how: Preparation) -> None:
    if not report.counts.get("train"):
        reason = next(iter(report.unreadable), "there were none")
        raise UserError(f"not one picture to train on ({reason})")
    if how.val_every is not None and "val" not in report.counts:
        raise UserError(
            f"--val-every {how.val_every} holds out none of {report.counts['train']} pictures; give a smaller number, or leave it out"
        )


def _checked_records(
    sources: Mapping[str, Source], how: Preparation, report: Report, progress: Progress, parts: Parts | None
) -> Iterator[tuple[str, Record]]:
    """Every record that can be read, as it is to be stored, under a new plain key, with its split.

    Identical pictures fall on one side of the split that is made here.
    """
    side_of: dict[str, str] = {}
    keys: dict[str, int] = {}
    readable = 0
    for split, source in sources.items():
        for pages in progress(_looked_at(_Chunks(split, source, how, parts), report), len(source), split):
            own_side = None  # all pages of a file fall on one side
            for checked, digest, fingerprint in pages:
                readable += 1
                side = split
                if how.val_every is not None:
                    side = side_of.setdefault(digest, own_side or ("val" if readable % how.val_every == 0 else "train"))
                    own_side = side
                key = plain_key(checked.key)
                keys[key] = keys.get(key, 0) + 1
                if keys[key] > 1:  # of another shard
                    key = plain_key(f"{key[-60:]}-{checksum(f'{checked.key} {keys[key]}'.encode())}")
                report.add(side, checked, digest, fingerprint)
                yield side, replace(checked, key=key)


class _Chunks(Dataset[Chunk | OSError | None]):
    """The records of a split, some at a time. parts: where they are kept; None = nowhere."""

    def __init__(self, split: str, source: Source, how: Preparation, parts: Parts | None) -> None:
        self.split, self.source, self.how, self.parts = split, source, how, parts
        self.size = min(CHUNK[0] * math.ceil(len(source) / MANY / CHUNK[0]), CHUNK[1])

    def __len__(self) -> int:
        return -(-len(self.source) // self.size)

    def numbers(self, chunk: int) -> range:
        """Of a chunk's records."""
        return range(chunk * self.size, min((chunk + 1) * self.size, len(self.source)))

    def __getitem__(self, chunk: int) -> Chunk | OSError | None:
        """What was seen; None where it is kept. A full disk is returned, to be raised by the caller, without a worker's traceback."""
        if self.parts is None:
            return self.seen(chunk)
        path = self.parts.path(self.split, chunk)
        try:
            if not path.exists():
                self.parts.write(path, self.seen(chunk))
        except OSError as error:
            return error
        return None

    def seen(self, chunk: int) -> Chunk:
        """Looks at every record of a chunk."""
        part = Report()
        return [self._pages(number, part) for number in self.numbers(chunk)], part

    def _pages(self, number: int, part: Report) -> Pages:
        found: Pages = []
        try:
            record = self.source.record(number)
        except UserError as error:
            part.unreadable.append(str(error))
            return found
        for page in _pages(record, self.how, part):
            try:
                found.append(_checked(page, self.how, part))
            except UserError as error:
                part.unreadable.append(str(error))
        return found

    def done(self, which: Sequence[int]) -> Iterator[tuple[int, Chunk | None]]:
        """Some chunks in order, done by this process or by as many as are asked for.

        Raises:
            OSError: the disk is full.
        """
        found: Iterable[Chunk | OSError | None] = map(self.__getitem__, which)
        if self.how.workers > 1:
            found = DataLoader(self, batch_size=None, sampler=which, num_workers=self.how.workers, multiprocessing_context="fork")
        for number, chunk in zip(which, found, strict=True):
            if isinstance(chunk, OSError):
                raise chunk
            yield number, chunk


def _looked_at(chunks: _Chunks, report: Report) -> Iterator[Pages]:
    """The pages of every record that can be read, in order."""
    for number, chunk in chunks.done(range(len(chunks))):
        if chunk is None and chunks.parts is not None:
            chunk = chunks.parts.read(chunks.parts.path(chunks.split, number))
        records, part = chunk or chunks.seen(number)
        report.join(part)
        yield from records


def _pages(record: Record, how: Preparation, report: Report) -> Iterator[Record]:
    """The record, or one for each page of its picture if that is wanted; what cannot be read is left to `_checked`."""
    try:
        is_array = format_of(record.image[:HEAD], record.suffix) == "NPY"
        count = 1 if is_array else count_pages(record.image, record.name, suffix=record.suffix)
    except UserError:
        count = 1
    report.see_pages(record, count)
    if count == 1 or not how.all_pages:
        yield record
        return
    for page in range(count):
        key, place = f"{record.key}-{page + 1}", f"{record.name}, page {page + 1}"
        try:
            image, _ = examine(record.image, place, suffix=record.suffix, page=page, levels=how.levels)
        except UserError as error:
            report.unreadable.append(str(error))
        else:
            yield replace(record, key=key, place=place, suffix="png", image=_png(image))


def _checked(record: Record, how: Preparation, report: Report) -> Page:
    """The record, decoded once for a check and made smaller if need be.

    Raises:
        UserError: it cannot be read.
    """
    if format_of(record.image[:HEAD], record.suffix) == "NPY":
        array = decode_array(record.image, record.name, levels=how.levels)
        report.see_array(record, array)
        if how.levels is not None:  # so that training needs none
            return Page(replace(record, suffix="npy", image=_npy(array)), checksum(record.image), None)
        return Page(record, checksum(record.image), None)
    image, facts = examine(record.image, record.name, suffix=record.suffix, levels=how.levels)
    side = min(image.size)
    scale = how.size / side if how.size is not None and how.size < side else 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    transparent = image.mode in ("LA", "RGBA")
    stored = record
    is_mapped = how.levels is not None and facts.mode.startswith(("I", "F"))
    if scale != 1.0 or is_mapped or (transparent and how.background is not None):
        stored = replace(stored, suffix="png", image=_png(_scaled(image, size, how.background if transparent else None)))
    if record.mask is not None:
        painted, _ = examine(record.mask, f"mask of {record.name}")
        report.see_mask(record, doubt_about(painted))
        mask = Image.fromarray(object_in(painted))
        stored = replace(stored, mask=_png(_fitted(mask, image.size, size, f"mask of {record.name}").convert("1")))
    if record.map is not None:
        classes = decode_map(record.map, f"map of {record.name}")
        if not 0 <= int(classes.min()) <= int(classes.max()) < 256:
            raise UserError(f"map of {record.name}: classes must be from 0 to 255")
        report.see_map(record, classes)
        fitted = _fitted(Image.fromarray(classes.numpy().astype("uint8")), image.size, size, f"map of {record.name}")
        stored = replace(stored, map=_png(fitted))
    return Page(stored, checksum(record.image), report.see_image(record, image, facts))


def _scaled(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int] | None) -> Image.Image:
    """Scaled with transparency taken into account, so that colours hidden under it do not bleed in."""
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA").convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
        if background is not None:
            image = Image.alpha_composite(Image.new("RGBA", size, (*background, 255)), image).convert("RGB")
        return image
    return image.resize(size, Image.Resampling.LANCZOS)


def _fitted(image: Image.Image, of: tuple[int, int], size: tuple[int, int], name: str) -> Image.Image:
    """A mask or map, nearest neighbour, to the size of its picture."""
    if image.size != of:
        raise UserError(f"{name}: is {image.width}x{image.height}, its picture {of[0]}x{of[1]}")
    return image.resize(size, Image.Resampling.NEAREST)


def _npy(array: Tensor) -> bytes:
    """An array (C, H, W) in [-1, 1] as a file of (H, W, C)."""
    buffer = io.BytesIO()
    np.save(buffer, array.permute(1, 2, 0).numpy())
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _check_own(out: Path) -> None:
    """Refuses what an earlier call did not leave there, all of which the new folder would replace."""
    others = strangers(out) if out.is_dir() else ["a file"] if out.exists() else []
    if others:
        raise UserError(f"{out} holds {others[0]}, which was not made by this script, or was changed since; give --out another folder")
