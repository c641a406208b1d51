"""Prepared sets at a URL: read by ranges, kept on the disk up to a bound, from a server that fails in every way it can."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data import attempts
from ldm.data.config import DataConfig
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.open import open_dataset
from ldm.data.prepare import Preparation, prepare_sources
from ldm.data.sources import remote
from ldm.data.sources.folder import FolderSource

COUNT = 24


@dataclass
class Server:
    """A server of a folder. faults: what happens at the next requests for shards, in order; then all is well."""

    folder: Path
    address: str = ""
    faults: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def requests(self) -> list[str]:
        """Those for shards since the last call."""
        found, self.asked = [path for path in self.asked if path.endswith(".tar")], []
        return found


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *given: object) -> None:
        self.of = server
        super().__init__(*given)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.of.asked.append(self.path)
        path = self.of.folder / self.path.strip("/")
        fault = self.of.faults.pop(0) if self.of.faults and self.path.endswith(".tar") else ""
        if fault == "503" or not path.is_file():
            self.send_error(503 if fault else 404)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "whole":
            content = content[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if asked and fault != "whole" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "stalls":
            time.sleep(1.5)
        if fault == "other":
            content = bytes(len(content))
        try:
            self.wfile.write(content[: len(content) // 2] if fault == "breaks off" else content)
        except OSError:
            pass  # nobody waits any more


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A set with captions, maps and masks in several shards, and a split that is held out."""
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    for name in ("masks", "maps"):
        (tmp_path / "in" / name).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(draw.integers(0, 256, (150, 150, 3), dtype=np.uint8)).save(tmp_path / f"in/{i:02d}.png")
        Image.fromarray(draw.integers(0, 2, (150, 150), dtype=np.uint8) * 255).save(tmp_path / f"in/masks/{i:02d}.png")
        Image.fromarray(draw.integers(0, 3, (150, 150), dtype=np.uint8)).save(tmp_path / f"in/maps/{i:02d}.png")
        (tmp_path / f"in/{i:02d}.txt").write_text(f"picture {i}")
    how = Preparation(val_every=6, shard_bytes=2**20)
    prepare_sources({"train": FolderSource(tmp_path / "in")}, tmp_path / "set", how, lambda pages, total, split: pages)
    assert len(list((tmp_path / "set").glob("train-*.tar"))) >= 2
    server = Server(tmp_path / "set")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, server)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        server.address = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()


def opened(place: object, split: str = "train", **changes: object) -> IndexedDataset:
    values = {"train": str(place), "val": str(place), "size": 32, "allow_remote": True, "max_lost": 0.0} | changes
    data = open_dataset(DataConfig(**values), split, 0)  # type: ignore[arg-type]
    assert isinstance(data, IndexedDataset)
    return data


def same(one: ImageDataset, other: ImageDataset) -> bool:
    for a, b in zip(one.some(None), other.some(None), strict=True):
        assert a.mask is not None and b.mask is not None and a.map is not None and b.map is not None
        assert (a.name, a.captions) == (b.name, b.captions)
        assert torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask) and torch.equal(a.map, b.map)
    return True


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_set_at_a_url_is_the_set(served: Server, split: str) -> None:
    there, here = opened(served.address, split), opened(served.folder, split)
    assert (len(there), there.digest, there.facts.map_names) == (len(here), here.digest, here.facts.map_names)
    assert served.requests() == []  # no record is read to open it
    assert same(there, here)


def test_it_is_read_in_the_same_order_by_worker_processes(served: Server) -> None:
    there, here = opened(served.address, workers=2), opened(served.folder)
    for (one, _), (other, _) in islice(zip(there.batches(5, 3, (1, 4)), here.batches(5, 3, (1, 4)), strict=False), 4):
        assert one.names == other.names and torch.equal(one.images, other.images)


def test_its_latents_are_cached_as_of_a_local_one(served: Server, tmp_path: Path) -> None:
    how = {"first_stage_digest": "a", "views": 1, "keeps_pixels": True, "batch_size": 7, "processes": World(0, 1, torch.device("cpu"))}
    for name, place in (("there", served.address), ("here", served.folder)):
        LatentCache.open_or_build(tmp_path / name, opened(place), lambda images: (images, images), **how)  # type: ignore[arg-type]
    assert [path.read_bytes() for path in sorted((tmp_path / "there").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "here").iterdir())
    ]


def test_what_was_read_is_kept_and_what_is_read_in_order_comes_in_few_requests(served: Server) -> None:
    data = opened(served.address)
    list(data.some(None))
    assert 0 < len(served.requests()) < len(data) / 2
    assert same(opened(served.address), opened(served.folder)) and served.requests() == []


def test_no_more_is_kept_than_may_be(served: Server, tmp_path: Path) -> None:
    most = 1 << 20
    data = opened(served.address, remote_cache=most / 2**30)
    for index in (7, 1, 12, 4, 18, 9, 0, 15):
        data.sample(index, 0)
    assert 0 < remote._taken(tmp_path / "cache/remote") <= most + 65536
    assert same(data, opened(served.folder)) and remote._taken(tmp_path / "cache/remote") <= most + 65536
    (served.folder / "index.json").write_text((served.folder / "index.json").read_text() + " ")  # another set, to which the first gives way
    opened(served.address, remote_cache=most / 2**30)
    assert len(list((tmp_path / "cache/remote").iterdir())) == 1


def test_what_is_kept_and_was_damaged_is_fetched_again(served: Server, tmp_path: Path) -> None:
    list(opened(served.address).some(None))
    for path in (tmp_path / "cache").rglob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"picture", b"picturf"))
    assert same(opened(served.address), opened(served.folder))


@pytest.mark.parametrize("fault", ["503", "breaks off", "stalls", "whole"])
def test_a_server_that_fails_is_asked_again(fault: str, served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.faults = [fault, fault]
    assert same(opened(served.address), opened(served.folder))
    said = capsys.readouterr().out
    assert said.count("; once more in 0 s") == 2
    assert {"503": "503", "whole": "does the server give ranges?"}.get(fault, "") in said


@pytest.mark.parametrize("fault, said", [("503", "cannot be fetched, 4 times"), ("other", "is not what was written there")])
def test_a_record_that_cannot_be_had_is_counted_and_another_stands_in(fault: str, said: str, served: Server) -> None:
    data = opened(served.address, max_lost=0.1)
    served.faults = [fault] * 4 if fault == "503" else [fault]
    assert data.sample(3, 0).name == opened(served.folder).sample(4, 0).name
    ((_, reason),) = data.unreadable.records.items()
    assert said in reason
    assert data.sample(3, 1).name == opened(served.folder).sample(3, 1).name  # later it is there


def test_a_url_without_a_set_is_refused(served: Server) -> None:
    with pytest.raises(UserError, match=r"none/index\.json: cannot be fetched, 4 times"):
        opened(f"{served.address}/none")
    with pytest.raises(UserError, match="allow_remote"):
        opened(served.address, allow_remote=False)
