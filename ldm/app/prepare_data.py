"""`scripts/prepare_data.py`: pictures of any kind to shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.core.files import recover_folder
from ldm.data.classic import open_classic
from ldm.data.names import BUILTIN, CLASSIC
from ldm.data.prepare import Preparation, Report, prepare_sources
from ldm.data.record import Record
from ldm.data.shards import INDEX_NAME, Index
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.shards import open_indexed
from ldm.data.sources.source import Source

NAMED_LOSSES = 10


def main(options: argparse.Namespace) -> None:
    """Makes shards and index.json."""
    how = Preparation(
        size=options.size,
        val_every=options.val_every,
        shard_bytes=int(options.shard_size * 2**20),
        background=_colour(options.background),
    )
    recover_folder(options.out)
    if options.source in CLASSIC:
        _only(options, "captions")
        with open_classic(options.source, options.raw, options.cache) as data:
            _say(prepare_sources(data, options.out, how, _progress), options.out)
        return
    _only(options, "raw")
    _say(prepare_sources(_from_source(options), options.out, how, _progress), options.out)


def _from_source(options: argparse.Namespace) -> dict[str, Source]:
    """The source's records by split."""
    folder = BUILTIN.get(options.source, Path(options.source))
    if not folder.is_dir():
        raise UserError(f"{options.source}: neither a folder nor one of {', '.join((*BUILTIN, *CLASSIC))}")
    if folder.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise UserError(f"--out {options.out} lies in the source folder; give another")
    if not (folder / INDEX_NAME).is_file():
        if options.captions is not None and not options.captions.is_file():
            raise UserError(f"--captions {options.captions}: no such file")
        return {"train": FolderSource(folder, options.captions)}
    _only(options, "captions")
    return {split: open_indexed(folder, split) for split in ("train", "val") if split in Index.read(folder).splits}


def _only(options: argparse.Namespace, *unused: str) -> None:
    for name in unused:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} does not go with {options.source}")


def _colour(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        red, green, blue = (int(level) for level in text.split(","))
    except ValueError:
        raise UserError(f"--background must be R,G,B, e.g. 255,255,255; got {text!r}") from None
    return red, green, blue


def _progress(records: Iterable[Record], count: int, name: str) -> Iterable[Record]:
    return tqdm(records, total=count, desc=name, unit=" pictures", mininterval=0.5)


def _say(report: Report, out: Path) -> None:
    if report.unreadable:
        print(f"{len(report.unreadable)} could not be read and were left out:")
        for key, reason in list(report.unreadable.items())[:NAMED_LOSSES]:
            print(f"  {key}: {reason}")
        if len(report.unreadable) > NAMED_LOSSES:
            print(f"  and {len(report.unreadable) - NAMED_LOSSES} more")
    total, silent = sum(report.counts.values()), report.without_caption
    if 0 < len(silent) < total:
        print(f"{len(silent)} of {total} pictures have no caption and are trained as unconditional, e.g. {', '.join(silent[:3])}")
    counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
    print(f"done: {counts} pictures in {out}; train on them with data.train={out}" + (f" data.val={out}" if "val" in report.counts else ""))
