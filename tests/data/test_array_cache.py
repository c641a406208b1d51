"""The cache of latents as several processes make it: what is written, what a kill leaves, what the others find."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.ownership import strangers
from ldm.data import array_cache
from ldm.data.array_shard import ArrayShard, Row, write_shard
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.loader import start_method
from ldm.data.open import open_dataset

T = TypeVar("T")

ALONE = World(0, 1, torch.device("cpu"))
COUNT = 22  # pictures, in shards of 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_cache, "FEWEST_ROWS", 4)
    monkeypatch.setattr(array_cache, "PATIENCE", 0.3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / f"in/{number:02d}.png")
    return tmp_path / "in"


class Threads:
    """One of several processes, as a thread."""

    def __init__(self, rank: int, size: int, shared: Sequence[list[object]], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._shared, self._barrier = rank, size, shared, barrier

    def each(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self._barrier.abort()
            raise
        self._barrier.wait()

    def on_first(self, work: Callable[[], None]) -> None:
        self.each(work if self.rank == 0 else lambda: None)

    def of_all(self, value: T) -> list[T]:
        self._shared[self.rank][:] = [value]
        self._barrier.wait()
        return [each[0] for each in self._shared]  # type: ignore[misc]


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[:, :2, ::4, ::4] * 3, images[:, :2, ::4, ::4].abs()


def cache_of(
    folder: Path, pictures: Path, processes: array_cache.Processes = ALONE, encode: Callable[[Tensor], tuple[Tensor, Tensor]] = encode,
    views: int = 1, **changes: object,
) -> LatentCache:  # fmt: skip
    data = open_dataset(DataConfig(train=str(pictures), size=8, **changes), "train", 0)  # type: ignore[arg-type]
    assert isinstance(data, IndexedDataset)
    return LatentCache.open_or_build(
        folder, data, encode, first_stage_digest="a", views=views, keeps_pixels=True, batch_size=3, processes=processes
    )


def made_by(size: int, folder: Path, pictures: Path, **changes: object) -> list[LatentCache | BaseException]:
    """What each of so many processes has in the end."""
    barrier, shared = threading.Barrier(size, timeout=30), [[] for _ in range(size)]
    found: list[LatentCache | BaseException] = [RuntimeError()] * size

    def one(rank: int) -> None:
        try:
            found[rank] = cache_of(folder, pictures, Threads(rank, size, shared, barrier), **changes)  # type: ignore[arg-type]
        except (UserError, threading.BrokenBarrierError) as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [2, 3, 9])
def test_several_processes_make_the_same_bytes_as_one(size: int, pictures: Path, tmp_path: Path) -> None:
    alone = cache_of(tmp_path / "alone", pictures, views=2)
    first, *others = made_by(size, tmp_path / "together", pictures, views=2)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "alone")) == 1 + COUNT * 2 / 4
    for cache in (first, *others):
        assert isinstance(cache, LatentCache)
        assert all(torch.equal(cache.item(i, 3)[1], alone.item(i, 1)[1]) for i in range(COUNT))


def test_each_process_encodes_its_share(pictures: Path, tmp_path: Path) -> None:
    encoded: dict[int, int] = {}

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded[threading.get_ident()] = encoded.get(threading.get_ident(), 0) + len(images)
        return encode(images)

    made_by(3, tmp_path / "cache", pictures, encode=counted)
    assert sorted(encoded.values()) == [6, 8, 8]


def killed(folder: Path, pictures: Path) -> None:
    """Encodes three whole shards and a half."""
    calls = [3, 1, 3, 1, 3, 1, 3]

    def encode_some(images: Tensor) -> tuple[Tensor, Tensor]:
        if not calls:
            os.kill(os.getpid(), signal.SIGKILL)
        assert len(images) == calls.pop(0)
        return encode(images)

    array_cache.FEWEST_ROWS = 4
    cache_of(folder, pictures, encode=encode_some)


@pytest.mark.parametrize("size", [1, 2])
def test_after_a_kill_only_what_was_not_finished_is_encoded(size: int, pictures: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context(start_method()).Process(target=killed, args=(tmp_path / "cache", pictures))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not strangers(tmp_path / "cache")
    encoded: list[int] = []

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded.append(len(images))
        return encode(images)

    made_by(size, tmp_path / "cache", pictures, encode=counted)
    assert sum(encoded) == COUNT - 12
    cache_of(tmp_path / "whole", pictures)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_an_earlier_cache_stays_until_another_is_finished(pictures: Path, tmp_path: Path) -> None:
    def refuse(images: Tensor) -> tuple[Tensor, Tensor]:
        raise UserError("no more")

    earlier = cache_of(tmp_path / "cache", pictures)
    (tmp_path / "cache/own.txt").write_text("mine")
    with pytest.raises(UserError, match="no more"):
        cache_of(tmp_path / "cache", pictures, views=2, encode=refuse)
    again = cache_of(tmp_path / "cache", pictures, encode=refuse)  # which has nothing to encode
    assert torch.equal(again.item(5, 0)[1], earlier.item(5, 0)[1])
    cache_of(tmp_path / "cache", pictures, views=2)
    assert len(contents(tmp_path / "cache")) == 2 + COUNT * 2 / 4 and strangers(tmp_path / "cache") == ["own.txt"]


def test_a_cache_of_an_earlier_release_is_replaced(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    meta = {"key": "0", "channels": 3, "views": 1, "count": 0, "arrays": ["mean", "std"], "checksums": {}, "rows": []}
    (tmp_path / "cache/meta.json").write_text(json.dumps(meta))
    for name in ("mean", "std"):
        (tmp_path / f"cache/{name}.npy").write_bytes(b"")
    cache_of(tmp_path / "cache", pictures)
    assert not list((tmp_path / "cache").glob("*.npy")) and not strangers(tmp_path / "cache")


def test_a_file_that_is_gone_is_made_anew_by_itself(pictures: Path, tmp_path: Path) -> None:
    cache_of(tmp_path / "cache", pictures)
    before, encoded = contents(tmp_path / "cache"), []

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        encoded.append(len(images))
        return encode(images)

    sorted((tmp_path / "cache").glob("*.arrays"))[2].unlink()
    cache_of(tmp_path / "cache", pictures, encode=counted)
    assert sum(encoded) == 4 and contents(tmp_path / "cache") == before


def test_what_could_not_be_read_is_known_later_and_counted_together(pictures: Path, tmp_path: Path) -> None:
    """One in each process's share is borne by the process, but two are not by the set."""
    for name in ("01", "05"):
        (pictures / f"{name}.png").write_bytes(b"broken")
    refused = made_by(2, tmp_path / "cache", pictures, max_lost=1.5 / COUNT)
    assert isinstance(refused[0], UserError) and "2 of 22 records cannot be read" in str(refused[0])
    assert not (tmp_path / "cache/meta.json").exists()

    made_by(2, tmp_path / "cache", pictures, max_lost=2.5 / COUNT)
    for encoder in (encode, None):  # None: nothing is left to encode
        data = open_dataset(DataConfig(train=str(pictures), size=8, max_lost=0.5), "train", 0)
        assert isinstance(data, IndexedDataset)
        how = {"first_stage_digest": "a", "views": 1, "keeps_pixels": True, "batch_size": 3, "processes": ALONE}
        LatentCache.open_or_build(tmp_path / "cache", data, encoder, **how)  # type: ignore[arg-type]
        assert sorted(data.unreadable.records) == ["01", "05"]
    with pytest.raises(UserError, match=r"of 22 records cannot be read, more than data.max_lost=0.01"):
        cache_of(tmp_path / "cache", pictures, max_lost=0.01)


