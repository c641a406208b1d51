"""Any folder to shards, and back."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from ldm.app.arguments.prepare_data import main
from ldm.core.errors import UserError
from ldm.data.classic import LAY_OUT, OPENERS
from ldm.data.config import DataConfig
from ldm.data.names import CLASSIC
from ldm.data.open import open_dataset
from ldm.data.record import Record
from ldm.data.set_index import Index
from ldm.data.shard_scan import scan_shard, split_name, split_records
from ldm.data.shards import shard_writer
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.shards import open_indexed


def picture(path: Path, size: tuple[int, int] = (20, 10), mode: str = "RGB", colour: object = (200, 30, 30), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)  # type: ignore[arg-type]


def records_of(folder: Path, split: str = "train") -> dict[str, Record]:
    source = open_indexed(folder, split)
    return {source.key(i): source.record(i) for i in range(len(source))}


def opened(content: bytes | None) -> Image.Image:
    assert content
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("table", ["captions.csv", "metadata.jsonl", "txt"])
def test_captions_are_found_wherever_they_lie(tmp_path: Path, table: str) -> None:
    source = tmp_path / "in"
    picture(source / "a.png")
    picture(source / "b.jpg")
    if table == "captions.csv":
        (source / table).write_text('file,caption\na.png,"red, and flat"\na.png,second\nb.jpg,bee\n')
    elif table == "metadata.jsonl":
        rows = [("a.png", "red, and flat"), ("a.png", "second"), ("b.jpg", "bee")]
        (source / table).write_text("\n".join(json.dumps({"file_name": f, "text": t}) for f, t in rows))
    else:
        (source / "a.txt").write_text("red, and flat\nsecond\n")
        (source / "b.txt").write_text("bee")
    main([str(source), "--out", str(tmp_path / "out")])
    assert {key: record.captions for key, record in records_of(tmp_path / "out").items()} == {
        "a": ("red, and flat", "second"),
        "b": ("bee",),
    }


def test_labels_masks_and_maps_travel_and_shrink_with_the_picture(tmp_path: Path) -> None:
    source = tmp_path / "in"
    picture(source / "cat/1.png", (40, 20))
    picture(source / "dog/2.png", (8, 8))
    half = np.zeros((20, 40), dtype=np.uint8)
    half[:, 20:] = 1
    (source / "masks/cat").mkdir(parents=True)
    (source / "maps/cat").mkdir(parents=True)
    Image.fromarray(half * 255).save(source / "masks/cat/1.png")
    Image.fromarray(half * 3).save(source / "maps/cat/1.png")
    main([str(source), "--out", str(tmp_path / "out"), "--size", "10"])
    cat, dog = records_of(tmp_path / "out").values()
    assert (cat.label, dog.label) == ("cat", "dog")
    assert opened(cat.image).size == (20, 10) and opened(dog.image).size == (8, 8)
    small = half[::2, ::2]
    np.testing.assert_array_equal(np.asarray(opened(cat.mask)), small.astype(bool))
    np.testing.assert_array_equal(np.asarray(opened(cat.map)), small * 3)
    assert dog.mask is None and dog.map is None
    index = Index.read(tmp_path / "out")
    assert index.label_names == ("cat", "dog") and len(index.map_names) == 4


def test_unreadable_files_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    picture(source / "good.png")
    picture(source / "cut.png", (200, 200))
    content = (source / "cut.png").read_bytes()
    (source / "cut.png").write_bytes(content[: len(content) // 2])
    (source / "words.jpg").write_text("not a picture")
    main([str(source), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "could not be read and were left out: 2\n  cut.png: damaged" in printed and "words.jpg" in printed
    assert list(records_of(tmp_path / "out")) == ["good"]


def test_pictures_without_a_caption_are_counted_where_others_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"in/{name}.png")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "caption" not in capsys.readouterr().out
    (tmp_path / "in/b.txt").write_text("a boat")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "pictures without a caption, trained as unconditional: 2 (a.png, c.png)\n" in capsys.readouterr().out


def test_every_nth_readable_picture_is_held_out(tmp_path: Path) -> None:
    for number in range(9):
        picture(tmp_path / f"in/{number}.png", colour=(number, 0, 0))
    (tmp_path / "in/2.png").write_bytes(b"")  # unreadable: does not count
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--val-every", "4"])
    assert list(records_of(tmp_path / "out")) == ["0", "1", "3", "5", "6", "7"]
    assert list(records_of(tmp_path / "out", "val")) == ["4", "8"]


def test_background_is_laid_under_transparency(tmp_path: Path) -> None:
    picture(tmp_path / "in/clear.png", mode="RGBA", colour=(0, 0, 0, 0))
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--background", "10,20,30"])
    assert opened(records_of(tmp_path / "out")["clear"].image).convert("RGB").getpixel((3, 3)) == (10, 20, 30)


def test_a_failed_run_leaves_what_was_there(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    (tmp_path / "in/a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="not one picture"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not made by this script"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/thesis.tex").read_text() == "years"


@pytest.mark.parametrize("index", ["own", "{}"])
def test_what_is_beside_an_index_is_not_lost(tmp_path: Path, index: str) -> None:
    picture(tmp_path / "in/a.png")
    if index == "own":
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/index.json").write_text(index)
    (tmp_path / "out/thesis.tex").write_text("years")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="not made by this script"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "neither a folder"),
        (["mnist", "--raw", "nowhere"], "no such folder"),
        (["in", "--val-every", "1"], "val-every"),
        (["in", "--size", "0"], "size"),
        (["in", "--background", "white"], "R,G,B"),
        (["in", "--captions", "none.csv"], "no such file"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in/a.png")
    with pytest.raises(UserError, match=message) as caught:
        main([*arguments, "--out", "out"])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_mnist_from_raw_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw/deep"
    raw.mkdir(parents=True)
    drawn = np.arange(3 * 28 * 28, dtype=np.int64).reshape(3, 28, 28) % 251
    for part, stop in (("train", 3), ("t10k", 2)):
        images = struct.pack(">iiii", 2051, stop, 28, 28) + drawn[:stop].astype(np.uint8).tobytes()
        labels = struct.pack(">ii", 2049, stop) + bytes([7, 0, 4][:stop])
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    main(["mnist", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")])
    found = list(records_of(tmp_path / "out").values())
    assert [record.label for record in found] == ["7", "0", "4"] and found[0].captions == ("the digit 7",)
    np.testing.assert_array_equal(np.asarray(opened(found[2].image)), drawn[2])
    assert len(records_of(tmp_path / "out", "val")) == 2


def test_cifar10_from_raw_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled batches as published, 3 colours of 32 x 32 in a row; torchvision reads them only if their checksums are right."""
    raw = tmp_path / "raw/cifar-10-batches-py"
    raw.mkdir(parents=True)
    drawn = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    batches = {f"data_batch_{i + 1}": {"data": drawn[i : i + 1], "labels": [i]} for i in range(5)}
    batches |= {"test_batch": {"data": drawn[5:], "labels": [9]}, "batches.meta": {"label_names": list("abcdefghij")}}
    for name, content in batches.items():
        (raw / name).write_bytes(pickle.dumps(content))
    arguments = ["cifar10", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="corrupted"):
        main(arguments)

    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in batches}
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(datasets.CIFAR10, attribute, [[name, sums[name]] for name, _ in getattr(datasets.CIFAR10, attribute)])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", sums["batches.meta"])
    main(arguments)
    found = list(records_of(tmp_path / "out").values())
    assert [record.label for record in found] == list("abcde") and found[1].captions == ("a photo of b",)
    np.testing.assert_array_equal(np.asarray(opened(found[2].image)), drawn[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert [record.label for record in records_of(tmp_path / "out", "val").values()] == ["j"]


def test_pets_from_raw_files(tmp_path: Path) -> None:
    """The trimap (1 pet, 2 background, 3 outline) becomes the map, and all but background the mask."""
    raw = tmp_path / "raw"
    trimap = np.full((10, 20), 2, dtype=np.uint8)
    trimap[2:8, 5:15], trimap[2, 5:15] = 1, 3
    for name in ("Birman_1", "great_dane_2"):
        picture(raw / f"images/{name}.jpg")
        (raw / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(trimap).save(raw / f"annotations/trimaps/{name}.png")
    for part in ("trainval", "test"):
        (raw / f"annotations/{part}.txt").write_text("Birman_1 1 1 1\ngreat_dane_2 2 2 1\n")
    main(["pets", "--raw", str(raw), "--out", str(tmp_path / "out")])
    found = list(records_of(tmp_path / "out").values())
    assert [(record.label, record.captions) for record in found] == [
        ("Birman", ("a photo of birman",)),
        ("Great Dane", ("a photo of great dane",)),
    ]
    np.testing.assert_array_equal(np.asarray(opened(found[0].map)), trimap - 1)
    np.testing.assert_array_equal(np.asarray(opened(found[0].mask).convert("L")) > 127, trimap != 2)
    assert len(records_of(tmp_path / "out", "val")) == 2


# --- shards


def test_shards_round_trip_and_keep_their_size(tmp_path: Path) -> None:
    made = [
        Record(key=f"k{i}", suffix="png", image=bytes([i]) * 300_000, captions=("a", "é"), label=i, mask=b"m", map=b"n") for i in range(8)
    ]
    with shard_writer(tmp_path, "train", 2**20) as writer:
        for record in made:
            writer.add(record)
    Index(splits={"train": writer.written}).write(tmp_path)
    assert list(records_of(tmp_path).values()) == made
    assert len(writer.written.shards) > 1 and all(info.bytes <= 2**20 for info in writer.written.shards)


def test_a_truncated_shard_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    with shard_writer(tmp_path, "train", 2**20) as writer:
        for i in range(6):
            writer.add(Record(key=f"k{i}", suffix="png", image=bytes(3000)))
    (info,) = writer.written.shards
    path = tmp_path / info.name
    assert scan_shard(path).fault is None
    first, last = dict(info.open_index(tmp_path))["k5"]
    path.write_bytes(path.read_bytes()[: last.offset + last.size // 2])
    records, fault, _ = scan_shard(path)
    assert fault is not None and "truncated" in fault
    assert [key for key, members in records.items() if len(members) == 2] == [f"k{i}" for i in range(5)]

    path.write_bytes(path.read_bytes()[: first.offset - 512])  # between two members: tarfile sees no fault
    records, fault, _ = scan_shard(path)
    assert fault is not None and "no end mark" in fault and list(records) == [f"k{i}" for i in range(5)]


def test_hostile_members_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, kind, target in (("a.png", tarfile.SYMTYPE, "secret.png"), ("b.png", tarfile.LNKTYPE, "secret.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
        up = tarfile.TarInfo("../../c.png")
        up.size = 4
        tar.addfile(up, io.BytesIO(b"four"))
    records, *_ = scan_shard(tmp_path / "bad.tar")
    assert list(records) == ["../../c"]  # bytes by key: nothing is ever written to that path


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "..", ""])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    shard = {"name": name, "bytes": 1, "sha256": "", "count": 1, "records": {"k": [["png", 0, 1]]}}
    (tmp_path / "index.json").write_text(json.dumps({"splits": {"train": [shard]}}))
    with pytest.raises(UserError, match="plain file name"):
        Index.read(tmp_path)


def test_an_index_of_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"splits": {}, "version": 4}))
    with pytest.raises(UserError, match="version 4; this release reads versions 1 to 3"):
        Index.read(tmp_path)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("a.b/c.mask.png", ("a.b/c", "mask.png")),
        ("photo.v1.0.jpg", ("photo", "v1.0.jpg")),
        ("__key__.jpg", ("", "")),
        ("a/._k.jpg", ("", "")),
        ("README", ("README", "")),  # no suffix: no member of a record
    ],
)
def test_names_split_where_webdataset_splits_them(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    "suffixes, records, others",
    [
        (["jpg", "txt", "mask.png", "map.png"], {"k": ["jpg", "txt", "mask.png", "map.png"]}, []),
        (["image.jpg", "text.txt"], {"k": ["image.jpg", "text.txt"]}, []),
        (["depth.png", "jpg", "thumb.jpg", "txt"], {"k": ["jpg", "txt"]}, ["depth.png", "thumb.jpg"]),
        (["v1.0.jpg", "v1.0.txt", "v1.1.jpg", "v1.1.mask.png"], {"k.v1.0": ["jpg", "txt"], "k.v1.1": ["jpg", "mask.png"]}, []),
        (["full.jpg", "txt"], {"k": ["txt", "jpg"]}, []),
        (["txt"], {"k": ["txt"]}, []),
    ],
)
def test_records_of_one_key(suffixes: list[str], records: dict[str, list[str]], others: list[str]) -> None:
    found, beside = split_records("k", suffixes)
    assert {key: list(members) for key, members in found.items()} == records and beside == others


