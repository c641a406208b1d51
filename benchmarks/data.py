"""What data of any size costs before the first step: opening, order, preparing, encoding latents, resuming a stream, reading a URL.

    python benchmarks/data.py open      # a set of 10 million records; needs 1.5 GB of disk, on which the shards are holes
    python benchmarks/data.py order
    python benchmarks/data.py prepare   # photos of 2 megapixels, one process against two, in turn
    python benchmarks/data.py latents   # the latent cache, one process against two, in turn
    python benchmarks/data.py stream    # remote shards, resumed
    python benchmarks/data.py remote    # a prepared set at a URL

The synthetic set has shards of the length that their records would have, with holes for contents, and true indices, which are opened by the
code that opens any set. Each number of memory is of a process of its own: what the system counts as private to it (USS), as a whole and
above what it had after loading the code. Without an argument all parts run.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
import webdataset
from data_reading import encoding, reading_remotely, resuming
from PIL import Image

from ldm.data.config import DataConfig
from ldm.data.facts import CAPTIONS, LABELS, PIXELS
from ldm.data.open import open_dataset
from ldm.data.order import GlobalOrder
from ldm.data.set_index import Index, IndexFile, ShardInfo, SplitFacts, SplitInfo
from ldm.data.shard_index import ShardIndex

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
A_SHARD = 20_000  # records, each of which has
IMAGE, TEXT = 11_000, 140  # bytes, in a tar of blocks of 512
MEGABYTE = 1 << 20


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description="What data of any size costs before the first step.")
    parser.add_argument("part", nargs="?", choices=["open", "order", "prepare", "latents", "stream", "remote"], help="default: all")
    parser.add_argument("--records", type=int, default=10_000_000, help="of the synthetic set (default: 10,000,000)")
    parser.add_argument("--photos", type=int, default=300, help="that are prepared (default: 300)")
    parser.add_argument("--pairs", type=int, default=3, help="of one process and two (default: 3)")
    options = parser.parse_args()
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}", flush=True)
    if options.part in (None, "open"):
        opening(options.records)
    if options.part in (None, "order"):
        ordering(options.records)
    if options.part in (None, "prepare"):
        preparing(options.photos, options.pairs)
    if options.part in (None, "latents"):
        encoding(1397)
    if options.part in (None, "stream"):
        resuming()
    if options.part in (None, "remote"):
        reading_remotely(2000)


def machine() -> str:
    """What numbers were measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "CPU")
    memory = psutil.virtual_memory().total / 2**30
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, webdataset {webdataset.__version__}"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB; {versions}"


def apart(function: Callable[..., T], *arguments: object) -> T:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def private() -> int:
    """Bytes that only this process has."""
    return int(psutil.Process().memory_full_info().uss)


# ---- opening


def opening(records: int) -> None:
    """Opening, and 1,000 records at random places; by two processes, to see what they share."""
    with tempfile.TemporaryDirectory() as folder:
        shards = synthetic(Path(folder), records)
        size = (Path(folder) / "index.json").stat().st_size
        indices = sum(path.stat().st_size for path in Path(folder).glob("*.index"))
        print(f"{records:,} records in {shards} shards: index.json {size / 1e6:.2f} MB, indices {indices / 1e6:.0f} MB")
        print(f"{'':26}{'seconds':>10}{'USS, MiB':>12}{'above code':>12}")
        for name, measure in (("open", opened), ("open, then read 1,000", opened_and_read), ("webdataset, one pass ready", streamed)):
            seconds, whole, above = apart(measure, folder)
            print(f"{name:26}{seconds:10.2f}{whole / MEGABYTE:12.0f}{above / MEGABYTE:12.1f}", flush=True)