def test_others_wait_for_a_slow_file_system_and_never_encode(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process wrote shows later; or never, which is said."""
    cache_of(tmp_path / "cache", pictures)
    (tmp_path / "cache").rename(tmp_path / "there")
    key = json.loads((tmp_path / "there/meta.json").read_text())["key"]
    plan = array_cache._Plan(key, [path.name for path in sorted((tmp_path / "there").glob("*.arrays"))], [], True)
    second = Threads(1, 2, [[[plan]], []], threading.Barrier(1))
    with pytest.raises(UserError, match="does not show the cache"):
        cache_of(tmp_path / "cache", pictures, second, encode=lambda images: pytest.fail("encoded"))
    monkeypatch.setattr(array_cache, "PATIENCE", 30)
    threading.Timer(0.3, (tmp_path / "there").rename, (tmp_path / "cache",)).start()
    cache = cache_of(tmp_path / "cache", pictures, second, encode=lambda images: pytest.fail("encoded"))
    assert cache.item(3, 0)[0].name == "03.png"


def test_rows_of_other_shapes_and_types_are_what_was_written(tmp_path: Path) -> None:
    arrays = [
        {"mean": torch.randn(4, 3, 5), "map": torch.arange(15, dtype=torch.int32).reshape(3, 5)},
        {
            "mean": torch.randn(4, 5, 3),
            "text": torch.randn(7, 6).half(),
            "one": torch.tensor(3.0),
            "mask": torch.ones(3, 1, dtype=torch.uint8),
        },
    ]
    rows = [Row(f"é {number}", json.dumps(number), each) for number, each in enumerate(arrays)]
    write_shard(tmp_path / "a.arrays", rows, {})
    shard = ArrayShard(tmp_path / "a.arrays")
    assert len(shard) == 2
    for number, row in enumerate(rows):
        found = shard.row(number)
        assert found[:2] == row[:2] and found.arrays.keys() == row.arrays.keys()
        assert all(torch.equal(found.arrays[name], array) and found.arrays[name].dtype == array.dtype for name, array in row.arrays.items())


def test_a_mapped_shard_keeps_no_file_open(tmp_path: Path) -> None:
    """A thousand of them would be more than a process may have."""
    for number in range(3):
        write_shard(tmp_path / f"{number}.arrays", [Row("a", "{}", {"x": torch.ones(2)})], {})
    before = len(os.listdir("/proc/self/fd"))
    shards = [ArrayShard(tmp_path / f"{number}.arrays") for number in range(3)]
    assert len(os.listdir("/proc/self/fd")) == before and len(shards) == 3