@pytest.mark.parametrize(
    "meta",
    [
        *(b"[1]", b'{"captions": [1]}', b"{", b"\xff", b'{"label": -5}', b'{"label": 1e400, "boxes": [[1, 0, 0, Infinity, 1]]}'),
        *(b'{"label": 1' + b"0" * 30 + b"}", b'{"caption": "\\ud800"}', b"[" * 10_000 + b"]" * 10_000, b'{"boxes": [[1e30, 0, 0, 1, 1]]}'),
    ],
)
def test_a_corrupt_record_says_so(meta: bytes) -> None:
    with pytest.raises(UserError, match="^k: its text cannot be read"):
        Record.of("k", {"png": b"", "json": meta})


def test_keys_of_somebody_else_hurt_nobody() -> None:
    meta = {"text": "a cat", "label": {"id": 7}, "score": float("nan"), "box_count": 2, "exif": {"iso": 100}}
    record = Record.of("k", {"JPG": b"image", "json": json.dumps(meta).encode()})
    assert (record.captions, record.label, record.attributes) == (("a cat",), None, {"box_count": 2})


@pytest.mark.parametrize("members, held", [({"txt": b""}, "no picture"), ({"jpg": b"", "png": b""}, "2 pictures")])
def test_a_record_holds_one_picture(members: dict[str, bytes], held: str) -> None:
    with pytest.raises(UserError, match=f"^k: its record holds {held}"):
        Record.of("k", members)


