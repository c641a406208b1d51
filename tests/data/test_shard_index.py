"""The binary index of a shard, and sets that are opened by it."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.app.arguments.prepare_data import main
from ldm.core.errors import UserError
from ldm.core.ownership import strangers
from ldm.data import shards
from ldm.data.names import BUILTIN
from ldm.data.record import Record
from ldm.data.set_index import Index
from ldm.data.shard_index import HEADER, Entry, Member, ShardIndex
from ldm.data.shard_scan import scan_shard
from ldm.data.shards import write_shards
from ldm.data.sources import shards as sources
from ldm.data.sources.shards import ShardSource, open_indexed

ENTRIES = [
    Entry("a", (Member("png", 512, 90, "00ff00ff00ff00ff"), Member("json", 1536, 2**40, ""))),
    Entry("ä\udcff", (Member("mask.png", 2**61, 0, "ffffffffffffffff"),)),
    Entry("", ()),
]


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(count: int) -> list[Record]:
    kinds = ({"label": 3, "attributes": {"age": 7, "tags": "old;grey"}}, {"captions": ("a", "b")}, {"label": 0, "mask": png(255)})
    return [replace(Record(key=f"k{i}", suffix="png", image=png(i % 256)), **kinds[i % 3]) for i in range(count)]


def written(folder: Path, count: int = 40, max_bytes: int = 30_000) -> list[Record]:
    records = drawn(count)
    Index(splits={"train": write_shards(folder, "train", records, max_bytes)}).write(folder)
    return records


def all_of(source: ShardSource) -> list[Record]:
    return [source.record(index) for index in range(len(source))]


def test_an_index_gives_back_what_was_put_in() -> None:
    index = ShardIndex(ShardIndex.encode(ENTRIES))
    index.check()
    assert list(index) == ENTRIES and index[1:] == ENTRIES[1:] and index.suffixes == ("png", "json", "mask.png")
    assert len(ShardIndex(ShardIndex.encode([]))) == 0


def test_the_form_of_the_file_is_pinned() -> None:
    """Readers of other languages, and of later releases, rely on it."""
    content = ShardIndex.encode([("ab", [("png", 512, 7, "0102030405060708")])])
    assert content[:40] == b"ldmindex" + b"".join(n.to_bytes(4, "little") for n in (1, 7)) + b"".join(
        n.to_bytes(8, "little") for n in (1, 1, 2)
    )
    assert (
        content[40:]
        == (512).to_bytes(8, "little")
        + (7).to_bytes(8, "little")
        + bytes(range(1, 9))
        + b"".join(n.to_bytes(4, "little") for n in (0, 1, 0, 2, 0))
        + b'ab["png"]'
    )


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100, ShardIndex.encode(ENTRIES)[:-1], ShardIndex.encode(ENTRIES) + b" "])
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"short|not an index|truncated"):
        ShardIndex(content)


def test_numbers_that_contradict_each_other_are_refused() -> None:
    """Of whoever made the file, also with fitting checksums: an index is not believed."""
    sound = np.frombuffer(ShardIndex.encode(ENTRIES), np.uint8)
    first = HEADER.size + 24 * 3
    for place in (first + 4, first + 12, first + 16 + 4, first + 32):  # first members, ends of keys, numbers of suffixes
        damaged = sound.copy()
        damaged[place : place + 4] = 250
        with pytest.raises(ValueError, match="do not follow each other|without a suffix"):
            ShardIndex(damaged.tobytes()).check()


def test_a_record_is_a_range_of_the_tar(tmp_path: Path) -> None:
    """With the index alone, whoever can read ranges of the tar has the record: picture, captions, label, attributes."""
    records = written(tmp_path)
    split = Index.read(tmp_path).splits["train"]
    assert len(split.shards) > 2 and split.count == 40
    found = []
    for shard in split.shards:
        content = (tmp_path / shard.name).read_bytes()
        index = ShardIndex((tmp_path / shard.index.name).read_bytes())
        assert {key: [m[:3] for m in members] for key, members in index} == {
            key: [m[:3] for m in members] for key, members in scan_shard(tmp_path / shard.name).records.items()
        }
        found += [Record.of(key, {m.suffix: content[m.offset : m.offset + m.size] for m in members}) for key, members in index]
    assert found == records == all_of(open_indexed(tmp_path, "train"))


def test_index_json_is_small_and_says_what_the_records_have(tmp_path: Path) -> None:
    written(tmp_path, count=300, max_bytes=2**20)
    plain = json.loads((tmp_path / "index.json").read_text())
    assert (tmp_path / "index.json").stat().st_size < 2000 and plain["version"] == 3
    assert plain["facts"]["train"]["has"] == ["attributes", "captions", "labels", "masks", "pixels"]
    source = open_indexed(tmp_path, "train")
    (shard,) = Index.read(tmp_path).splits["train"].shards
    looked = ShardSource("the same", [sources.Shard(tmp_path / shard.name, shard)], Index(splits={}))
    assert source.conditions == looked.conditions and source.digest == looked.digest
    assert source.label_numbers() == looked.label_numbers() == {3: "k0", 0: "k2"}
    assert source.attribute_facts() == looked.attribute_facts() and source.attribute_facts()["age"].numbers == (7, 7)


def test_opening_a_set_reads_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the shards nor their indices: only their sizes are compared."""
    written(tmp_path)
    monkeypatch.setattr(ShardSource, "_open", lambda self, number: pytest.fail("a shard is read"))
    source = open_indexed(tmp_path, "train")
    assert (len(source), len(source.digest), len(source.conditions)) == (40, 64, 5)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "OPEN", 2)
    written(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    source = open_indexed(tmp_path, "train")
    assert len(all_of(source)) == 40 and len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path)
    path = sorted(tmp_path.glob("*.index"))[1]
    content = bytearray(path.read_bytes())
    content[HEADER.size] ^= 1  # an offset
    path.write_bytes(content)
    source = open_indexed(tmp_path, "train")
    said = rf"{path.name} is not what was written there \(sha256\); prepare or copy the data anew"
    assert source.record(0).key == "k0"
    with pytest.raises(UserError, match=said):
        source.record(10)
    with pytest.raises(UserError, match=f"damaged in 1 places: .*{said}"):
        main([str(tmp_path), "--verify"])


