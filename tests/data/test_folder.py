"""Folders and tables as people have them: every picture and caption is read as it was meant, or told in a line."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.app.arguments.prepare_data import main
from ldm.app.train_classifier import classes_of
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.facts import ATTRIBUTES, BOXES, LABELS
from ldm.data.facts import CAPTIONS as HAS_CAPTIONS
from ldm.data.open import open_dataset
from ldm.data.set_index import Index
from ldm.data.sources import contents
from ldm.data.sources.folder import FolderSource
from ldm.data.sources.shards import open_indexed, open_tars

CAPTIONS = {"a.png": ("a cat",), "b.png": ("a dog",)}


def draw(folder: Path, *names: str | bytes, suffix: str = "PNG") -> Path:
    """Pictures, each of another colour."""
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 40 + len(names), 80)).save(str(path), suffix)
    return folder


def captions(source: FolderSource) -> dict[str, tuple[str, ...]]:
    return {record.place: record.captions for record in map(source.record, range(len(source)))}


def told(source: FolderSource) -> str:
    return "\n".join(finding.line() for finding in source.findings)


# ---- tables

TABLES: dict[str, bytes] = {
    "plain": b"file,caption\na.png,a cat\nb.png,a dog\n",
    "semicolon": b"file;caption\r\na.png;a cat\r\nb.png;a dog\r\n",
    "tab": b"file\tcaption\na.png\ta cat\nb.png\ta dog\n",
    "bar": b"file|caption\na.png|a cat\nb.png|a dog\n",
    "Excel's own": b"sep=;\r\nfile;caption\r\na.png;a cat\r\nb.png;a dog\r\n",
    "mark and more columns": "\ufeffid,file,caption,tags\r\n1,a.png,a cat,\r\n2,b.png,a dog,\r\n".encode(),
    "spaces": b" file , caption\na.png, a cat \n b.png , a dog\n\n",
    "capitals": b"File,CAPTION\na.png,a cat\nb.png,a dog\n",
    "other names": b"text,file_name\na cat,a.png\na dog,b.png\n",
    "an index column": b",file,caption\n0,a.png,a cat\n1,b.png,a dog\n",
    "trailing delimiters": b"file,caption,,\na.png,a cat,,\nb.png,a dog,,\n",
    "old Macintosh lines": b"file,caption\ra.png,a cat\rb.png,a dog\r",
    "UTF-16": "file,caption\na.png,a cat\nb.png,a dog\n".encode("utf-16"),
    "UTF-16 without a mark": "file,caption\na.png,a cat\nb.png,a dog\n".encode("utf-16-le"),
    "backslashes and dots": b"file,caption\n.\\a.png,a cat\n./b.png,a dog\n",
    "no suffix": b"file,caption\na,a cat\nb,a dog\n",
    "other capitals": b"file,caption\nA.PNG,a cat\nB.png,a dog\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, table: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.csv").write_bytes(TABLES[table])
    source = FolderSource(tmp_path)
    assert captions(source) == CAPTIONS and not source.findings
    assert all(source.record(i).attributes in ({}, {"id": str(i + 1)}) for i in range(2))


JSONS: dict[str, str] = {
    "lines": '{"file_name": "a.png", "text": "a cat"}\n\n{"file_name": "b.png", "text": ["a dog"], "score": NaN}\n',
    "an array": '[{"file": "a.png", "caption": "a cat"},\n {"file": "b.png", "caption": "a dog"}]',
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("table", JSONS)
def test_a_json_table_is_read(tmp_path: Path, table: str, suffix: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / f"metadata.{suffix}").write_text(JSONS[table])
    assert captions(FolderSource(tmp_path)) == CAPTIONS


def test_several_captions(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png", "text": ["a cat", "a grey cat"]}\n{"file": "a.png", "text": "asleep"}\n')
    assert captions(FolderSource(tmp_path)) == {"a.png": ("a cat", "a grey cat", "asleep")}


@pytest.mark.parametrize("header, row", [("file,caption", "a.png,a cat, on a sofa"), ("caption,file", "a cat, on a sofa,a.png")])
def test_of_two_columns_the_caption_may_have_commas(tmp_path: Path, header: str, row: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text(f"{header}\n{row}\n")
    assert captions(FolderSource(tmp_path)) == {"a.png": ("a cat, on a sofa",)}


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "commas among three columns": ("csv", b"file,caption,age\na.png,a cat,3\nb.png,a cat, old,4\n", "line 3: has 4 cells and the header 3"),
    "cp1252": ("csv", b"file,caption\na.png,caf\xe9\n", r"line 2: not UTF-8 \(byte 0xe9\); .* --encoding cp1252"),
    "an open quote": ("csv", b'file,caption\na.png,"a cat\nb.png,a dog\n', "line 2: cannot be read as CSV"),
    "a column twice": ("csv", b"file,caption,caption\na.png,a,b\n", "the column 'caption' twice"),
    "no caption": ("csv", b"file,words\na.png,a\n", "its columns are file, words"),
    "nothing": ("csv", b"", "has no row of a picture"),
    "a header alone": ("csv", b"file,caption\n", "has no row of a picture"),
    "a key twice": ("jsonl", b'{"file": "a.png", "text": "a", "text": "b"}\n', "line 1: .*'text' is there twice"),
    "a quote that swallows rows": (
        "csv",
        b'file,caption\na.png,"a cat\nb.png,a dog\nc.png,a pipe of 12"\n',
        "line 2: a quoted text goes on over line 3",
    ),
    "a zero byte": ("csv", b"file,caption\na.png,a\0cat\n", "line 2: has a zero byte"),
    "a nested object": (
        "jsonl",
        b'{"file": "b.png", "text": "a"}\n{"file": "a.png", "text": {"en": "a cat"}}\n',
        "line 2: .* text or a list",
    ),
    "not JSON": ("jsonl", b'{"file": "a.png", "text": "a"}\n{"file":\n', "line 2: not JSON"),
    "half a character": ("jsonl", b'{"file": "a.png", "text": "\\ud800"}\n', "line 1: has half of a character"),
    "deep": ("jsonl", b"[" * 100_000, "not JSON|cannot be read as JSON"),
    "no file of the folder": ("csv", b"file,caption\n/data/x/a.png,a cat\n", "names no picture"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    suffix, content, words = REFUSED[case]
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / f"metadata.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=words):
        FolderSource(tmp_path)


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "in/captions.csv").write_bytes("file,caption\na.png,un café\nb.png,\u201chi\u201d\n".encode("cp1252"))
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--encoding", "cp1252"])
    source = open_indexed(tmp_path / "out", "train")
    assert [source.record(i).captions for i in range(2)] == [("un café",), ("\u201chi\u201d",)]
    with pytest.raises(UserError, match="no such encoding"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--encoding", "cp12520"])


def test_absolute_paths_in_the_folder_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "real", "a.png", "sub/b.png")
    os.symlink(tmp_path / "real", tmp_path / "link")
    (tmp_path / "real/captions.csv").write_text(f"file,caption\n{tmp_path}/link/a.png,a cat\n{tmp_path}/real/sub/b.png,a dog\n")
    assert captions(FolderSource(tmp_path / "link")) == {"a.png": ("a cat",), "sub/b.png": ("a dog",)}


def test_rows_without_a_picture_and_pictures_without_a_row_are_told(tmp_path: Path) -> None:
    draw(tmp_path, "cats/1.png", "dogs/1.png", "dogs/2.png")
    (tmp_path / "captions.csv").write_text("file,caption\n1.png,a cat\ndogs/2.png,a dog\nfox.png,a fox\n")
    source = FolderSource(tmp_path)
    assert captions(source) == {"cats/1.png": (), "dogs/1.png": (), "dogs/2.png": ("a dog",)}
    assert told(source).splitlines() == [
        "rows of a table fit no picture, passed over: 1 ('fox.png' (line 4))",
        "rows of a table fit several pictures, passed over: 1 ('1.png' (line 2))",
        "pictures without a caption, trained as unconditional: 2 (cats/1.png, dogs/1.png)",
    ]


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    draw(tmp_path, "cafe\u0301.png", "b.png")  # as macOS writes it
    (tmp_path / "captions.csv").write_text("file,caption\ncaf\u00e9.png,a cat\nb.png,a dog\n", encoding="utf-8")
    assert list(captions(FolderSource(tmp_path)).values()) == [("a dog",), ("a cat",)]


def test_an_object_of_captions_by_file_is_read(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.json").write_text('{\n "a.png": "a cat",\n "b.png": ["a dog"]\n}')
    assert captions(FolderSource(tmp_path)) == CAPTIONS


def test_lines_of_json_may_end_in_any_way(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.jsonl").write_bytes(b'{"file": "a.png", "caption": "a cat"}\r{"file": "b.png", "caption": "a dog"}\r\n')
    assert captions(FolderSource(tmp_path)) == CAPTIONS


def test_a_resembling_name_adds_nothing_to_a_picture_that_is_named_in_full(tmp_path: Path) -> None:
    draw(tmp_path, "sub/a.png", "b.png")
    (tmp_path / "captions.csv").write_text("file,caption\nsub/a.png,a cat\na.png,one that is gone\nb.png,a dog\nB.PNG,a fox\nb,an owl\n")
    source = FolderSource(tmp_path)
    assert captions(source) == {"sub/a.png": ("a cat",), "b.png": ("a dog",)}
    assert "rows of a table fit no picture, passed over: 3 ('a.png' (line 3), 'B.PNG' (line 5), ...)" in told(source)


def test_what_of_tables_and_texts_is_not_read_is_told(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.csv").write_text("file,caption,label,text,age\na.png,a cat,3,more,nan\n")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png", "text": "a cat"}\n')
    for name in ("a.txt", "b.txt", "b.caption"):
        (tmp_path / name).write_text("a dog")
    source = FolderSource(tmp_path)
    assert captions(source) == CAPTIONS and source.record(0).attributes == {}
    assert told(source).splitlines() == [
        "columns of a table that are not read: 2 (label of captions.csv, text of captions.csv)",
        "tables that are not read, since another is: 1 (metadata.jsonl)",
        "texts beside pictures that are not read, since a table or another text has their captions: 2 (a.txt, b.caption)",
    ]


@pytest.mark.parametrize("encoding", ["hex", "", "undefined", "cp12520"])
def test_only_encodings_of_texts_are_taken(tmp_path: Path, encoding: str) -> None:
    draw(tmp_path / "in", "a.png")
    with pytest.raises(UserError, match="no such encoding"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--encoding", encoding])


# ---- texts beside pictures


def test_only_the_ends_of_lines_end_a_caption(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one\u2028still one\x0b\x85\ntwo\rthree", newline="")
    assert captions(FolderSource(tmp_path)) == {"a.png": ("one\u2028still one", "two", "three")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_a_text_beside_a_picture(tmp_path: Path, suffix: str, encoding: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / f"a{suffix}").write_bytes("a red heart\r\nun cœur\r\n".encode(encoding))
    assert captions(FolderSource(tmp_path)) == {"a.png": ("a red heart", "un cœur")}


def test_a_text_of_another_encoding_loses_one_picture_by_name(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(b"a dog\x92s bone")
    source = FolderSource(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt, line 1: not UTF-8 \(byte 0x92\).*--encoding cp1252"):
        source.record(0)
    assert source.record(1).captions == ()


def test_files_that_belong_to_no_picture_are_told_by_kind(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    for name in ("a.txt", "notes.txt", "a.mp4", "b.mp4", "c.mp4", "LICENSE"):
        (tmp_path / name).write_text("x")
    assert told(FolderSource(tmp_path)).splitlines() == [
        ".mp4 files, which are no pictures and belong to none: 3 (a.mp4, b.mp4, ...)",
        ".txt files, which are no pictures and belong to none: 1 (notes.txt)",
        "files without a suffix, which are no pictures and belong to none: 1 (LICENSE)",
    ]


# ---- files and folders


def test_every_file_is_a_record_under_its_own_key(tmp_path: Path) -> None:
    """A key of one file is not what the key of another is made into."""
    names = (
        "cat-2.png",
        "cat.png",
        "cat.jpg",
        "cat-2-2.png",
        "猫.png",
        "犬.png",
        "a b.png",
        "a_b.png",
        f"{'x' * 90}1.png",
        f"{'x' * 90}2.png",
    )
    draw(tmp_path / "in", *names)
    table = "".join(f"{name},of {name}\n" for name in names)
    (tmp_path / "in/captions.csv").write_text(f"file,caption\n{table}", encoding="utf-8")
    folder = FolderSource(tmp_path / "in")
    assert len({folder.key(i) for i in range(len(folder))}) == len(names)
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    source = open_indexed(tmp_path / "out", "train")
    records = [source.record(i) for i in range(len(source))]
    assert {record.place: record.captions for record in records} == {name: (f"of {name}",) for name in names}
    assert len({record.key for record in records}) == len(names) and len({record.image for record in records}) == len(names)


def test_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "in", b"caf\xe9/0.png", b"caf\xe9/1.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9")) / "1.png").write_bytes(b"no picture")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert open_indexed(tmp_path / "out", "train").label_names == ("café",)
    assert "\n  café/1.png: not a picture" in capsys.readouterr().out


def test_links_are_followed_and_what_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    store = draw(tmp_path / "store", "1.png", "2.png")
    draw(tmp_path / "in", "cats/1.png")
    os.symlink(store, tmp_path / "in/dogs")
    os.symlink(tmp_path / "in/cats/1.png", tmp_path / "in/a.png")  # before the file it leads to
    os.symlink(store / "1.png", tmp_path / "in/dogs2.png")
    os.symlink(tmp_path / "in", tmp_path / "in/cats/up")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "in/b.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    source = FolderSource(tmp_path / "in")
    assert [source.record(i).place for i in range(len(source))] == ["cats/1.png", "dogs/1.png", "dogs/2.png"]
    assert source.label_names == ("cats", "dogs")
    lines = told(source)
    for line in (
        "links to a picture that is there already, taken once: 2 (a.png, dogs2.png)",
        "links back to a folder they lie in, not followed: 1 (cats/up)",
        "links that lead nowhere: 1 (b.png)",
        "pipes, sockets and devices, passed over: 1 (pipe.png)",
    ):
        assert line in lines


def test_pictures_may_share_a_text_a_mask_and_a_table(tmp_path: Path) -> None:
    draw(tmp_path, "train/a.png", "train/b.png", "val/c.png", "store/m.png")
    (tmp_path / "train/a.txt").write_text("a cat")
    (tmp_path / "train/captions.csv").write_text("file,caption\na.png,a cat\nc.png,a fox\n")
    os.symlink(tmp_path / "train/a.txt", tmp_path / "train/b.txt")
    os.symlink(tmp_path / "train/captions.csv", tmp_path / "val/captions.csv")
    (tmp_path / "masks/train").mkdir(parents=True)
    for name in ("a", "b"):
        os.symlink(tmp_path / "store/m.png", tmp_path / f"masks/train/{name}.png")
    train, val = FolderSource(tmp_path), FolderSource(tmp_path, "val")
    assert captions(train) == {"train/a.png": ("a cat",), "train/b.png": ("a cat",)} and captions(val) == {"val/c.png": ("a fox",)}
    assert [train.record(i).mask == (tmp_path / "store/m.png").read_bytes() for i in range(2)] == [True, True]


def test_folders_that_link_to_each_other_end_soon(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(12)]
    draw(tmp_path, *(f"{name}/a.png" for name in names))
    for one in names:
        for other in names:
            os.symlink(tmp_path / other, tmp_path / one / f"to-{other}")
    source = FolderSource(tmp_path)
    assert len(source) == 12 and "links to a folder that 16 others lead to, not followed" in told(source)
    assert sum(len(finding.names) for finding in source.findings) <= 12 * 16 * 12


def test_classes_may_be_called_as_our_own_folders(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("boxes", "bottles", "maps") for i in range(2)]
    source = FolderSource(draw(tmp_path, *names))
    assert source.label_names == ("bottles", "boxes", "maps") and len(source) == 6
    assert not source.has_maps and not source.has_boxes


def test_masks_that_mirror_pictures_are_masks_and_the_others_are_told(tmp_path: Path) -> None:
    source = FolderSource(draw(tmp_path, "cats/1.png", "masks/cats/1.png", "masks/cats/9.png", "maps/1.png"))
    assert source.has_masks and source.record(0).mask == (tmp_path / "masks/cats/1.png").read_bytes()
    assert source.label_names == ("cats", "maps")
    assert "files in masks that mirror no picture's path: 1 (masks/cats/9.png)" in told(source)


def test_masks_in_any_capitals_and_of_the_pictures_own_suffix_first(tmp_path: Path) -> None:
    draw(tmp_path, "cat.jpg", "cat.png", "Masks/cat.jpg", "Masks/cat.png", "Masks/dog.png", "dog.gif")
    source = FolderSource(tmp_path)
    own = {source.record(i).place: source.record(i).mask for i in range(len(source))}
    assert own == {name: (tmp_path / "Masks" / name.replace("gif", "png")).read_bytes() for name in ("cat.jpg", "cat.png", "dog.gif")}
    assert not source.findings


def test_a_tar_among_pictures_is_a_stranger_and_tars_alone_are_shards(tmp_path: Path) -> None:
    shard(draw(tmp_path / "mixed", "a.png", "b.png") / "backup.tar", [b"0"])
    assert open_dataset(DataConfig(train=str(tmp_path / "mixed"), size=8), "train", 0).count == 2
    assert ".tar files, which are no pictures and belong to none: 1 (backup.tar)" in told(FolderSource(tmp_path / "mixed"))
    (tmp_path / "alone").mkdir()
    shard(tmp_path / "alone/S.TAR", [b"0"] * 3)
    assert open_dataset(DataConfig(train=str(tmp_path / "alone"), size=8), "train", 0).count == 3


def test_pictures_outside_of_splits_are_told_once(tmp_path: Path) -> None:
    lines = told(FolderSource(draw(tmp_path, "train/0.png", "val/1.png", "cats/2.png"))).splitlines()
    assert lines == ["pictures outside of train, val, passed over: 1 (cats/2.png)"]


SPLITS: dict[str, tuple[tuple[str, ...], dict[str, list[str]]]] = {
    "three": (("train/0.png", "validation/1.png", "test/2.png"), {"train": ["train/0.png"], "val": ["validation/1.png"]}),
    "with classes": (("train/a/0.png", "dev/b/1.png"), {"train": ["train/a/0.png"], "val": ["dev/b/1.png"]}),
    "one": (("train/0.png",), {"train": ["train/0.png"], "val": []}),
    "capitals": (("Train/0.png", "Val/1.png"), {"train": ["Train/0.png"], "val": ["Val/1.png"]}),
    "classes": (("train/0.png", "plane/1.png"), {"train": ["plane/1.png", "train/0.png"], "val": []}),
}


@pytest.mark.parametrize("case", SPLITS)
def test_split_folders(tmp_path: Path, case: str) -> None:
    names, expected = SPLITS[case]
    draw(tmp_path, *names)
    for split, places in expected.items():
        if places:
            source = FolderSource(tmp_path, split)
            assert [source.record(i).place for i in range(len(source))] == places
            assert source.label_names == {"with classes": ("a", "b"), "classes": ("plane", "train")}.get(case, ())
        else:
            with pytest.raises(UserError, match="has no held-out split"):
                FolderSource(tmp_path, split)


def test_a_folder_with_splits_trains_on_one_and_holds_out_the_other(tmp_path: Path) -> None:
    draw(tmp_path / "in", "train/0.png", "train/1.png", "val/0.png", "test/0.png")
    for split in ("train", "val", "test"):
        (tmp_path / f"in/{split}/metadata.csv").write_text(f"file_name,text\n0.png,{split} 0\n1.png,{split} 1\n")
    config = DataConfig(train=str(tmp_path / "in"), val=str(tmp_path / "in"), size=8)
    train, val = (open_dataset(config, split, 0) for split in ("train", "val"))  # type: ignore[arg-type]
    assert [sample.captions for sample in train.some(None)] == [("train 0",), ("train 1",)]
    assert [sample.captions for sample in val.some(None)] == [("val 0",)]
    assert not train.facts.label_names
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert [len(open_indexed(tmp_path / "out", split)) for split in ("train", "val")] == [2, 1]


def test_pictures_outside_of_the_splits_are_told(tmp_path: Path) -> None:
    source = FolderSource(draw(tmp_path, "train/0.png", "test/1.png", "extra/2.png", "3.png"))
    assert len(source) == 1
    assert "pictures outside of test, train, passed over: 2 (3.png, extra/2.png)" in told(source)
    assert "pictures of the test split, kept apart: 1 (test/1.png)" in told(source)


def test_identical_pictures_fall_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    for i in (9, 10, 11):
        (tmp_path / f"in/{i}.png").write_bytes((tmp_path / "in/3.png").read_bytes())
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--val-every", "4"])
    images = [
        {source.record(i).image for i in range(len(source))} for source in (open_indexed(tmp_path / "out", s) for s in ("train", "val"))
    ]
    assert not images[0] & images[1]
    assert "groups of identical pictures: 1 (" in capsys.readouterr().out


# ---- what a folder is


def same(folder: Path) -> str:
    return FolderSource(folder).digest


CHANGES: dict[str, Callable[[Path], object]] = {
    "a picture": lambda folder: draw(folder, "x.png", "a.png"),
    "its caption": lambda folder: (folder / "b.txt").write_text("a dog"),
    "the table": lambda folder: (folder / "captions.csv").write_text("file,caption\na.png,a fox\n"),
    "a mask": lambda folder: draw(folder, "x.png", "masks/a.png"),
    "a name": lambda folder: (folder / "b.png").rename(folder / "c.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copied_folder_is_the_same_data_and_a_changed_one_is_not(tmp_path: Path, change: str) -> None:
    draw(tmp_path / "in", "a.png", "b.png", "masks/a.png")
    (tmp_path / "in/b.txt").write_text("a cat")
    (tmp_path / "in/captions.csv").write_text("file,caption\na.png,a cat\n")
    before = same(tmp_path / "in")
    copy = tmp_path / "copy"
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(tmp_path / "in")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, ns=(1, 1))
    assert same(copy) == before
    CHANGES[change](copy)
    assert same(copy) != before


def test_files_are_read_once_for_their_checksums_and_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in", "a.png")
    before = same(tmp_path / "in")
    monkeypatch.setattr(contents, "_of_file", lambda path: pytest.fail(f"{path} is read again"))
    assert same(tmp_path / "in") == before
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(contents, "cache_folder", lambda name: tmp_path / "file" / name)
    assert same(tmp_path / "in") == before
    assert "checksums could not be kept" in capsys.readouterr().out


def test_a_prepared_folder_copied_elsewhere_is_the_same_data_and_a_flipped_bit_is_told(tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png", "b.png")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "one")])
    main([str(tmp_path / "in"), "--out", str(tmp_path / "two")])
    one, two = (open_indexed(tmp_path / name, "train") for name in ("one", "two"))
    assert one.digest == two.digest
    shard = next((tmp_path / "two").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    member = Index.read(tmp_path / "two").splits["train"].shards[0].open_index(tmp_path / "two")[0].members[0]
    content[member.offset + member.size // 2] ^= 1
    shard.write_bytes(content)
    damaged = open_indexed(tmp_path / "two", "train")
    with pytest.raises(UserError, match=f"^a: its {member.suffix} in .* is not what was written there"):
        damaged.record(0)
    assert damaged.record(1).image == one.record(1).image


@pytest.mark.parametrize("content", [b'{"pages": []}', b'{"splits": {}}', b"[1]", b"not json", b"[" * 100_000])
def test_an_index_json_of_something_else_is_no_index(tmp_path: Path, content: bytes) -> None:
    draw(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "in/index.json").write_bytes(content)
    assert open_dataset(DataConfig(train=str(tmp_path / "in"), size=8), "train", 0).count == 2


# ---- labels that are numbers


def shard(path: Path, labels: list[bytes], suffix: str = "cls") -> Path:
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(buffer, "PNG")
            for name, content in ((f"k{number:03d}.png", buffer.getvalue()), (f"k{number:03d}.{suffix}", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("labels, first", [([b"1", b"2", b"3"] * 3, "k002"), ([b"0", b"1", b"2"] * 60 + [b"3"] + [b"0"] * 9, "k180")])
def test_a_label_beyond_the_classes_is_named_before_the_first_step(tmp_path: Path, labels: list[bytes], first: str) -> None:
    data = open_dataset(DataConfig(train=str(shard(tmp_path / "a.tar", labels)), size=8), "train", 0)
    with pytest.raises(UserError, match=f"^{first}: label 3 is outside 0 to 2; classes are counted from 0"):
        classes_of(data, None, 3)
    part = ClassLabelConfig(num_classes=3).build(context_width=None, latent_channels=4)
    with pytest.raises(UserError, match=f"^{first}: label 3"):
        part.check(data.facts)
    part = ClassLabelConfig(num_classes=4).build(context_width=None, latent_channels=4)
    part.check(data.facts)
    with pytest.raises(UserError, match="numbers without names, the largest is 3: set its num_classes"):
        ClassLabelConfig().fitted(data.facts)


def test_labels_in_json_are_seen_too(tmp_path: Path) -> None:
    data = open_dataset(DataConfig(train=str(shard(tmp_path / "a.tar", [b'{"label": 0}', b'{"label": 7}'], "json")), size=8), "train", 0)
    assert data.facts.scan_labels() == {0: "k000", 7: "k001"}


def test_where_names_are_numbers_a_number_is_a_name() -> None:
    part = ClassLabelConfig(num_classes=3, names=("1", "10", "2")).build(context_width=None, latent_channels=4)
    assert [part.index_of(label) for label in (1, "10", "2")] == [0, 1, 2]
    with pytest.raises(UserError, match="label '0'"):
        part.index_of(0)


# ---- shards without an index


def test_shards_of_other_makers(tmp_path: Path) -> None:
    """Names with dots, several members of one role, members of one record far apart, a caption with a mark."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    members = [
        *((f"photo.v1.{i}.jpg", image.getvalue()) for i in range(2)),
        *((f"photo.v1.{i}.txt", f"\ufeffcaption {i}".encode()) for i in range(2)),
        *(("k.image.jpg", image.getvalue()), ("k.text.txt", b"a cat"), ("._k.jpg", b"")),
    ]
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_tars([tmp_path / "in/a.tar"])
    assert {source.key(i): source.record(i).captions for i in range(len(source))} == {
        "photo.v1.0": ("caption 0",),
        "photo.v1.1": ("caption 1",),
        "k": ("a cat",),
    }
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert len(open_indexed(tmp_path / "out", "train")) == 3


