"""Damaged and hostile records, checkpoints and pictures: each is read as it was, or refused or counted in so many words."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from home import Home
from PIL import Image
from torch import Tensor
from trial import Trial, script

from ldm import LatentDiffusion
from ldm.app.arguments import convert, prepare_data, train_ldm, train_vae
from ldm.checkpoints.folder import MANIFEST
from ldm.checkpoints.model import load_latent_diffusion
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.images import decode_array, decode_image, decode_mask, image_tensor
from ldm.data.open import open_dataset
from ldm.data.sources.shards import open_indexed
from ldm.interop.importing import import_checkpoint

CPU = torch.device("cpu")


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit of it changed."""
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def mangled(content: bytes, draw: random.Random) -> bytes:
    """Changed in one of the ways in which files go wrong."""
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice((1, 2, 4, 16, 256)))
    ways: list[Callable[[], bytes]] = [
        lambda: flipped(content, draw),
        lambda: content[:start],
        lambda: content[:start] + bytes(stop - start) + content[stop:],
        lambda: content[:start] + b"\xff" * (stop - start) + content[stop:],
        lambda: content[:start] + draw.randbytes(stop - start) + content[stop:],
        lambda: content[:start] + content[stop:],
        lambda: content[:start] + content[start:stop] * 3 + content[stop:],
    ]
    early = draw.random() < 0.5 and len(content) > 64  # headers are where a reader is hurt
    return mangled(content[:64], draw) + content[64:] if early else draw.choice(ways)()


# ---- records


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
            source, told = open_indexed(out, "train"), 0
            for number, record in enumerate(known):
                try:
                    if source.record(number) != record:
                        return f"{record.key} comes in changed"
                except UserError:
                    told += 1
            return "told" if told else "right"
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
        return "told" if lost == ["b"] else "right" if "b" in seen and not lost else f"{lost} are lost"

    return Trial(name, check)


# ---- checkpoints


def checkpoints(home: Home, damaged: int, forged: int, archives: int) -> list[Trial]:
    """Changed files of a checkpoint; checkpoints whose manifest was made to fit the change; flipped bits in a `.ckpt`."""
    found = [_damaged_checkpoint(home, seed) for seed in range(damaged)] + [_forged_checkpoint(home, seed) for seed in range(forged)]
    run, archive = _exported(home)
    return found + [_damaged_archive(home, run / "checkpoint", archive, seed) for seed in range(archives)]


def _exported(home: Home) -> tuple[Path, Path]:
    """A run of a model that CompVis's code could open, and its `.ckpt`."""
    stage, run, archive = (home.scratch / name for name in ("stage", "plain", "model.ckpt"))
    wide, once = "channels=64", "train.steps=1"
    plain = ["conditioning={}", *(f"denoiser.{key}=null" for key in ("vector_width", "context_width")), "denoiser.transformer_depth=0"]
    plain += ["prediction=eps", "weighting=constant", f"first_stage.checkpoint={stage}/checkpoint"]
    for main, words in (
        (train_vae.main, ["--config", str(home.vae), "--run-dir", str(stage), f"first_stage.{wide}", once]),
        (
            train_ldm.main,
            [
                "--config",
                str(home.ldm),
                "--run-dir",
                str(run),
                f"first_stage.checkpoint={stage}/checkpoint",
                f"denoiser.{wide}",
                once,
                *plain,
            ],
        ),
        (convert.main, ["export", str(run / "checkpoint"), "--to", "compvis", "--out", str(archive)]),
    ):
        log = home.scratch / "export.log"
        assert script(main, words, log) == 0, log.read_text()
    return run, archive


def _weights(folder: Path) -> dict[str, Tensor]:
    loaded = load_latent_diffusion(folder, CPU)
    modules = {"network": loaded.network, "conditioners": loaded.conditioners, "first_stage": loaded.first_stage}
    return {f"{part}.{key}": value for part, module in modules.items() for key, value in module.state_dict().items()}


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _copy(home: Home, name: str) -> Path:
    copy = home.scratch / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home.ldm_run / "checkpoint", copy)
    return copy


def _damaged_checkpoint(home: Home, seed: int) -> Trial:
    def check() -> str:
        draw, folder = random.Random(seed), _copy(home, "damaged")
        files = [path for path in sorted(folder.iterdir()) if path.name != "README.md"]
        path, other = draw.sample(files, 2)
        match draw.randrange(10):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                content = path.read_bytes()
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)
            case 3:
                path.write_bytes(path.read_bytes() + draw.randbytes(9))
            case _:
                path.write_bytes(mangled(path.read_bytes(), draw))
        return "right" if _alike(_weights(folder), _weights(home.ldm_run / "checkpoint")) else "other weights come in"

    return Trial(f"damaged checkpoint {seed}", check)


BAD_VALUES: tuple[Any, ...] = (
    None, True, [], {}, "", "x", -1, 0, 1, 2**70, -(2**70), 1e308, math.nan, math.inf, "\u0000", "../../x", [[]], {"kind": []}, [0] * 1000,
    "1" * 5000, 3, 0.5, "kl", "unet", {"kind": "identity"}, {"kind": "class_label", "num_classes": 10**9}, 10**12, 10**6,
)  # fmt: skip


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a config, of mappings and lists too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [one for key, value in items for one in ((*path, key), *_leaves(value, (*path, key)))]


