"""A data set as training sees it: pictures of one size by number, and an account of what could not be read."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from webdataset.shardlists import expand_urls

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Sample
from ldm.data.config import DataConfig
from ldm.data.images import decode_array, decode_map, decode_mask, decode_picture, picture_tensor
from ldm.data.record import Record
from ldm.data.remote import fetch_shards, is_remote
from ldm.data.shards import INDEX_NAME
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.shards import open_indexed, open_tars
from ldm.data.sources.source import Source
from ldm.data.transforms import augmented, fitted, fitted_map

BUILTIN = {"emoji-128": Path(__file__).with_name("builtin") / "emoji-128"}
Split = Literal["train", "val"]


class LossReport:
    """Records that could not be read, by key, with the reason."""

    def __init__(self, total: int, most: float) -> None:
        self.total, self.most = total, most
        self.lost: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, key: str, reason: str) -> None:
        """One more.

        Raises:
            UserError: more than the stated share is lost.
        """
        with self._lock:
            self.lost[key] = reason
        if len(self.lost) > self.most * self.total:
            raise UserError(
                f"{len(self.lost)} of {self.total} records cannot be read, more than data.max_lost={self.most} allows; "
                f"the last: {key}: {reason}. Mend them, or raise data.max_lost."
            )

    def line(self) -> str:
        """All of them in one line; empty if there are none."""
        if not self.lost:
            return ""
        shown = "; ".join(f"{key} ({reason})" for key, reason in list(self.lost.items())[:10])
        more = f"; and {len(self.lost) - 10} more" if len(self.lost) > 10 else ""
        return f"{len(self.lost)} of {self.total} records could not be read: {shown}{more}"


class PictureSet:
    """Samples by number. Sample i of an epoch depends on (seed, epoch, i) only; held-out samples never change.

    A record that cannot be read is counted, and the next readable one stands in for it.
    """

    def __init__(self, source: Source, config: DataConfig, split: Split, seed: int) -> None:
        self.source, self.config, self.split, self.seed = source, config, split, seed
        self.name, self.digest = source.name, source.digest
        self.label_names, self.map_names = source.label_names, source.map_names
        self.has_captions, self.has_masks, self.has_maps = source.has_captions, source.has_masks, source.has_maps
        how = {name: value for name, value in asdict(config).items() if name in ("size", "channels", "background", "augment")}
        self.transform_digest = hashlib.sha256(repr((sorted(how.items()), split, seed)).encode()).hexdigest()
        self.losses = LossReport(len(source) + len(source.lost), config.max_lost)
        for key, reason in source.lost.items():
            self.losses.add(key, reason)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, epoch: int) -> Sample:
        """Sample `index` as epoch `epoch` sees it.

        Raises:
            UserError: more records are lost than the config allows.
        """
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self._decoded(self.source.record(place), epoch, place)
            except UserError as error:
                self.losses.add(self.source.key(place), str(error))
        raise UserError(f"{self.name}: no record can be read")

    def _decoded(self, record: Record, epoch: int, index: int) -> Sample:
        size, channels = self.config.size, self.config.channels
        if record.suffix == "npy":
            image = decode_array(record.image, record.key)
            if len(image) != channels:
                raise UserError(f"{record.key}: has {len(image)} channels, data.channels is {channels}")
        else:
            image = picture_tensor(decode_picture(record.image, record.key), channels, self.config.background, record.key)
        image = fitted(image, size)
        mask = indices = None
        unknown = len(self.map_names)
        if self.has_masks:
            mask = torch.zeros(1, size, size)
            if record.mask is not None:
                mask = (fitted(decode_mask(record.mask, record.key), size) >= 0.5).float()
        if self.has_maps:
            indices = torch.full((size, size), unknown, dtype=torch.int64)
            if record.map is not None:
                indices = fitted_map(decode_map(record.map, record.key), size)
        caption = record.captions[0] if record.captions else ""
        if self.split == "train":
            draw = generator(self.seed, "augment", epoch, index)
            fill = [level / 127.5 - 1 for level in self.config.background]
            fill = fill if channels == 3 else [sum(fill) / 3] * channels
            image, mask, indices = augmented(image, mask, indices, self.config.augment, fill, unknown, draw)
            if record.captions:
                caption = record.captions[int(torch.randint(len(record.captions), (), generator=draw))]
        return Sample(key=record.key, image=image, caption=caption, label=self._label(record), mask=mask, map=indices)

    def _label(self, record: Record) -> int:
        if record.label is None:
            return -1
        if isinstance(record.label, int):
            return record.label
        if record.label not in self.label_names:
            raise UserError(f"{record.key}: label {record.label!r} is not among the set's labels")
        return self.label_names.index(record.label)


def open_dataset(config: DataConfig, split: Split, seed: int) -> PictureSet:
    """The training or the held-out pictures of a config.

    Raises:
        UserError: nothing there, nothing readable, or a remote place that the config does not allow.
    """
    place = config.train if split == "train" else config.val
    if place is None:
        raise UserError("data.val is null: there are no held-out pictures")
    return PictureSet(open_source(place, split, split == "val" and place == config.train, config.allow_remote), config, split, seed)


def open_source(place: str, split: Split = "train", is_shared: bool = False, allow_remote: bool = False) -> Source:
    """Records of a built-in name, folder, shards or remote shards; see DataConfig.train.

    Args:
        place: as a config names it.
        split: which part of a prepared folder.
        is_shared: whether training uses the same place, so that only a stored split can be held out.
        allow_remote: whether URLs and commands are allowed.
    """
    if place in BUILTIN:
        return open_indexed(BUILTIN[place], split)
    if is_remote(place):
        if not allow_remote:
            raise UserError(f"{place}: URLs and commands need data.allow_remote=true")
        return open_tars(fetch_shards(place))
    folder = Path(place).expanduser()
    if (folder / INDEX_NAME).is_file():
        return open_indexed(folder, split if is_shared or split == "train" else _only_split(folder))
    if is_shared:
        raise UserError(
            f"{place} has no held-out split; set data.val=null, name another folder, or run scripts/prepare_data.py --val-every 20"
        )
    if folder.is_dir():
        tars = sorted(folder.glob("*.tar"))
        return open_tars(tars) if tars else FolderSource(folder)
    if place.endswith(".tar"):
        return open_tars([Path(path) for path in expand_urls(place)])
    raise UserError(f"data {place!r}: no such folder or shard; allowed: {', '.join(BUILTIN)}, a folder, .tar shards, or a URL")


def _only_split(folder: Path) -> str:
    """A prepared folder named as held-out set: its val split if it has one, else all of it."""
    from ldm.data.shards import Index

    return "val" if "val" in Index.read(folder).splits else "train"
