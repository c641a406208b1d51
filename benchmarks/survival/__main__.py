"""What the toolkit survives: kills, full disks, damaged and hostile data, checkpoints, pictures and command lines.

    python benchmarks/survival --out benchmarks/survival.md

Every trial must end right (as if nothing had happened) or reported (refused or counted in so many words). Anything else is a fault: silent
damage, a traceback, a crash, a hang. It is printed, and the exit code is 1. `--part` runs some of it; small disks need root.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LDM_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from command_lines import command_lines
from home import Home
from interruptions import can_mount, full_disks, kills
from pictures import pictures
from records import records
from trial import GOOD, Row, judged

from checkpoints import checkpoints

PARTS = ("kills", "disks", "records", "checkpoints", "pictures", "lines")
HEAD = """# What it survives

`python benchmarks/survival` makes small models and mishandles them; {machine}, {date}. *Right*: all came out as if nothing had
happened, weights compared to the bit. *Reported*: refused in one line with exit code 2, or counted by name, as
[docs/data.md](../docs/data.md#what-cannot-be-read) says.

| | trials | right | reported | silent | traceback | crash | hang | minutes |
|---|---|---|---|---|---|---|---|---|
"""


def rows(home: Home, parts: tuple[str, ...], share: float) -> list[Row]:
    """The table's."""

    def few(number: int) -> int:
        return max(1, round(number * share))

    found = []
    if "kills" in parts:
        found.append(judged("`kill -9` at a change on the disk: training, preparing", kills(home, few(60)), 120))
    if "disks" in parts and can_mount(home):
        found.append(judged("training on a disk that gets full", full_disks(home, few(50)), 120))
    if "records" in parts:
        found.append(judged("flipped bits in a prepared set, bad records in shards", records(home, few(400), few(100)), 60))
    if "checkpoints" in parts:
        found.append(
            judged("damaged and forged checkpoints, flipped bits in a `.ckpt`", checkpoints(home, few(400), few(400), few(200)), 60)
        )
    if "pictures" in parts:
        found.append(judged("mangled pictures of every format", pictures(few(10_000)), 60))
    if "lines" in parts:
        found.append(judged("command lines with something odd in them", command_lines(home, few(1000)), 400))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/survival", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="of these only (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each part (default: 1)")
    parser.add_argument("--out", type=Path, help="file for the table (default: it is printed)")
    how = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Home(Path(folder)), tuple(how.part or PARTS), how.share)
    text = HEAD.format(machine=f"{os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}", date=time.strftime("%Y-%m-%d"))
    for row in found:
        counts = " | ".join(str(row.counts[name]) for name in ("right", "reported", "silent", "traceback", "crash", "hang"))
        text += f"| {row.what} | {sum(row.counts.values())} | {counts} | {row.seconds / 60:.0f} |\n"
    print(text)
    for row in found:
        for name, outcome, seen in row.bad:
            print(f"{row.what}: {name}: {outcome}: {seen}")
    if how.out:
        how.out.write_text(text)
    return int(any(count for row in found for name, count in row.counts.items() if name not in GOOD))


if __name__ == "__main__":
    raise SystemExit(main())
