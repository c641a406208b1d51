"""The pictures that a config names."""

from __future__ import annotations

import re
from pathlib import Path

from webdataset import SimpleShardList

from ldm.core.errors import UserError
from ldm.core.files import standing_folder
from ldm.data.config import DataConfig
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.names import BUILTIN
from ldm.data.sample_transform import Split
from ldm.data.set_index import Index
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.layout import layout_of
from ldm.data.sources.shards import open_folder_of_tars, open_indexed, open_remote, open_tars
from ldm.data.sources.source import Source
from ldm.data.stream import StreamedDataset, is_remote


def open_dataset(config: DataConfig, split: Split, seed: int) -> ImageDataset:
    """The training or the held-out pictures of a config.

    Raises:
        UserError: nothing there, nothing readable, or a remote place that the config does not allow.
    """
    place = config.train if split == "train" else config.val
    if place is None:
        raise UserError("data.val is null: there are no held-out pictures")
    is_shared = split == "val" and is_same_place(place, config.train)
    if not is_remote(place):
        return IndexedDataset(open_source(place, split, is_shared), config, split, seed)
    if not config.allow_remote:
        raise UserError(f"{place}: URLs and commands need data.allow_remote=true")
    if config.buckets is not None:
        raise UserError(
            f"{place}: data.buckets needs the size of every picture before the first step, which is not known of shards at a URL: fetch "
            "the shards and train on the folder, or set data.buckets=null"
        )
    if is_remote_set(place):
        return IndexedDataset(open_remote(place, split, config.remote_cache), config, split, seed)
    if is_shared:
        raise UserError(f"{place}: remote shards have no held-out split; name others in data.val, or set it to null")
    return StreamedDataset(place, config, split, seed)


def open_source(place: str, split: Split = "train", is_shared: bool = False) -> Source:
    """Records of a built-in name, a folder, or local shards; see DataConfig.train.

    Args:
        place: as a config names it.
        split: which part of a prepared folder.
        is_shared: whether training uses the same place, so that only a stored split can be held out.
    """
    if place in BUILTIN:
        return open_indexed(BUILTIN[place], split)
    folder = standing_folder(Path(place).expanduser())
    if Index.is_in(folder):
        return open_indexed(folder, split if is_shared or split == "train" else _only_split(folder))
    tars = open_folder_of_tars(folder) if folder.is_dir() else None
    if folder.is_dir() and tars is None:
        return FolderSource(folder, split if is_shared or split == "train" else _held_out_part(folder))
    if is_shared and (tars is not None or place.endswith(".tar")):
        raise UserError(
            f"{place} has no held-out split; set data.val=null, name another folder, or run scripts/prepare_data.py --val-every 20"
        )
    if tars is not None:
        return tars
    if place.endswith(".tar"):
        return open_tars([Path(path) for path in SimpleShardList(place).urls])
    raise UserError(f"data {place!r}: no such folder or shard; allowed: {', '.join(BUILTIN)}, a folder, .tar shards, or a URL")


def is_remote_set(place: str) -> bool:
    """Whether a place is the URL of a folder, which has an index, and not of shards or a command that gives one."""
    return is_remote(place) and not place.startswith("pipe:") and not re.search(r"\.tar\b|[{?]", place)


def is_same_place(one: str, other: str) -> bool:
    """Whether two places of a config are one, however a local path is spelled; an empty name is no place."""
    if any(not place or place in BUILTIN or is_remote(place) for place in (one, other)):
        return one == other
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def has_held_out_split(place: str) -> bool:
    """Whether `data.val` may name the same place as `data.train`; a place that is not there has none."""
    if place in BUILTIN:
        return "val" in Index.read(BUILTIN[place]).splits
    if is_remote(place):
        return False
    folder = standing_folder(Path(place).expanduser())
    if Index.is_in(folder):
        return _only_split(folder) == "val"
    return folder.is_dir() and _held_out_part(folder) == "val"


def _held_out_part(folder: Path) -> Split:
    """A folder of pictures named as held-out set: its held-out split if it has one, else all of it."""
    return "val" if "val" in layout_of(folder).pictures else "train"


def _only_split(folder: Path) -> Split:
    """A prepared folder named as held-out set: its val split if it has one, else all of it."""
    return "val" if "val" in Index.read(folder).splits else "train"