def test_a_cut_shard_without_an_index_is_refused_and_can_be_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows how many records it had; a share of them says nothing."""
    (tmp_path / "in").mkdir()
    path = shard(tmp_path / "in/a.tar", [b"0"] * 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4 // 512 * 512])
    with pytest.raises(UserError, match=r"a\.tar: breaks off after \d+ records .*how many it had is not known"):
        open_dataset(DataConfig(train=str(path), size=8, max_lost=0.5), "train", 0)
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "breaks off after" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["hard link", "doubled", "no suffix", "two tars in one", "compressed"])
def test_odd_tars_lose_nothing_without_a_word(tmp_path: Path, how: str) -> None:
    path = shard(tmp_path / "a.tar", [b"0", b"1"])
    if how == "two tars in one":
        path.write_bytes(path.read_bytes() + shard(tmp_path / "b.tar", [b"2"]).read_bytes())
    elif how == "compressed":
        path.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo({"hard link": "h.png", "doubled": "k000.PNG", "no suffix": "picture"}[how])
            if how == "hard link":
                info.type, info.linkname = tarfile.LNKTYPE, "k000.png"
            tar.addfile(info)
    if how in ("two tars in one", "compressed"):
        with pytest.raises(
            UserError, match="more follows behind its end mark" if how == "two tars in one" else "it is compressed: unpack it"
        ):
            open_tars([path])
        return
    source = open_tars([path])
    if how == "hard link":
        assert source.record(2).image == source.record(0).image
        assert [finding.what for finding in source.findings] == ["pictures without a label, trained as unconditional"]
    else:
        assert source.findings[0].line().startswith("members of shards that are of no record, or there twice, passed over: 1 (")


def test_labels_of_texts_and_numbers_are_names(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [b'{"label": "cat"}', b'{"label": 1}', b'{"label": 2.0}'], "json")
    data = open_dataset(DataConfig(train=str(path), size=8), "train", 0)
    assert data.facts.label_names == ("1", "2", "cat")
    assert [sample.label for sample in data.some(None)] == [2, 0, 1]


def test_what_only_a_late_record_has_is_seen(tmp_path: Path) -> None:
    late = [b"{}"] * 20 + [b'{"caption": "a cat", "label": 0, "age": 3, "boxes": [[0, 0, 0, 1, 1]]}']
    data = open_dataset(DataConfig(train=str(shard(tmp_path / "a.tar", late, "json")), size=8), "train", 0)
    assert {HAS_CAPTIONS, LABELS, ATTRIBUTES, BOXES} <= data.facts.has


# ---- the report


def test_a_report_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    draw(tmp_path / "in", "a.png")
    (tmp_path / "report.txt").write_text("a year's work")
    with pytest.raises(UserError, match="report.txt is not from this tool"):
        main([str(tmp_path / "in"), "--check", "--out", str(tmp_path)])
    assert (tmp_path / "report.txt").read_text() == "a year's work" and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--val-every 10", "holds out none of 2 pictures"),
        ("--levels nan 5", "--levels must be two numbers, black before white"),
        ("--levels 5 5", "--levels must be two numbers, black before white"),
    ],
)
def test_what_would_leave_nothing_to_hold_out_or_to_see_is_refused(tmp_path: Path, words: str, said: str) -> None:
    draw(tmp_path / "in", "a.png", "b.png")
    with pytest.raises(UserError, match=said):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *words.split()])
    assert not (tmp_path / "out").exists()


def test_check_writes_a_report_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos", "cats/1.png", "cats/2.png", "dogs/1.jpg", "dogs/<b>.png")
    (tmp_path / "photos/cats/1.txt").write_text("a grey cat")
    (tmp_path / "photos/dogs/3.png").write_bytes(b"no picture")
    (tmp_path / "photos/film.mp4").write_bytes(b"")
    before = sorted(path.name for path in (tmp_path / "photos").rglob("*"))
    main(["photos", "--check"])
    assert sorted(path.name for path in (tmp_path / "photos").rglob("*")) == before
    folder = tmp_path / "outputs/check-photos"
    assert sorted(path.name for path in folder.iterdir()) == [".ldm-written.json", "report.html", "report.txt"]
    text, page = (folder / "report.txt").read_text(), (folder / "report.html").read_text()
    assert text in capsys.readouterr().out
    for line in (
        "pictures: 4 train",
        "classes: 2: cats (2), dogs (2)",
        "captions: 1, 3 to 3 words",
        ".mp4 files",
        "left out: 1\n  dogs/3.png",
    ):
        assert line in text
    assert page.count("data:image/webp;base64,") == 12 and "dogs/&lt;b&gt;.png" in page and "<b>.png" not in page


def test_pictures_that_look_the_same_are_told(tmp_path: Path) -> None:
    drawn = Image.effect_noise((8, 8), 90).convert("RGB").resize((200, 160), Image.Resampling.BICUBIC)
    (tmp_path / "in/val").mkdir(parents=True)
    (tmp_path / "in/train").mkdir()
    drawn.save(tmp_path / "in/train/a.png")
    drawn.resize((120, 96)).save(tmp_path / "in/val/b.jpg", quality=80)
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "in/train/c.png")
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/report.txt").read_text()
    assert "pairs that look almost the same in train and val: 1 (train/a.png ~ val/b.jpg)" in text


def test_folders_that_would_say_something_further_up_are_told(tmp_path: Path) -> None:
    names = ("data/train/a", "data/val/b", "data/train/c", "cats/d", "cats/masks/d", "cats/masks/e", "train/f", "dogs/train/g")
    draw(tmp_path, *(f"{name}.png" for name in names))
    source = FolderSource(tmp_path)
    assert len(source) == 8
    said = told(source)
    assert "pictures in a folder masks or maps that is not at the top, taken as pictures: 1 (cats/masks/d.png)" in said
    assert "splits that are not at the top, no split here; name the folder data: 3 (data/train/a.png, data/train/c.png, ...)" in said
    assert said.count("not at the top") == 2


def test_folders_whose_names_nearly_say_a_split_or_a_role_are_told(tmp_path: Path) -> None:
    draw(tmp_path / "in", "train2017/a.png", "val_images/b.png", "mask/c.png", "trains/d.png", "boxer/e.png")
    line = "folders taken as classes, whose names look like a split's or a role's (train, val, test, masks, maps): 3 (mask, train2017, ...)"
    assert line in told(FolderSource(tmp_path / "in"))
    draw(tmp_path / "sound", "train/cats/a.png", "val/cats/b.png")
    assert told(FolderSource(tmp_path / "sound")) == ""


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sound_png(tmp_path: Path) -> bytes:
    draw(tmp_path, "sound.png")
    content = (tmp_path / "sound.png").read_bytes()
    (tmp_path / "sound.png").unlink()
    return content


def test_captions_that_are_an_object_are_unreadable_in_shards(tmp_path: Path) -> None:
    png = sound_png(tmp_path)
    texts = {"a.json": b'{"caption": {"en": "a cat"}}', "b.json": b'{"caption": ["a"]}'}
    path = tar_of(tmp_path / "a.tar", {"a.png": png, "b.png": png, **texts})
    source = open_tars([path])
    assert source.record(1).captions == ("a",)
    with pytest.raises(UserError, match="a: its text cannot be read: captions must be a text or a list of texts"):
        source.record(0)


def test_losses_of_one_key_in_several_shards_are_counted_apart(tmp_path: Path) -> None:
    png = sound_png(tmp_path)
    for number in range(3):
        tar_of(tmp_path / f"{number}.tar", {"000.png": b"damaged", "001.png": png, f"x{number}.png": png})
    data = open_dataset(DataConfig(train=str(tmp_path), size=8, max_lost=0.4), "train", 0)
    assert len(list(data.some(None))) == 9 and data.unreadable.count == 3
    assert sorted(data.unreadable.records) == [f"000 in {number}.tar" for number in range(3)]
    assert all(reason.startswith(key) for key, reason in data.unreadable.records.items())


def test_splits_may_be_links_into_a_folder_beside_them(tmp_path: Path) -> None:
    draw(tmp_path, *(f"all/{number}.png" for number in range(4)))
    for split, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        (tmp_path / split).mkdir()
        for number in numbers:
            (tmp_path / split / f"{number}.png").symlink_to(tmp_path / f"all/{number}.png")
    source = FolderSource(tmp_path)
    assert [source.record(i).place for i in range(len(source))] == ["train/0.png", "train/1.png", "train/2.png"]
    assert len(FolderSource(tmp_path, "val")) == 1 and "pictures outside of train, val, passed over: 4" in told(source)


def test_what_stands_beside_a_link_to_a_picture_that_is_there_is_told(tmp_path: Path) -> None:
    draw(tmp_path, "store/1.png", "masks/set/1.png", "masks/store/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/1.png").symlink_to(tmp_path / "store/1.png")
    (tmp_path / "set/1.txt").write_text("a disc")
    source = FolderSource(tmp_path)
    said = told(source)
    assert len(source) == 1 and "links to a picture that is there already, taken once: 1 (set/1.png)" in said
    assert ".txt files, which are no pictures and belong to none: 1 (set/1.txt)" in said
    assert "files in masks that mirror no picture's path: 1 (masks/set/1.png)" in said


def test_texts_are_found_in_any_capitals_and_empty_ones_are_told(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "a.TXT").write_text("a disc")
    (tmp_path / "b.txt").write_text("")
    source = FolderSource(tmp_path)
    assert captions(source) == {"a.png": ("a disc",), "b.png": ()}
    assert "pictures without a caption, trained as unconditional: 1 (b.png)" in told(source)


def test_pictures_without_a_label_are_told(tmp_path: Path) -> None:
    png = sound_png(tmp_path)
    labels = {"a": b'{"label": "cat"}', "b": b'{"label": ["cat"]}', "c": b"{}"}
    path = tar_of(tmp_path / "a.tar", {f"{key}.png": png for key in labels} | {f"{key}.json": text for key, text in labels.items()})
    line = open_tars([path]).findings[0].line()
    assert line == "pictures without a label, trained as unconditional: 2 (b, c)"


def test_rows_that_say_other_things_of_one_picture_are_told(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.csv").write_text("file,caption,age\na.png,one,3\na.png,two,4\nb.png,three,5\nb.png,four,5\n")
    assert "the last of which counts: 1 (a.png (line 3))" in told(FolderSource(tmp_path))


def test_words_in_a_column_without_a_name_are_told_and_numbers_are_not(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.csv").write_text("file,caption,\na.png,a cat,and more\nb.png,a dog,7\n")
    assert "columns of a table that are not read: 1 (one without a name of captions.csv)" in told(FolderSource(tmp_path))


def test_an_object_on_one_line_has_captions_by_file(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.json").write_text('{"a.png": "a cat", "b.png": ["a dog", "a pup"]}')
    assert captions(FolderSource(tmp_path)) == {"a.png": ("a cat",), "b.png": ("a dog", "a pup")}


def test_pipes_called_as_our_own_files_keep_nobody_waiting(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    for name in ("index.json", "manifest.json"):
        os.mkfifo(tmp_path / name)
    assert len(open_dataset(DataConfig(train=str(tmp_path), size=8), "train", 0).facts.has) == 1
    os.mkfifo(tmp_path / ".ldm-written.json")
    with pytest.raises(UserError, match="was not made by this script"):
        main([str(draw(tmp_path.parent / "in", "a.png")), "--out", str(tmp_path)])


def test_members_of_shards_that_nobody_reads_are_told(tmp_path: Path) -> None:
    png = sound_png(tmp_path)
    texts = {"a.prompt": b"a cat", "b.prompt": b"a dog", "a.txt": b"a cat"}
    path = tar_of(tmp_path / "a.tar", {"a.png": png, "a.mask.png": png, "b.png": png, **texts})
    (finding,) = open_tars([path]).findings
    assert finding.line() == ".prompt members of shards, which are not read: 2 (a.prompt, b.prompt)"


def test_maps_where_nobody_labelled_are_told_at_training_unless_it_knows(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "maps").mkdir()
    levels = np.zeros((8, 8), np.uint8)
    levels[:2] = 255
    Image.fromarray(levels).save(tmp_path / "maps/a.png")
    for void, is_told in ((None, True), (255, False)):
        data = open_dataset(DataConfig(train=str(tmp_path), size=8, map_void=void), "train", 0)
        assert any("set data.map_void=255" in finding.what for finding in data.findings) == is_told


def test_pictures_that_lack_what_others_have_are_told(tmp_path: Path) -> None:
    source = FolderSource(draw(tmp_path, "a.png", "b.png", "masks/a.png"))
    assert "pictures without a mask, which get an empty one: 1 (b.png)" in told(source) and "without a map" not in told(source)


def test_held_out_pictures_of_a_place_are_counted(tmp_path: Path) -> None:
    draw(tmp_path / "in", "train/a.png", "train/b.png", "val/c.png")
    assert FolderSource(tmp_path / "in").held_out == 1 and FolderSource(tmp_path / "in", "val").held_out == 0
    main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert open_indexed(tmp_path / "out", "train").held_out == 1 and open_indexed(tmp_path / "out", "val").held_out == 0


def test_bare_shards_copied_elsewhere_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    png = sound_png(tmp_path)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        tar_of(tmp_path / name / "a.tar", {"a.png": png, "b.png": png})
    same = [open_tars([tmp_path / name / "a.tar"]).digest for name in ("one", "other")]
    assert same[0] == same[1]
    both = [tmp_path / name / "a.tar" for name in ("one", "other")]
    content = bytearray((tmp_path / "other/a.tar").read_bytes())
    content[600] ^= 1
    (tmp_path / "other/a.tar").write_bytes(content)
    assert open_tars([tmp_path / "other/a.tar"]).digest != same[0]
    assert open_tars(both).digest != open_tars([both[0], both[0]]).digest  # shards of one name in two folders


def test_shards_that_say_they_are_held_out_are_told(tmp_path: Path) -> None:
    for name in ("train-000.tar", "val-000.tar", "valley.tar"):
        tar_of(tmp_path / name, {f"{name[:4]}.png": sound_png(tmp_path)})
    (finding,) = open_dataset(DataConfig(train=str(tmp_path), size=8), "train", 0).findings
    assert finding.what.startswith("shards whose names say that they are held out") and finding.names == ("val-000.tar",)
    for name in ("train-000.tar", "valley.tar"):
        (tmp_path / name).unlink()
    assert open_dataset(DataConfig(train=str(tmp_path), size=8), "train", 0).findings == ()


def test_what_lies_beside_shards_is_told(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"a.png": sound_png(tmp_path)})
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    (tmp_path / "below").mkdir()
    tar_of(tmp_path / "below/c.tar", {"a.png": b"x"})
    data = open_dataset(DataConfig(train=str(tmp_path), size=8), "train", 0)
    assert {finding.line() for finding in data.findings} == {
        ".gz files beside the shards, passed over: 1 (b.tar.gz)",
        ".tar files beside the shards, passed over: 1 (below/c.tar)",
    }