def test_every_set_that_help_names_can_be_opened() -> None:
    assert set(CLASSIC) == OPENERS.keys() == LAY_OUT.keys()


def test_a_writer_takes_a_key_once(tmp_path: Path) -> None:
    """webdataset would read two records of one key as one."""
    with shard_writer(tmp_path, "train", 1 << 20) as writer:
        writer.add(Record(key="a", suffix="png", image=b"1"))
        with pytest.raises(AssertionError, match="^a"):
            writer.add(Record(key="a", suffix="png", image=b"2"))


def prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for number in range(4):
        picture(tmp_path / f"in/{number}.png", colour=(60 * number, 30, 30))
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--val-every", "2"])
    capsys.readouterr()
    return tmp_path / "out"


def test_verify_reads_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = prepared(tmp_path, capsys)
    main([str(out), "--verify"])
    assert f"{out} is what was written there: 4 records in 2 shards" in capsys.readouterr().out

    shard = next(out.glob("train-*.tar"))
    whole, entry = shard.read_bytes(), Index.read(out).splits["train"].shards[0].open_index(out)[1]
    offset = entry.members[0].offset
    for content, said in (
        (whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :], r"damaged in 1 places: \w+: its json in .* is not what was"),
        (whole[:offset], r"damaged in 1 places: \w+: .*train-000000.tar is truncated"),
        (whole[:-1] + b"x", r"damaged in 1 places: .*train-000000.tar: is not what was written \(sha256\); which of its 2 records changed"),
        (None, r"train-000000.tar: no such shard"),
    ):
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        with pytest.raises(UserError, match=said):
            main([str(out), "--verify"])


