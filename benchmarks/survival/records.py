"""Flipped bits in a prepared set, and bad records of bare shards: each is read as it was, or counted."""

from __future__ import annotations

import io
import math
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from home import Home
from mangle import flipped, mangled
from PIL import Image
from trial import Trial, script

from ldm.app.arguments import prepare_data
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.data.sources.shards import open_indexed


def records(home: Home, flips: int, bad: int) -> list[Trial]:
    """Flipped bits in a prepared set, and bad records of bare shards."""
    out, log = home.scratch / "set", home.scratch / "set.log"
    assert script(prepare_data.main, [str(home.photos), "--out", str(out)], log) == 0, log.read_text()
    return [_flip(out, seed) for seed in range(flips)] + [_bad_record(home, name, members) for name, members in _bad(home, bad)]


def _flip(out: Path, seed: int) -> Trial:
    def check() -> str:
        shard, original = out / "train-000000.tar", open_indexed(out, "train")
        known = [original.record(number) for number in range(len(original))]
        whole = shard.read_bytes()
        try:
            shard.write_bytes(flipped(whole, random.Random(seed)))
            source, lost = open_indexed(out, "train"), 0
            for number, record in enumerate(known):
                try:
                    if source.record(number) != record:
                        return f"{record.key} comes in changed"
                except UserError:
                    lost += 1
            return "reported" if lost else "right"
        finally:
            shard.write_bytes(whole)

    return Trial(f"bit flip {seed} in a shard", check)


def _png(size: int = 16) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 30)).save(content, "PNG")
    return content.getvalue()


def _npy(header: str, content: bytes = bytes(768)) -> bytes:
    text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def _bad(home: Home, number: int) -> Iterable[tuple[str, dict[str, bytes]]]:
    """(name, members) of records that are wrong in a way of their own, then of mangled ones."""
    labels = ("1e30", "-5", "1e999", "[1]", "9" * 5000, '"\\u0000"')
    captions = ("5", '{"a": 1}', '"\\ud800"', '"' + "a" * 10**6 + '"')
    boxes = ("[[0, 0, 0, Infinity, 1]]", "[[0, NaN, 0, 1, 1]]", "[[1e30, 0, 0, 1, 1]]", "5", "[[0, 1, 0, 0, 1]]", "[[0, 0, 0, 1]]")
    keys = {"label": labels, "captions": captions, "boxes": boxes, "age": ("NaN", "1e400", "{}")}
    meta = ["{", "[]", "null", '"\\ud800"', "[" * 100_000, '{"a":' * 100_000, "\ufeff", "1" * 5000]
    meta += [f'{{"{key}": {value}}}' for key, values in keys.items() for value in values]
    for text in meta:
        yield f"JSON {text[:40]}", {"png": _png(), "json": text.encode()}
    for raw in (b"\xff\xfe\x00", b"\x00", b"\xff" * 50, b"\xfe\xff\x00a", b"caf\xe9", b"", b"\xed\xa0\x80"):
        yield f"text {raw[:8]!r}", {"png": _png(), "txt": raw}
        yield f"number {raw[:8]!r}", {"png": _png(), "cls": raw}
    for text in ("-1", "1e3", "٣", "9" * 30, "9" * 6000, "0x10", "1 2", " 7 ", "7.0", "nan"):
        yield f"number {text[:20]}", {"png": _png(), "cls": text.encode()}
    shapes = (
        "(1000000000000, 1000000, 3)",
        "(16, 16, -3)",
        "(0, 16, 3)",
        "(16,)",
        "()",
        "(16, 16, 3, 2)",
        "(2147483648, 2147483648)",
        "16",
    )
    kinds = ("'<u1'", "'|O'", "'<f2'", "'<c8'", "'<M8[s]'", "'<U8'", "'V8'", "[('a', '<f8')]", "'>i8'", "'nonsense'", "'<f8'", "'?'")
    for shape in shapes:
        yield f"npy of shape {shape}", {"npy": _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")}
    for one in kinds:
        yield f"npy of {one}", {"npy": _npy(f"{{'descr': {one}, 'fortran_order': False, 'shape': (16, 16, 3), }}")}
    for header in ("{", "__import__('os')", "{}", "None", "{'descr': '|u1'}", "("):
        yield f"npy header {header}", {"npy": _npy(header)}
    floats = np.zeros((16, 16, 3), np.float32)
    for value in (math.nan, math.inf, 7.0):
        floats[3, 3] = value
        stored = io.BytesIO()
        np.save(stored, floats)
        yield f"npy with {value}", {"npy": stored.getvalue()}
    for head in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"DDS " + bytes(124),
        b"BLP2" + bytes(60),
        b"\x0a\x05\x01\x08",
        b"II*\x00",
        b"<svg/>",
        b"",
        b"GIF",
    ):
        yield f"picture {head[:10]!r}", {"png": head}
    for name, members in (("another size", {"mask.png": _png(7)}), ("no picture", {"mask.png": b"x"}), ("JPEG", {"map.jpg": _jpeg()})):
        yield f"mask or map of {name}", {"png": _png(), **members}
    yield "two pictures", {"png": _png(), "jpg": _jpeg()}
    sound = {path.suffix[1:]: path.read_bytes() for path in sorted(home.photos.rglob("odd/2.*"))[:2]}
    whole = {"json": b'{"caption": "a", "label": 3, "boxes": [[0, 0, 0, 1, 1]], "age": 5}', "png": _png(), "mask.png": _mask()} | sound
    for seed in range(number):
        draw = random.Random(seed)
        hurt = draw.choice(sorted(whole))
        yield f"mangled {hurt} {seed}", {**whole, hurt: mangled(whole[hurt], draw)}


def _jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (30, 200, 30)).save(content, "JPEG")
    return content.getvalue()


def _mask() -> bytes:
    content = io.BytesIO()
    Image.new("L", (16, 16), 255).save(content, "PNG")
    return content.getvalue()


def _bad_record(home: Home, name: str, members: dict[str, bytes]) -> Trial:
    """Between two good records that have everything."""

    def check() -> str:
        path = home.scratch / "bad.tar"
        good = {"png": _png(), "json": b'{"caption": "good", "label": 3, "boxes": [[0, 0, 0, 1, 1]]}', "mask.png": _mask()}
        with tarfile.open(path, "w") as tar:
            for key, parts in (("a", good), ("b", members), ("c", good)):
                for suffix, content in parts.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        data = open_dataset(DataConfig(train=str(path), size=16, max_lost=0.4), "train", 0)
        seen = {}
        for number in range(3):
            sample = data.sample(number, 0)  # type: ignore[attr-defined]
            if not sample.image.isfinite().all() or sample.image.abs().max() > 1 or not -1 <= sample.label < 1 << 31:
                return "comes in broken"
            if sample.boxes is not None and not ((sample.boxes[:, 1:] >= 0) & (sample.boxes[:, 1:] <= 1)).all():
                return "its boxes come in broken"
            seen[sample.name] = sample
        lost = list(data.unreadable.records)
        names = data.transform.label_names  # numbers are names too, once a label is a text
        if not {"a", "c"} <= set(seen) or seen["a"].caption != "good" or seen["a"].label != (names.index("3") if names else 3):
            return "a good record beside it is not itself"
        return "reported" if lost == ["b"] else "right" if "b" in seen and not lost else f"{lost} are lost"

    return Trial(name, check)