def test_a_missing_or_cut_index_is_refused_at_opening(tmp_path: Path) -> None:
    written(tmp_path)
    path = sorted(tmp_path.glob("*.index"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{path.name} is not what was written there \(\d+ bytes\)"):
        open_indexed(tmp_path, "train")
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: no such file, though .*index.json names it; copy the whole folder"):
        open_indexed(tmp_path, "train")


def test_a_truncated_shard_loses_its_last_records_and_is_other_data(tmp_path: Path) -> None:
    """Of a shard in the middle: the records behind it keep their order."""
    records = written(tmp_path)
    whole = open_indexed(tmp_path, "train").digest
    info = Index.read(tmp_path).splits["train"].shards[1]
    index = info.open_index(tmp_path)
    cut = index[len(index) - 2]
    with open(tmp_path / info.name, "r+b") as file:
        file.truncate(cut.members[0].offset + 1)
    source = open_indexed(tmp_path, "train")
    lost = {cut.key, index[len(index) - 1].key}
    assert all_of(source) == [record for record in records if record.key not in lost] and set(source.unreadable) == lost
    assert source.digest != whole
    assert all("train-000001.tar is truncated" in reason for reason in source.unreadable.values())


def test_a_set_of_an_earlier_release_is_the_same_data(tmp_path: Path) -> None:
    """The built-in set has its records in index.json."""
    old = open_indexed(BUILTIN["emoji-128"], "val")
    split = write_shards(tmp_path, "val", map(old.record, range(len(old))), 2**20)
    Index(splits={"val": split}, label_names=old.label_names).write(tmp_path)
    new = open_indexed(tmp_path, "val")
    assert len(split.shards) != len(Index.read(BUILTIN["emoji-128"]).splits["val"].shards)
    earlier = "e1fc22de1c56f82629911608d3a636dcf95ec791b678965b06d8f01dea7479e5"  # what releases before found, so that their runs go on
    assert new.digest == old.digest == earlier
    assert new.conditions == old.conditions
    assert all_of(new) == all_of(old) and new.image_checksums == old.image_checksums


def test_long_lists_stay_out_of_index_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_NAMES", 5)
    records = [Record(key=f"k{i}", suffix="png", image=png(i), label=i, attributes={"score": i / 10}) for i in range(9)]
    Index(splits={"train": write_shards(tmp_path, "train", records)}).write(tmp_path)
    facts = json.loads((tmp_path / "index.json").read_text())["facts"]["train"]
    assert facts["labels"] is None and facts["attributes"] is None
    source = open_indexed(tmp_path, "train")
    assert len(source.label_numbers()) == 9 and source.attribute_facts()["score"].numbers == (0, 0.8)


def test_the_files_of_a_set_are_known_as_this_tools(tmp_path: Path) -> None:
    """By index.json alone, so that a set is replaced whole."""
    written(tmp_path)
    assert strangers(tmp_path) == []