def test_verify_needs_checksums(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"only a prepared folder has checksums to compare with; --check looks at any other"):
        main([str(tmp_path), "--verify"])


def test_pages_of_a_file_fall_on_one_side(tmp_path: Path) -> None:
    for number in range(3):
        pages = [Image.new("RGB", (8, 8), (40 * number, 20 * page, 9)) for page in range(4)]
        (tmp_path / "in").mkdir(exist_ok=True)
        pages[0].save(tmp_path / f"in/{number}.tif", save_all=True, append_images=pages[1:])
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--pages", "all", "--val-every", "5"])
    sides = [{place.place.partition(",")[0] for place in records_of(tmp_path / "out", split).values()} for split in ("train", "val")]
    assert not sides[0] & sides[1] and all(sides)


def test_levels_at_preparing_hold_for_pictures_of_every_size(tmp_path: Path) -> None:
    """Training on the set needs none: large pictures, small ones and arrays are alike."""
    source = tmp_path / "in"
    source.mkdir()
    for name, side in (("large", 40), ("small", 8)):
        Image.fromarray(np.full((side, side), 2048, np.uint16)).save(source / f"{name}.png")
    np.save(source / "array.npy", np.full((8, 8, 1), 2048, np.int32))
    main([str(source), "--out", str(tmp_path / "out"), "--levels", "0", "4096", "--size", "16"])
    data = open_dataset(DataConfig(train=str(tmp_path / "out"), size=8, channels=1), "train", 0)
    assert [sample.image.mean().item() for sample in data.some(None)] == pytest.approx([0, 0, 0], abs=0.01)


