"""Records from torchvision's data sets: downloaded by it, or from raw files that are already on the disk."""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets

from ldm.core.errors import UserError, unknown
from ldm.data.names import CLASSIC
from ldm.data.record import Record
from ldm.data.sources.source import Source

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRIMAP = ("pet", "background", "outline")  # pixel values 1, 2, 3 of Oxford-IIIT Pet's annotations


class ClassicSource(Source):
    """One part of a torchvision set. The caption is "a photo of NAME", or "the digit NAME"."""

    def __init__(self, split: str, part: datasets.VisionDataset, label_names: tuple[str, ...], map_names: tuple[str, ...] = ()) -> None:
        self.name, self.digest, self.unreadable = f"{type(part).__name__} ({split})", f"{type(part).__name__} {split}", {}
        self.split, self.part, self.label_names, self.map_names = split, part, label_names, map_names
        self.has_captions, self.has_masks, self.has_maps = True, bool(map_names), bool(map_names)

    def __len__(self) -> int:
        return len(self.part)

    def key(self, index: int) -> str:
        return f"{self.split}-{index:06d}"

    def record(self, index: int) -> Record:
        try:
            image, target = self.part[index]
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.name}, picture {index}: cannot be read ({error})") from None
        mask = classes = None
        if self.map_names:
            target, trimap = target
            values = np.asarray(trimap).astype(np.uint8) - 1
            mask, classes = _png(Image.fromarray(values != TRIMAP.index("background"))), _png(Image.fromarray(values))
        name = self.label_names[target]
        caption = f"the digit {name}" if name.isdigit() else f"a photo of {name.lower()}"
        return Record(key=self.key(index), suffix="png", image=_png(image), captions=(caption,), label=name, mask=mask, map=classes)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def open_classic(name: str, raw: Path | None, cache: Path) -> Iterator[dict[str, Source]]:
    """A set by name: its own training part is "train", its test part "val".

    Args:
        raw: a folder below which its raw files lie (MNIST's four, `.gz` or not; CIFAR-10's `cifar-10-batches-py`; the pets' `images` and
            `annotations`); None = torchvision downloads them into cache.

    Raises:
        UserError: unknown name; the files are not there, are damaged, or cannot be downloaded.
    """
    if name not in CLASSIC:
        raise unknown("data set", name, CLASSIC)
    with tempfile.TemporaryDirectory() as scratch:
        root = cache if raw is None else Path(scratch)
        if raw is not None:
            if not raw.is_dir():
                raise UserError(f"--raw {raw}: no such folder")
            LAY_OUT[name](raw, root)
        try:
            sources = OPENERS[name](str(root), raw is None)
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            hint = f"below {raw}" if raw else "by download; if this machine is offline, get the files and name their folder with --raw"
            raise UserError(f"{name} is not available {hint} ({' '.join(str(error).split())})") from None
        yield sources


def _sources(parts: dict[str, datasets.VisionDataset], label_names: tuple[str, ...], map_names: tuple[str, ...] = ()) -> dict[str, Source]:
    return {split: ClassicSource(split, part, label_names, map_names) for split, part in parts.items()}


def _idx(kind: type[datasets.MNIST]) -> Callable[[str, bool], dict[str, Source]]:
    def open_(root: str, download: bool) -> dict[str, Source]:
        parts = {"train": kind(root, train=True, download=download), "val": kind(root, train=False, download=download)}
        return _sources(parts, tuple(n.split(" - ")[0] for n in kind.classes) if kind is datasets.MNIST else tuple(kind.classes))

    return open_


def _cifar10(root: str, download: bool) -> dict[str, Source]:
    parts = {"train": datasets.CIFAR10(root, train=True, download=download), "val": datasets.CIFAR10(root, train=False)}
    return _sources(parts, tuple(parts["train"].classes))


def _pets(root: str, download: bool) -> dict[str, Source]:
    targets = ("category", "segmentation")
    parts = {
        split: datasets.OxfordIIITPet(root, split=part, target_types=targets, download=download)
        for split, part in (("train", "trainval"), ("val", "test"))
    }
    return _sources(parts, tuple(parts["train"].classes), TRIMAP)


OPENERS: dict[str, Callable[[str, bool], dict[str, Source]]] = {
    "mnist": _idx(datasets.MNIST),
    "fashion-mnist": _idx(datasets.FashionMNIST),
    "cifar10": _cifar10,
    "pets": _pets,
}


def _lay_out_idx(folder: str) -> Callable[[Path, Path], None]:
    def lay_out(raw: Path, root: Path) -> None:
        target = root / folder / "raw"
        target.mkdir(parents=True)
        for name in IDX_FILES:
            alike = (name, name.replace("-idx", ".idx"))
            found = next((p for n in alike for p in sorted(raw.rglob(f"{n}*")) if p.name in (n, f"{n}.gz")), None)
            if found is None:
                raise UserError(f"--raw {raw}: no file {name} or {name}.gz below it")
            content = found.read_bytes()
            (target / name).write_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)

    return lay_out


def _lay_out_folder(name: str, within: str) -> Callable[[Path, Path], None]:
    """Shows raw, or the folder below it that has `name` in it, to torchvision under the name that it looks for."""

    def lay_out(raw: Path, root: Path) -> None:
        found = raw if (raw / name).exists() else next((p.parent for p in sorted(raw.rglob(name))), None)
        if found is None:
            raise UserError(f"--raw {raw}: nothing named {name} below it")
        try:
            (root / within).symlink_to(found.resolve(), target_is_directory=True)
        except OSError:  # Windows lets few users make links
            shutil.copytree(found, root / within)

    return lay_out


LAY_OUT: dict[str, Callable[[Path, Path], None]] = {
    "mnist": _lay_out_idx("MNIST"),
    "fashion-mnist": _lay_out_idx("FashionMNIST"),
    "cifar10": _lay_out_folder("data_batch_1", "cifar-10-batches-py"),
    "pets": _lay_out_folder("annotations", "oxford-iiit-pet"),
}
