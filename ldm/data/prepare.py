"""From any source to shards and their index: checks every picture, makes it smaller if asked, holds some out."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ldm.core.errors import UserError
from ldm.core.files import new_folder
from ldm.data.images import decode_array, decode_image, decode_map, decode_mask
from ldm.data.record import Record
from ldm.data.shards import INDEX_NAME, Index, ShardWriter, shard_writer
from ldm.data.sources.source import Source

Progress = Callable[[Iterable[Record], int, str], Iterable[Record]]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """
    Attributes:
        size: larger pictures are scaled down until their shorter side has this; None = as they are.
        val_every: every so manieth picture is held out, from the last of the first so many on; None = none.
        shard_bytes: most that one shard may have.
        background: RGB that transparent pictures are laid on now; None = at training, on data.background.
    """

    size: int | None = None
    val_every: int | None = None
    shard_bytes: int = 256 * 2**20
    background: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"--size must be at least 1, got {self.size}")
        if self.val_every is not None and self.val_every < 2:
            raise UserError(f"--val-every must be at least 2, got {self.val_every}")
        if self.shard_bytes < 2**20:
            raise UserError(f"--shard-size must be at least 1 MiB, got {self.shard_bytes / 2**20:g}")
        if self.background is not None and not all(0 <= level <= 255 for level in self.background):
            raise UserError(f"--background must be three levels from 0 to 255, got {self.background}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written: pictures by split, how many of them have no caption, and the unreadable ones by key with the reason."""

    counts: dict[str, int]
    without_caption: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def prepare_sources(sources: dict[str, Source], out: Path, how: Preparation, progress: Progress) -> Report:
    """The records of "train", and of "val" where the source has its own, into `out`; the whole folder or nothing.

    Raises:
        UserError: not one picture is readable, `out` is a folder of something else, or there is a held-out split already.
    """
    if "val" in sources and how.val_every is not None:
        raise UserError("--val-every does not go with this source: it has a held-out split already")
    unreadable = {key: reason for source in sources.values() for key, reason in source.unreadable.items()}

    def records(source: Source) -> Iterator[Record]:
        for index in range(len(source)):
            try:
                yield source.record(index)
            except UserError as error:
                unreadable[source.key(index)] = str(error)

    first = sources["train"]
    with _Writer(out, how, unreadable, first.label_names, first.map_names) as writer:
        for split, source in sources.items():
            readable = itertools.count(1)
            for record in progress(records(source), len(source), split):
                checked = writer.checked(record)
                if checked is not None:
                    held_out = how.val_every is not None and next(readable) % how.val_every == 0
                    writer.add("val" if held_out else split, checked)
    return writer.report


class _Writer:
    """An output folder in the making."""

    def __init__(
        self, out: Path, how: Preparation, unreadable: dict[str, str], label_names: tuple[str, ...], map_names: tuple[str, ...]
    ) -> None:
        _check_own(out)
        self.out, self.how, self.label_names, self.map_names = out, how, label_names, map_names
        self.report = Report(counts={}, unreadable=unreadable)
        self.writers: dict[str, ShardWriter] = {}
        self._classes: set[int] = set()

    def __enter__(self) -> _Writer:
        self._open = ExitStack()
        self.folder = self._open.enter_context(new_folder(self.out))
        self._shards = self._open.enter_context(ExitStack())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as failed:
            self._open.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._open.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def _finish(self) -> None:
        self._shards.close()
        if not self.report.counts.get("train"):
            first = next(iter(self.report.unreadable.values()), "there were none")
            raise UserError(f"not one picture to train on ({first})")
        splits = {split: tuple(writer.shards) for split, writer in self.writers.items()}
        names = self.map_names or tuple(f"class {i}" for i in range(max(self._classes, default=-1) + 1))
        Index(splits=splits, label_names=self.label_names, map_names=names, map_classes=tuple(sorted(self._classes))).write(self.folder)

    def checked(self, record: Record) -> Record | None:
        """The record, decoded once for a check and made smaller if need be; None, and counted, if it cannot be read."""
        try:
            return self._checked(record)
        except UserError as error:
            self.report.unreadable[record.key] = str(error)
            return None

    def _checked(self, record: Record) -> Record:
        how = self.how
        if record.suffix == "npy":
            decode_array(record.image, record.key)
            return record
        image = decode_image(record.image, record.key)
        side = min(image.size)
        scale = how.size / side if how.size is not None and how.size < side else 1.0
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        transparent = image.mode in ("LA", "RGBA")
        if scale != 1.0 or (transparent and how.background is not None):
            record = replace(record, suffix="png", image=_png(_scaled(image, size, how.background if transparent else None)))
        if record.mask is not None:
            mask = Image.fromarray((decode_mask(record.mask, f"mask of {record.key}")[0].numpy() * 255).astype("uint8"))
            record = replace(record, mask=_png(_fitted(mask, image.size, size, f"mask of {record.key}").convert("1")))
        if record.map is not None:
            classes = decode_map(record.map, f"map of {record.key}")
            if not 0 <= int(classes.min()) <= int(classes.max()) < 256:
                raise UserError(f"map of {record.key}: classes must be from 0 to 255")
            self._classes.update(classes.unique().tolist())
            fitted = _fitted(Image.fromarray(classes.numpy().astype("uint8")), image.size, size, f"map of {record.key}")
            record = replace(record, map=_png(fitted))
        return record

    def add(self, split: str, record: Record) -> None:
        """Writes a checked record."""
        if split not in self.writers:
            self.writers[split] = self._shards.enter_context(shard_writer(self.folder, split, self.how.shard_bytes))
        self.writers[split].add(record)
        if not record.captions:
            self.report.without_caption.append(record.key)
        self.report.counts[split] = self.report.counts.get(split, 0) + 1


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


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _check_own(out: Path) -> None:
    """Refuses what an earlier call did not leave there, all of which the new folder would replace."""
    if not out.exists():
        return
    there = {path.name for path in out.iterdir()} if out.is_dir() else {"a file"}
    try:
        own = {INDEX_NAME, *(shard.name for shards in Index.read(out).splits.values() for shard in shards)}
    except UserError:
        own = set()
    if there - own:
        raise UserError(f"{out} holds {min(there - own)}, which was not made by this script; give --out another folder")