def test_a_shard_by_itself_is_a_source(tmp_path: Path) -> None:
    """What a shard that breaks off still has, is taken."""
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/b.png", colour=(1, 2, 3))
    main([str(tmp_path / "in"), "--out", str(tmp_path / "set")])
    whole = next((tmp_path / "set").glob("*.tar")).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole.rstrip(b"\0"))  # without an end mark
    main([str(tmp_path / "cut.tar"), "--out", str(tmp_path / "out")])
    assert set(records_of(tmp_path / "out")) == {"a", "b"}


def test_classes_of_maps_are_named_up_to_the_largest(tmp_path: Path) -> None:
    """Those of shards without an index; a folder knows its own."""
    picture(tmp_path / "a.png", (8, 8))
    picture(tmp_path / "a.map.png", (8, 8), "L", 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.map.png"):
            tar.add(tmp_path / name, name)
    main([str(tmp_path / "a.tar"), "--out", str(tmp_path / "out")])
    assert Index.read(tmp_path / "out").map_names == ("class 0", "class 1", "class 2", "class 3")


def assorted(folder: Path) -> Path:
    """Pictures of many kinds: one twice, one damaged, one of several pages, with and without captions, masks and maps."""
    draw = np.random.default_rng(0)
    for number in range(40):
        levels = draw.integers(0, 256, (3 + number % 7, 5, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((24, 30)).save(folder / f"{number:02d}.{('png', 'jpg', 'webp')[number % 3]}")
        if number % 4 == 0:
            (folder / f"{number:02d}.txt").write_text(f"picture {number}")
        if number % 5 == 0:
            picture(folder / f"masks/{number:02d}.png", (24, 30), "L", 255)
            picture(folder / f"maps/{number:02d}.png", (24, 30), "L", number)
    (folder / "41.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "42.png").write_bytes(b"damaged")
    frames = [Image.new("RGB", (20, 20), (number, 0, 0)) for number in range(3)]
    frames[0].save(folder / "43.tif", save_all=True, append_images=frames[1:])
    np.save(folder / "44.npy", np.zeros((8, 8, 3), np.uint8))
    return folder


def test_any_number_of_workers_writes_the_same(tmp_path: Path) -> None:
    """Shards, split, keys, report and its pictures, to the byte."""
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    for workers in ("1", "2"):
        arguments = [str(tmp_path / "in"), "--out", str(tmp_path / workers), "--workers", workers]
        main([*arguments, "--val-every", "5", "--size", "16", "--pages", "all", "--background", "1,2,3"])
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / workers).iterdir()} for workers in ("1", "2"))
    assert one == other and {"train-000000.tar", "val-000000.tar", "report.html"} <= one.keys()
    assert len(records_of(tmp_path / "1")) + len(records_of(tmp_path / "1", "val")) == 45
    assert b"42.png" in one["report.txt"] and b"groups of identical pictures: 1 (03.png = 41.png)" in one["report.txt"]


def test_a_picture_in_which_nothing_need_change_keeps_its_bytes(tmp_path: Path) -> None:
    """JPEG and WebP are not encoded again; those that are scaled become PNG."""
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "24", "--workers", "2"])
    found = records_of(tmp_path / "out")
    assert {found[f"{number:02d}"].suffix for number in range(40)} == {"png", "jpg", "webp"}
    for record in found.values():
        assert record.image == (tmp_path / "in" / record.place).read_bytes()
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "23"])
    assert {record.suffix for key, record in records_of(tmp_path / "out").items() if key < "40"} == {"png"}


def test_no_workers_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    with pytest.raises(UserError, match="--workers must be at least 1, got 0"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "0"])


def test_workers_are_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FolderSource.record
    monkeypatch.setattr(FolderSource, "record", lambda self, index: replace(read(self, index), captions=(str(os.getpid()),)))
    for number in range(64):
        picture(tmp_path / f"in/{number}.png", (8, 8))
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2"])
    pids = {caption for record in records_of(tmp_path / "out").values() for caption in record.captions}
    assert len(pids) == 2 and str(os.getpid()) not in pids


