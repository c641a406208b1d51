"""Remote shards: order, resume, what fails on the way, and what they hold."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data import attempts, shard_fetch, stream_reader
from ldm.data.batch import Batch
from ldm.data.config import Augment, DataConfig
from ldm.data.facts import CAPTIONS, LABELS
from ldm.data.image_dataset import ImageDataset
from ldm.data.open import open_dataset
from ldm.data.record import Record
from ldm.data.shards import write_shards
from ldm.data.stream import StreamedDataset

MOVES = Augment(flip=0.5, shift=0.2, zoom=(0.7, 1.4), rotate=25)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0, 0.0))


def png(number: int) -> bytes:
    """A picture of its own."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (20 * number, 255 - 20 * number, 90)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Two shards of five records."""
    (tmp_path / "far").mkdir()
    for shard in range(2):
        numbers = range(5 * shard, 5 * shard + 5)
        records = [Record(key=str(i), suffix="png", image=png(i), captions=(f"colour {i}",), label=i) for i in numbers]
        write_shards(tmp_path / "far", f"part{shard}", records)
    return tmp_path / "far"


def opened(place: str, **changes: object) -> ImageDataset:
    values = {"train": place, "size": 32, "allow_remote": True, "augment": MOVES} | changes
    return open_dataset(DataConfig(**values), "train", 0)  # type: ignore[arg-type]


def of_commands(far: Path, **changes: object) -> ImageDataset:
    """A `pipe:` command with a brace range."""
    return opened(f"pipe:cat {far}/part{{0..1}}-000000.tar", **changes)


def batches(data: ImageDataset, size: int, number: int, first: int = 1) -> list[Batch]:
    return [batch for batch, _ in islice(data.batches(size, first, (0, size)), number)]


def key_of(name: str) -> str:
    """Of a record that is called `KEY in URL`."""
    return name.partition(" in ")[0]


def keys_of(some: list[Batch]) -> list[str]:
    return [key for batch in some for key in map(key_of, batch.names)]


