"""Parts of `data.py`: what encoding latents, resuming a stream and reading a set at a URL cost. `data.py` says how they are run."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from ldm.app.frozen_first_stage import FirstStageSource, latent_cache
from ldm.core.distributed import World
from ldm.data import stream_reader
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.data.order import GlobalOrder
from ldm.data.record import Record
from ldm.data.set_index import Index
from ldm.data.shards import write_shards

ROOT = Path(__file__).parents[1]
LATENCY = 0.02  # seconds that the server takes for a request


def encoding(pictures: int) -> None:
    """The latent cache of built-in pictures by one process and by two, in turn; then with half of its files gone; then opened and read."""
    print(f"latents of {pictures} pictures at 64x64, checkpoints/emoji, a thread a process; seconds of the clock, and of the processor")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for turn in range(2):
            for processes in (1, 2):
                clock, busy = encoded(folder / f"{turn}-{processes}", pictures, processes)
                print(f"{f'{processes} processes':32}{clock:10.1f}{busy:10.1f}{os.getloadavg()[0]:10.1f}", flush=True)
        one, two = ({path.name: path.read_bytes() for path in (folder / f"0-{n}").iterdir()} for n in (1, 2))
        files = sorted((folder / "0-1").glob("*.arrays"))
        for file in files[: len(files) // 2]:
            file.unlink()
        clock, busy = encoded(folder / "0-1", pictures, 1)
        print(f"{f'{len(files) // 2} of {len(files)} files gone':32}{clock:10.1f}{busy:10.1f}{os.getloadavg()[0]:10.1f}")
        clock, busy = encoded(folder / "0-1", pictures, 1)
        print(f"{'all there':32}{clock:10.1f}{busy:10.1f}{os.getloadavg()[0]:10.1f}")
        print(f"the same bytes by one and two processes: {one == two}; {sum(map(len, one.values())) / 2**20:.1f} MiB")
        cache = made(folder / "0-2", pictures, World(0, 1, torch.device("cpu")))
        order, started = GlobalOrder(pictures, 1, 0), time.perf_counter()
        for step in range(1, 5001):
            cache.item(*order.indices(step)[0])
        print(f"read at random places: {5000 / (time.perf_counter() - started):,.0f} a second")


def encoded(folder: Path, pictures: int, processes: int) -> tuple[float, float]:
    """Seconds, the start of Python and torch among them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [__file__, str(folder), str(pictures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, busy


def made(folder: Path, pictures: int, world: World):  # noqa: ANN201 - the cache, or None
    data = DataConfig(train="emoji-128", size=64, cache_views=-(-pictures // 1397))
    first_stage = FirstStageSource(checkpoint=str(ROOT / "checkpoints/emoji")).open(3)[0]
    return latent_cache(folder, open_dataset(data, "train", 0), first_stage, data, world, keeps_pixels=False)


def resuming() -> None:
    """A stream of 400 records in 8 shards, stopped after step 1,000 of batch 16: what is read before the next step's batch is there."""
    with tempfile.TemporaryDirectory() as place:
        for shard in range(8):
            write_shards(Path(place), f"part{shard}", (record(50 * shard + number, 16) for number in range(50)))
        config = DataConfig(train=f"file://{place}/part{{0..7}}-000000.tar", size=16, allow_remote=True)
        data = open_dataset(config, "train", 0)
        whole = list(islice(data.batches(16, 1, (0, 16)), 1001))[-1][0]
        stopped = open_dataset(config, "train", 0)
        list(islice(stopped.batches(16, 1, (0, 16)), 1000))
        resumed, sizes = open_dataset(config, "train", 0), []
        resumed.places.update(stopped.places)
        fetched = stream_reader.fetched

        def counted(url: str) -> object:
            source = fetched(url)
            sizes.append(len(source))
            return source

        with patch.object(stream_reader, "fetched", counted):
            started = time.perf_counter()
            batch = next(resumed.batches(16, 1001, (0, 16)))[0]
        print(
            f"stream resumed at step 1,001: {time.perf_counter() - started:.2f} s, {len(sizes)} shards of {sum(sizes)} records fetched; "
            f"the batch is the uninterrupted run's: {batch.names == whole.names and torch.equal(batch.images, whole.images)}"
        )


def reading_remotely(records: int) -> None:
    """A set on a server that takes 20 ms for a request: in order and at random places, then again from what was kept."""
    with tempfile.TemporaryDirectory() as place, patch.dict(os.environ, {"LDM_CACHE": f"{place}/cache"}):
        folder = Path(place) / "set"
        folder.mkdir()
        Index(splits={"train": write_shards(folder, "train", (record(number, 64) for number in range(records)))}).write(folder)
        requests: list[str] = []
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, requests)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            print(f"{records} records of 64x64 pixels at a URL{'':22}{'seconds':>10}{'requests':>10}{'records/s':>12}")
            rows = (("open", [], 20.0), ("in order, nothing kept", range(records), 0.0), ("at random places, once each", None, 20.0))
            for name, numbers, kept in (*rows, ("again, from what was kept", None, 20.0)):
                requests.clear()
                started = time.perf_counter()
                data = open_dataset(DataConfig(train=url, size=64, allow_remote=True, remote_cache=kept), "train", 0)
                assert isinstance(data, IndexedDataset)
                order = GlobalOrder(records, records, 0)
                wanted = [index for index, _ in order.indices(1)] if numbers is None else list(numbers)
                for index in wanted:
                    data.source.record(index)
                seconds = time.perf_counter() - started
                rate = f"{len(wanted) / seconds:,.0f}" if wanted else "-"
                print(f"{name:50}{seconds:14.2f}{len(requests):10}{rate:>12}", flush=True)
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, folder: Path, requests: list[str], *given: object) -> None:
        self.folder, self.requests = folder, requests
        super().__init__(*given)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        self.requests.append(self.path)
        time.sleep(LATENCY)
        content = (self.folder / self.path.strip("/")).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        content = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def record(number: int, side: int) -> Record:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return Record(key=f"{number:06d}", suffix="png", image=buffer.getvalue(), captions=(f"picture {number}",))


if __name__ == "__main__":  # one of the processes of `encoded`
    world = World.join("cpu")
    made(Path(sys.argv[1]), int(sys.argv[2]), world)
    world.leave()