def synthetic(folder: Path, records: int) -> int:
    """A prepared set without contents; returns the number of shards."""
    shards = []
    image, text = (512 + -(-size // 512) * 512 for size in (IMAGE, TEXT))
    for start in range(0, records, A_SHARD):
        count = min(A_SHARD, records - start)
        index = ShardIndex.encode(
            (
                f"photos_{start + number:09d}",
                [("jpg", place + 512, IMAGE, f"{number + 1:016x}"), ("json", place + image + 512, TEXT, f"{number + 2:016x}")],
            )
            for number, place in enumerate(range(0, count * (image + text), image + text))
        )
        name = f"train-{len(shards):06d}"
        with open(folder / f"{name}.tar", "wb") as file:
            file.truncate(count * (image + text) + 1024)
        (folder / f"{name}.index").write_bytes(index)
        beside = IndexFile(f"{name}.index", len(index), sha256(index).hexdigest())
        size = (folder / f"{name}.tar").stat().st_size
        shards.append(ShardInfo(name=f"{name}.tar", bytes=size, sha256="0" * 64, count=count, index=beside))
    facts = SplitFacts(digest="0" * 64, has=frozenset((PIXELS, CAPTIONS, LABELS)), labels={}, attributes={})
    Index(splits={"train": SplitInfo(shards=tuple(shards), facts=facts)}, label_names=("cat", "dog")).write(folder)
    return len(shards)


def opened(folder: str, reads: int = 0) -> tuple[float, int, int]:
    """Seconds; private bytes as a whole, and above those after loading the code."""
    before, started = private(), time.perf_counter()
    data = open_dataset(DataConfig(train=folder, size=64), "train", 0)
    assert data.count and data.digest
    order = GlobalOrder(data.count, 1, seed=0)
    source = data.source  # type: ignore[attr-defined]
    for step in range(1, reads + 1):
        ((index, _),) = order.indices(step)
        key = source.key(index)  # its index is read, and compared; of the contents there are only holes
        assert int(key.removeprefix("photos_")) == index
    return time.perf_counter() - started, private(), private() - before


def opened_and_read(folder: str) -> tuple[float, int, int]:
    """The same, with 1,000 records found at random places."""
    return opened(folder, 1000)


def streamed(folder: str) -> tuple[float, int, int]:
    """webdataset knows neither how many records there are nor where one is: it begins to read shards in an order."""
    before, started = private(), time.perf_counter()
    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000)
    assert stream is not None
    return time.perf_counter() - started, private(), private() - before


# ---- order


def ordering(records: int) -> None:
    """A step of 256 samples at a random place, and the list of all that earlier releases kept."""
    print(f"order of {records:,} records{'':10}{'ms a step of 256':>18}{'memory, MB':>12}")
    order = GlobalOrder(records, 256, seed=0)
    steps = np.random.default_rng(0).integers(1, 10 * records // 256, 200).tolist()
    order.indices(1)
    times = []
    for step in steps:
        started = time.perf_counter()
        order.indices(step)
        times.append(time.perf_counter() - started)
    tracemalloc.start()
    order.indices(steps[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{'a step, computed':38}{statistics.median(times) * 1e3:18.2f}{peak / 1e6:12.2f}", flush=True)
    seconds, taken = apart(listed, records)
    print(f"{'an epoch, listed, as before':38}{seconds * 1e3:11.0f} an epoch{taken / 1e6:10.0f}", flush=True)


def listed(records: int) -> tuple[float, int]:
    """Seconds and bytes of an epoch as a list, as earlier releases had it."""
    before, started = private(), time.perf_counter()
    order = torch.randperm(records).tolist()
    seconds = time.perf_counter() - started
    return seconds, private() - before + 0 * len(order)


# ---- preparing


def preparing(photos: int, pairs: int) -> None:
    """`scripts/prepare_data.py` with one process and with two, in turn, so that what slows the machine down slows both.

    Where others work on the cores too, the time of the clock says little: seconds of the processor, of all processes together, say by how
    much two do more work than one.
    """
    print(f"preparing {photos} JPEG photos of 2 megapixels; seconds of the clock, and of the processor")
    print(f"{'':14}{'1 process':>20}{'2 processes':>20}{'clock, 1 / 2':>16}{'processor, 1 / 2':>18}{'load':>8}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        for number, content in enumerate(drawn(photos)):
            (Path(folder) / f"photos/{number:06d}.jpg").write_bytes(content)
        for name, flags in (("as they are", ()), ("--size 256", ("--size", "256"))):
            clocks, processors = [], []
            for _ in range(pairs):
                (one, busy), (two, busy_two) = (prepared(Path(folder), "--workers", workers, *flags) for workers in ("1", "2"))
                clocks.append(one / two)
                processors.append(busy / busy_two)
                row = f"{one:12.1f} {busy:6.1f}{two:13.1f} {busy_two:6.1f}{clocks[-1]:16.2f}{processors[-1]:18.2f}"
                print(f"{name:14} {row}{os.getloadavg()[0]:8.1f}", flush=True)
            print(f"{name:14} {'median':>39}{statistics.median(clocks):16.2f}{statistics.median(processors):18.2f}", flush=True)


def prepared(folder: Path, *flags: str) -> tuple[float, float]:
    """Seconds of the command, by the clock and by the processor."""
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), str(folder / "photos"), "--out", str(folder / "out"), *flags]
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, busy


def drawn(photos: int) -> Iterator[bytes]:
    """Smooth noise of many scales, 1632x1224, as large as photos are at quality 90."""
    draw = np.random.default_rng(0)
    for _ in range(photos):
        levels = np.zeros((1224, 1632, 3), np.float32)
        for scale in (4, 16, 64, 256):
            small = draw.normal(0, 1, (1224 // scale + 1, 1632 // scale + 1, 3)) * scale**0.6
            small = ((small - small.min()) / np.ptp(small) * 255).astype(np.uint8)
            levels += np.asarray(Image.fromarray(small).resize((1632, 1224), Image.Resampling.BICUBIC))
        buffer = io.BytesIO()
        Image.fromarray((levels / 4).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


if __name__ == "__main__":
    main()