def test_the_most_striking_pictures_of_all_are_shown(tmp_path: Path) -> None:
    """Of all that the processes saw, in order of how dark they are; the darkest are among the last here."""
    for number in range(64):
        picture(tmp_path / f"in/{number:02d}.png", (8, 8), "L", 250 - 3 * number)
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2"])
    darkest = (tmp_path / "out/report.html").read_text().partition("<h2>Darkest</h2>")[2].partition("<h2>")[0]
    assert re.findall(r"(\d\d)\.png</figcaption>", darkest) == ["63", "62", "61", "60", "59", "58"]


# --- what goes on, and what is shared out

OPTIONS = ("--val-every", "5", "--size", "16", "--pages", "all", "--shard-size", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(folder: Path, out: Path, number: int) -> None:
    """Prepares in a process that is killed as it comes to a record."""
    read = FolderSource.record

    def record(self: FolderSource, index: int) -> Record:
        if index == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    def run() -> None:
        FolderSource.record = record  # type: ignore[method-assign]
        main([str(folder), "--out", str(out), *OPTIONS])

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_the_same_command_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at before is not looked at again, and the set is what it would have been, to the byte."""
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "whole"), *OPTIONS])
    killed_at(tmp_path / "in", tmp_path / "out", 35)
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.parts").glob("*.part"))) == 2  # 32 records
    seen: list[int] = []
    read = FolderSource.record
    monkeypatch.setattr(FolderSource, "record", lambda self, index: (seen.append(index), read(self, index))[1])
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *OPTIONS])
    assert seen == list(range(32, 44)) and contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_parts_of_several_machines_make_the_set_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), *OPTIONS]
    for part in ("2/2", "1/2"):
        main([*command, "--part", part])
        assert not (tmp_path / "out").exists()
    assert "part 1 of 2 is done; when all are, the same command without --part makes" in capsys.readouterr().out
    assert len(list((tmp_path / "out.parts").glob("*.part"))) == 3
    main([*command, "--workers", "2"])
    main([str(tmp_path / "in"), "--out", str(tmp_path / "one"), *OPTIONS])
    assert contents(tmp_path / "out") == contents(tmp_path / "one") and not (tmp_path / "out.parts").exists()
    main([str(tmp_path / "in"), "--out", str(tmp_path / "check"), *OPTIONS, "--check"])  # which keeps no parts
    for name in ("report.txt", "report.html"):
        assert contents(tmp_path / "out")[name] == contents(tmp_path / "check")[name]


def test_a_part_does_its_share_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    seen: list[int] = []
    read = FolderSource.record
    monkeypatch.setattr(FolderSource, "record", lambda self, index: (seen.append(index), read(self, index))[1])
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *OPTIONS, "--part", "2/3"])
    assert seen == list(range(16, 32))


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "whole"), *OPTIONS])
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), *OPTIONS]
    main([*command, "--part", "1/1"])
    part = tmp_path / "out.parts/train-000001.part"
    content = bytearray(part.read_bytes())
    content[content.index(b"IHDR") + 20] ^= 1
    part.write_bytes(content)
    main(command)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_of_another_source_or_of_other_options_are_refused(tmp_path: Path) -> None:
    """Which are held out, and how large shards are, may be another: that is decided behind them."""
    (tmp_path / "in").mkdir()
    assorted(tmp_path / "in")
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    main([*command, "--size", "16", "--part", "1/2"])
    said = "out.parts holds parts of another preparing .*: give the same command to go on, or remove that folder to begin anew"
    with pytest.raises(UserError, match=said):
        main([*command, "--size", "17"])
    (tmp_path / "in/00.txt").write_text("another caption")
    with pytest.raises(UserError, match=said):
        main([*command, "--size", "16"])
    (tmp_path / "out.parts/parts.json").unlink()
    with pytest.raises(UserError, match=r"out\.parts is not what this script was preparing"):
        main([*command, "--size", "16"])


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_part_is_a_number_of_a_number(tmp_path: Path, part: str) -> None:
    picture(tmp_path / "in/a.png")
    with pytest.raises(UserError, match="--part must be K/N, K from 1 to N, as in 3/8; got"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), f"--part={part}"])
