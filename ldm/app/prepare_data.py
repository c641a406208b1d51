"""`scripts/prepare_data.py`: pictures of any kind to shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ldm.app.commands import CALLER
from ldm.app.train_ldm import TrainLDM
from ldm.config.loader import load
from ldm.core.errors import UserError
from ldm.core.files import recover_folder
from ldm.data.classic import open_classic
from ldm.data.emoji.source import open_emoji_styles
from ldm.data.facts import CAPTIONS
from ldm.data.names import BUILTIN, CLASSIC, STYLES
from ldm.data.parts import Pages
from ldm.data.prepare import Preparation, check_sources, prepare_part, prepare_sources
from ldm.data.report import PAGE, Report
from ldm.data.set_index import Index
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.shards import open_folder_of_tars, open_indexed, open_tars
from ldm.data.sources.source import Source
from ldm.data.text import check_encoding
from ldm.data.verify import damage, shards_of


def main(options: argparse.Namespace) -> None:
    """Makes shards and index.json, or only the report; or reads what is there."""
    if options.verify:
        _verify(options.source)
        return
    how = Preparation(
        size=options.size,
        val_every=options.val_every,
        shard_bytes=int(options.shard_size * 2**20),
        background=_colour(options.background),
        levels=options.levels and tuple(options.levels),
        all_pages=options.pages == "all",
        workers=options.workers,
    )
    if options.out is None and not options.check:
        raise UserError("--out DIR says where to write; --check writes a report only")
    options.out = options.out or Path("outputs") / f"check-{Path(options.source).resolve().name}"
    if not options.check:
        recover_folder(options.out)
    if options.source == STYLES:
        _only(options, "captions", "encoding", "raw")
        _make(open_emoji_styles(options.cache), options, how)
        return
    if options.source in CLASSIC:
        _only(options, "captions", "encoding")
        with open_classic(options.source, options.raw, options.cache) as data:
            _make(data, options, how)
        return
    _only(options, "raw")
    _make(_from_source(options), options, how)


def _make(sources: dict[str, Source], options: argparse.Namespace, how: Preparation) -> None:
    if options.config is not None:
        config = load(options.config, TrainLDM)
        for name, part in config.conditioning.items():
            if part.reads == CAPTIONS:
                built = part.build(context_width=config.denoiser.context_width, latent_channels=1)
                for source in sources.values():
                    remarks = (replace(finding, what=f"{name}: {finding.what}") for finding in built.remarks(source.captions()))
                    source.findings = (*source.findings, *remarks)
    if options.check and options.part is not None:
        raise UserError("--check looks at all pictures; leave --part out")
    if options.check:
        _say(check_sources(sources, options.out, how, _progress), options.out)
        return
    if options.part is not None:
        number, count = _part(options.part)
        prepare_part(sources, options.out, how, (number, count), _progress)
        print(f"part {number} of {count} is done; when all are, the same command without --part makes {options.out} of them")
        return
    report = prepare_sources(sources, options.out, how, _progress)
    _say(report, options.out)
    counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
    val = f" data.val={options.out}" if "val" in report.counts else ""
    print(f"done: {counts} pictures in {options.out}; train on them with data.train={options.out}{val}")


def _from_source(options: argparse.Namespace) -> dict[str, Source]:
    """The source's records by split."""
    folder = BUILTIN.get(options.source, Path(options.source).expanduser())
    if folder.suffix.lower() == ".tar" and folder.is_file():
        _only(options, "captions", "encoding")
        return {"train": open_tars([folder], must_be_whole=False)}
    if not folder.is_dir():
        raise UserError(f"{options.source}: neither a folder, a .tar nor one of {', '.join((*BUILTIN, STYLES, *CLASSIC))}")
    if folder.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise UserError(f"--out {options.out} lies in the source folder; give another")
    if Index.is_in(folder):
        _only(options, "captions", "encoding")
        return {split: open_indexed(folder, split) for split in ("train", "val") if split in Index.read(folder).splits}
    tars = open_folder_of_tars(folder, must_be_whole=False)
    if tars is not None:
        _only(options, "captions", "encoding")
        return {"train": tars}
    if options.captions is not None and not options.captions.is_file():
        raise UserError(f"--captions {options.captions}: no such file")
    if options.encoding is not None:
        check_encoding(options.encoding)
    train = FolderSource(folder, table=options.captions, encoding=options.encoding)
    if "val" not in train.layout.pictures:
        return {"train": train}
    return {"train": train, "val": FolderSource(folder, "val", table=options.captions, encoding=options.encoding)}


def _verify(source: str) -> None:
    """Reads all of a prepared set.

    Raises:
        UserError: something is not what was written there.
    """
    folder = BUILTIN.get(source, Path(source).expanduser())
    if not Index.is_in(folder):
        raise UserError(f"--verify {source}: only a prepared folder has checksums to compare with; --check looks at any other")
    shards = shards_of(folder)
    found = [line for info in tqdm(shards, desc="reading", unit=" shards", mininterval=0.5) for line in damage(folder, info)]
    if found:
        shown = "; ".join(found[:10]) + (f"; and {len(found) - 10} more" if len(found) > 10 else "")
        raise UserError(f"{folder} is damaged in {len(found)} places: {shown}")
    print(f"{folder} is what was written there: {sum(info.count for info in shards)} records in {len(shards)} shards")


def _only(options: argparse.Namespace, *unused: str) -> None:
    for name in unused:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} does not go with {options.source}")


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part must be K/N, K from 1 to N, as in 3/8; got {text!r}")
    return int(number), int(count)


def _colour(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        red, green, blue = (int(level) for level in text.split(","))
    except ValueError:
        raise UserError(f"--background must be R,G,B, e.g. 255,255,255; got {text!r}") from None
    return red, green, blue


def _progress(records: Iterable[Pages], count: int, name: str) -> Iterable[Pages]:
    return tqdm(records, total=count, desc=name, unit=" pictures", mininterval=0.5)


def _say(report: Report, folder: Path) -> None:
    print(CALLER.worded("\n".join(report.lines())))
    print(f"report: {folder / PAGE}")