@pytest.fixture
def served(far: Path) -> Iterator[str]:
    """The address of a server of the shards."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=far)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_stream_shows_every_record_once_an_epoch_in_a_new_order(far: Path) -> None:
    data = of_commands(far)
    assert {CAPTIONS, LABELS} <= data.facts.has and data.count is None
    keys = keys_of(batches(data, 5, 4))
    assert sorted(keys[:10]) == sorted(keys[10:]) == sorted(map(str, range(10)))
    assert keys[:10] != keys[10:]


def resumed_at(data: ImageDataset, places: dict[int, tuple[int, int]]) -> ImageDataset:
    data.places.update(places)
    return data


def same(some: list[Batch], others: list[Batch]) -> bool:
    return all(one.names == other.names and torch.equal(one.images, other.images) for one, other in zip(some, others, strict=True))


def many(far: Path, **changes: object) -> ImageDataset:
    """Six shards of 3, 4, 5, 3, 4 and 5 records; four readers of a batch of 4 or 8."""
    if not (far / "many0-000000.tar").exists():
        for shard in range(6):
            records = [Record(key=f"{shard}-{i}", suffix="png", image=png(i + shard), captions=("a",)) for i in range(3 + shard % 3)]
            write_shards(far, f"many{shard}", records)
    return opened(f"file://{far}/many{{0..5}}-000000.tar", augment=Augment(brightness=0.3), **changes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_processes_and_workers_reads_the_same_batches(size: int, workers: int, far: Path) -> None:
    whole = batches(many(far), 8, 12)
    found = []
    for rank in range(size):
        start, stop = World(rank, size, torch.device("cpu")).part(8)
        shares = list(islice(many(far, workers=workers).batches(8, 1, (start, stop)), 12))
        assert all(places == tuple(range(start, stop)) for _, places in shares)
        found.append([batch for batch, _ in shares])
    assert same([Batch.joined(pieces) for pieces in zip(*found, strict=True)], whole)


def test_each_shard_is_read_by_one_process(far: Path) -> None:
    """Of several whose number divides that of the readers."""
    of = [{name.partition(" in ")[2] for batch in batches_of(many(far), 8, 1, part) for name in batch.names} for part in ((0, 4), (4, 8))]
    assert of[0] and of[1] and not of[0] & of[1]


def batches_of(data: ImageDataset, size: int, number: int, part: tuple[int, int]) -> list[Batch]:
    return [batch for batch, _ in islice(data.batches(size, 1, part), number)]


def test_a_stream_shows_every_record_as_often_as_the_others(far: Path) -> None:
    """In the first five epochs, but for the ends that readers are past."""
    counts = Counter(keys_of(batches(many(far), 4, 30)))
    assert len(counts) == 24 and set(counts.values()) <= {4, 5, 6} and Counter(counts.values())[5] >= 12


@pytest.mark.parametrize("step, workers", [(1, 0), (4, 0), (7, 0), (10, 2)])
def test_a_stream_resumes_where_it_was_and_fetches_no_more_than_the_shards_in_hand(
    step: int, workers: int, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batches(many(far), 8, 16)
    stopped = many(far, workers=workers)
    batches(stopped, 8, step)
    assert len(stopped.places) == 4
    resumed = resumed_at(many(far), stopped.places)
    urls: list[str] = []
    fetched = stream_reader.fetched
    monkeypatch.setattr(stream_reader, "fetched", lambda url: [urls.append(url), fetched(url)][1])
    assert same(batches(resumed, 8, 1, first=step + 1), whole[step : step + 1])
    assert 0 < len(urls) <= 2 * 4  # those in hand, and those that a reader comes to in this step
    assert same(batches(resumed_at(many(far), stopped.places), 8, 16 - step, first=step + 1), whole[step:])


def test_two_processes_go_on_where_one_was(far: Path) -> None:
    whole, stopped = batches(many(far), 8, 6), many(far)
    batches(stopped, 8, 3)
    shares = [list(islice(resumed_at(many(far), stopped.places).batches(8, 4, part), 3)) for part in ((0, 4), (4, 8))]
    assert same([Batch.joined([one[0], other[0]]) for one, other in zip(*shares, strict=True)], whole[3:])


def test_another_batch_does_not_go_on_where_this_was(far: Path) -> None:
    stopped = many(far)
    batches(stopped, 8, 3)
    with pytest.raises(UserError, match="4 readers were at work before, and now it would be 3"):
        batches(resumed_at(many(far), stopped.places), 9, 1, first=4)


def test_a_stream_over_http_is_the_stream_of_the_same_files(far: Path, served: str) -> None:
    there = batches(opened(f"{served}/part{{0..1}}-000000.tar"), 5, 3)
    here = batches(of_commands(far), 5, 3)
    assert keys_of(there) == keys_of(here)
    assert all(torch.equal(a.images, b.images) for a, b in zip(there, here, strict=True))


def test_a_stream_measures_by_the_first_pictures_in_order(far: Path) -> None:
    assert [key_of(sample.name) for sample in of_commands(far).some(7)] == [str(i) for i in range(7)]


# --- what fails


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def failing(kind: str, far: Path, served: str) -> tuple[str, str]:
    """Two shards, the second of which fails, and what is said of it."""
    last = far / "part1-000000.tar"
    match kind:
        case "missing":
            last.unlink()
            return f"{served}/part{{0..1}}-000000.tar", "exit code 22: the server refuses it, as with 404"
        case "refused":
            ports = f"{{{served.rpartition(':')[2]},{unused_port()}}}"
            return f"pipe:curl -fsL http://127.0.0.1:{ports}/part0-000000.tar", "exit code 7: no connection"
        case "cut":
            last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
            return f"{served}/part{{0..1}}-000000.tar", "breaks off after 5 records (truncated: no end mark)"
        case "a page":
            last.write_bytes(b"<html>please log in</html>" * 100)
            return f"{served}/part{{0..1}}-000000.tar", "breaks off after 0 records (invalid header)"
        case _:  # a command that gives the whole shard, and fails
            return f"pipe:f={far}/part{{0..1}}-000000.tar; cat $f; case $f in *1-000000.tar) exit 3;; esac", "exit code 3"


@pytest.mark.parametrize("kind", ["missing", "refused", "cut", "a page", "a command"])
def test_a_shard_that_cannot_be_had_is_lost_by_name_and_counted_in_records(
    kind: str, far: Path, served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, said = failing(kind, far, served)
    data = opened(place, max_lost=0.6)
    assert isinstance(data, StreamedDataset)
    assert set(keys_of(batches(data, 5, 4))) == set("01234")
    ((name, reason),) = data.unreadable.records.items()
    assert name == data.urls[1] and reason.startswith(f"{name}: cannot be fetched, 4 times (") and said in reason
    assert data.unreadable.line().startswith("5 of 10 records could not be read")
    assert data.lost == [(epoch, name) for epoch in range(len(data.lost))] and len(data.lost) >= 3
    assert f"{said}; once more in 0 s" in capsys.readouterr().out


def test_a_shard_that_fails_for_a_while_is_whole(far: Path, tmp_path: Path) -> None:
    """At the third attempt it can be had."""
    flaky = f"pipe:f={far}/part{{0..1}}-000000.tar; echo . >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -gt 2 ] && cat $f"
    data = opened(flaky)
    assert keys_of(batches(data, 5, 4)) == keys_of(batches(of_commands(far), 5, 4))
    assert data.lost == [] and not data.unreadable.records


def test_what_was_lost_is_lost_again_and_can_be_tried_anew(far: Path, tmp_path: Path) -> None:
    """The second shard is away in the first epoch only."""
    place = f"pipe:f={far}/part{{0..1}}-000000.tar; case $f in *1-000000.tar) [ ! -e {tmp_path}/away ];; esac && cat $f"
    (tmp_path / "away").touch()
    data = opened(place, max_lost=0.6)
    assert isinstance(data, StreamedDataset)
    steps = data.batches(2, 1, (0, 2))
    first = next(steps)[0]
    (tmp_path / "away").unlink()
    whole = [first, *(batch for batch, _ in islice(steps, 7))]
    assert {url for _, url in data.lost} == {data.urls[1]} and (0, data.urls[1]) in data.lost

    resumed, anew = opened(place, max_lost=0.6), opened(place, max_lost=0.6)
    resumed.lost[:] = data.lost
    assert keys_of(batches(resumed, 2, 8)) == keys_of(whole)
    assert keys_of(batches(anew, 2, 8)) != keys_of(whole) and anew.lost == []


def test_a_shard_that_another_process_reads_too_is_not_left_out(far: Path) -> None:
    """They might not agree."""
    (far / "part1-000000.tar").unlink()
    with pytest.raises(UserError, match="another process reads it too, so it cannot be left out here: run as many processes as divide 2"):
        batches_of(of_commands(far, max_lost=1.0), 6, 9, (0, 5))


@pytest.mark.parametrize("shards, is_borne", [(110, True), (90, False)])
def test_what_may_be_lost_is_a_share_of_the_whole_set(far: Path, shards: int, is_borne: bool) -> None:
    """One shard of so many, before most of them are read."""
    data = opened(f"pipe:cat {far}/part0-000000.tar; exit $(( {{1..{shards}}} == 7 ))")
    if is_borne:
        batches(data, 50, shards // 10)
        assert len(set(data.lost)) == len(data.lost) > 0 and data.unreadable.count == 5 and data.unreadable.total == 5 * shards
    else:
        with pytest.raises(UserError, match=rf"5 of {5 * shards} records cannot be read.*cannot be fetched, 4 times"):
            batches(data, 50, shards // 10)


def test_a_set_of_which_nothing_can_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched, 4 times \(exit code 1\)"):
        opened(f"pipe:cat {tmp_path}/none-{{0..9}}.tar")


# --- what shards hold


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_stream_reads_a_tar_as_a_file_is_read(tmp_path: Path) -> None:
    """Members that lie apart, dots in names, doubled members."""
    members = [(f"k{i}.png", png(i)) for i in range(3)] + [(f"k{i}.txt", b"a disc") for i in range(3)]
    members += [("photo.v1.0.png", png(4)), ("photo.v1.1.png", png(5)), ("k0.txt", b"a ring")]
    path = tar_of(tmp_path / "a.tar", members)
    local = open_dataset(DataConfig(train=str(path), size=8), "train", 0)
    remote = opened(f"pipe:cat {path}", size=8)
    assert [(key_of(s.name), s.captions) for s in remote.some(None)] == [(s.name, s.captions) for s in local.some(None)]
    assert [key_of(s.name) for s in remote.some(None)] == ["k0", "k1", "k2", "photo.v1.0", "photo.v1.1"]


def test_a_record_that_cannot_be_read_is_named_with_its_shard(far: Path) -> None:
    path = tar_of(far / "bad.tar", [("a.png", png(1)), ("b.png", b"no picture"), ("c.png", png(3)), ("c.json", b"{")])
    data = opened(f"pipe:cat {path}", max_lost=0.7)
    assert set(keys_of(batches(data, 3, 2))) == {"a"}
    assert sorted(data.unreadable.records) == [f"{key} in pipe:cat {path}" for key in "bc"]
    assert all(str(path) in reason for reason in data.unreadable.records.values())


def test_labels_beyond_the_last_class_are_refused_in_the_first_shard_and_counted_later(far: Path) -> None:
    with pytest.raises(UserError, match=r"label 4 is outside 0 to 3"):
        of_commands(far).facts.check_labels(4)
    data = of_commands(far, max_lost=0.5)
    data.facts.check_labels(7)
    assert set(keys_of(batches(data, 5, 4))) == set("0123456")
    assert sorted(reason.split(":")[-1] for reason in data.unreadable.records.values()) == [
        f" label {i} is outside 0 to 6" for i in (7, 8, 9)
    ]


def test_labels_that_are_texts_hurt_nobody_who_does_not_need_them(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.png", png(1)), ("a.json", b'{"caption": "a disc", "label": "disc"}')])
    data = opened(f"pipe:cat {path}", size=8)
    assert LABELS not in data.facts.has and [sample.caption for sample in data.some(None)] == ["a disc"]


def test_what_only_a_later_shard_has_is_told(far: Path, tmp_path: Path, capsys) -> None:  # noqa: ANN001
    record = Record(key="late", suffix="png", image=png(3), mask=png(9))
    write_shards(far, "part2", [record, replace(record, key="later")])
    data = opened(f"pipe:cat {far}/part{{0..2}}-000000.tar")
    batches(data, 6, 4)
    said = capsys.readouterr()
    assert (said.out + said.err).count("has masks, which the first shard has not: they are passed over") == 1


def test_a_full_disk_is_not_a_lost_shard(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_fetch.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left on device: 'a shard in "):
        of_commands(far)