def _forged_checkpoint(home: Home, seed: int) -> Trial:
    def check() -> str:
        draw, folder = random.Random(seed), _copy(home, "forged")
        what = _forge_config(folder, draw) if draw.random() < 0.6 else _forge_tensors(folder, draw)
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, about in manifest["files"].items():
            content = (folder / name).read_bytes()
            about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        model = LatentDiffusion.from_pretrained(folder)
        for key, value in _weights(folder).items():
            if value.is_floating_point() and not value.isfinite().all():
                return f"{what}: {key} is not finite"
        images = model.generate(model.inputs({}), model.sampling(num_images=1, steps=2))
        return "right" if images.isfinite().all() else f"{what}: loads, and draws what is not finite"

    return Trial(f"forged checkpoint {seed}", check)


def _forge_config(folder: Path, draw: random.Random) -> str:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *path, last = draw.choice(_leaves(config))
    place: Any = config
    for key in path:
        place = place[key]
    if draw.random() < 0.2 and isinstance(place, dict):
        del place[last]
        value: Any = "gone"
    else:
        value = place[last] = draw.choice(BAD_VALUES)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return f"{'.'.join(map(str, (*path, last)))} = {str(value)[:40]}"


def _forge_tensors(folder: Path, draw: random.Random) -> str:
    from safetensors.torch import load_file, save_file

    path = draw.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    way = draw.choice(("nan", "inf", "shape", "dtype", "gone", "renamed", "more", "huge", "integer", "empty", "header"))
    old = tensors[name]
    match way:
        case "nan" | "inf" | "huge":
            tensors[name] = old.clone()
            tensors[name].view(-1)[draw.randrange(old.numel())] = {"nan": math.nan, "inf": math.inf, "huge": 3e38}[way]
        case "shape":
            tensors[name] = old.reshape(-1)[: max(1, old.numel() // 2)].clone()
        case "dtype":
            tensors[name] = old.to(draw.choice((torch.float16, torch.bfloat16, torch.float64)))
        case "integer":
            tensors[name] = old.to(torch.int64)
        case "empty":
            tensors[name] = torch.empty(0)
        case "gone" | "renamed":
            tensors["another"] = tensors.pop(name)
            if way == "gone":
                del tensors["another"]
        case "more":
            tensors["another"] = torch.zeros(3)
    save_file(tensors, path)
    if way == "header":
        content = path.read_bytes()
        path.write_bytes(
            mangled(content[: 8 + int.from_bytes(content[:8], "little")], draw) + content[8 + int.from_bytes(content[:8], "little") :]
        )
    return f"{path.name} {name} {way}"


def _damaged_archive(home: Home, original: Path, archive: Path, seed: int) -> Trial:
    def check() -> str:
        copy, out = home.scratch / "copy.ckpt", home.scratch / "imported"
        shutil.copy2(archive.with_suffix(".yaml"), copy.with_suffix(".yaml"))
        copy.write_bytes(flipped(archive.read_bytes(), random.Random(seed)))
        shutil.rmtree(out, ignore_errors=True)
        import_checkpoint(copy, out, config=copy.with_suffix(".yaml"), prediction=None, size=None, text_encoder=None)
        return "right" if _alike(_weights(original), _weights(out)) else "other weights come in"

    return Trial(f"bit flip {seed} in a .ckpt", check)


# ---- pictures


def pictures(number: int) -> list[Trial]:
    """Mangled files of every format, decoded."""
    seeds = list(_sound_pictures().items())
    return [_picture(*seeds[seed % len(seeds)], seed) for seed in range(number)]


def _sound_pictures() -> dict[str, bytes]:
    rows, columns = np.mgrid[:24, :32]
    colours = np.stack([rows * 8, columns * 7, (rows + columns) * 4], -1).astype(np.uint8)
    picture, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpg": (picture, "JPEG", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"}),
        "progressive.jpg": (picture, "JPEG", {"progressive": True}),
        "cmyk.jpg": (picture.convert("CMYK"), "JPEG", {}),
        "png": (picture, "PNG", {}),
        "palette.png": (picture.quantize(16), "PNG", {"transparency": 3}),
        "deep.png": (Image.fromarray(colours[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "apng": (picture, "PNG", {"save_all": True, "append_images": [picture.rotate(90)]}),
        "webp": (picture, "WEBP", {}),
        "lossless.webp": (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        "gif": (picture, "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
        "tif": (picture, "TIFF", {}),
        "lzw.tif": (picture, "TIFF", {"compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(colours[..., 0].astype(np.float32) / 255), "TIFF", {}),
        "bmp": (picture, "BMP", {}),
        "ppm": (picture, "PPM", {}),
        "pgm": (grey, "PPM", {}),
        "jp2": (picture, "JPEG2000", {}),
        "tga": (picture, "TGA", {}),
    }  # fmt: skip
    if "AVIF" in Image.SAVE or _can("AVIF"):
        kinds["avif"] = (picture, "AVIF", {})
    found = {}
    for name, (image, kind, options) in kinds.items():
        content = io.BytesIO()
        image.save(content, kind, **options)
        found[name] = content.getvalue()
    stored = io.BytesIO()
    np.save(stored, colours)
    return found | {"npy": stored.getvalue()}


def _can(kind: str) -> bool:
    Image.init()
    return kind in Image.SAVE


def _picture(name: str, sound: bytes, seed: int) -> Trial:
    def check() -> str:
        draw = random.Random(seed)
        content = sound
        for _ in range(draw.choice((1, 1, 2, 8))):
            content = mangled(content, draw) if content else content
        suffix = name.rpartition(".")[2]
        if suffix == "npy":
            image = decode_array(content, name)
        elif draw.random() < 0.2:
            image = decode_mask(content, name)
        else:
            image = image_tensor(decode_image(content, name, suffix=suffix), 3, (255, 255, 255), name)
        return "right" if image.isfinite().all() and image.abs().max() <= 1 else "comes in broken"

    return Trial(f"{name} {seed}", check)
