"""What `make_emoji.py` does: the built-in data set emoji-128 from four npm packages.

Microsoft's own emoji only, one skin tone, no flags; every 10th by code point is held out. The layout map is the Fluent Flat drawing in 16
colours, laid over the 3D picture's bounding box; where the two silhouettes differ too much, there is none.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.core.files import new_folder, write_file
from ldm.core.packages import NpmPackage
from ldm.core.random import generator
from ldm.data.emoji.layout import COLOURS, distance, majority, to_lab
from ldm.data.emoji.styles import EMOJIBASE, STYLES
from ldm.data.emoji.things import DROPPED, GROUPS, article, plain
from ldm.data.record import Record
from ldm.data.set_index import INDEX_NAME, Index
from ldm.data.shards import write_shards

SIZE = 128
PACKAGES = (
    NpmPackage(name="@lobehub/fluent-emoji-3d", version="1.1.0", sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    NpmPackage(
        name="@lobehub/fluent-emoji-flat", version="1.1.0", sha256="8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147"
    ),
    EMOJIBASE,
    STYLES["fluent-flat"].package,
)
SAID_COLOURS = ("black", "white", "red", "orange", "yellow", "brown", "green", "blue", "purple", "pink")
MIN_OVERLAP = 0.8  # intersection over union of the two silhouettes


def check_out(out: Path) -> None:
    """Refuses a folder that no earlier call has written."""
    if out.exists() and not (out / INDEX_NAME).is_file():
        raise UserError(f"{out} is not a data set of this script's, and one would replace it; give --out another folder")


def fetch(cache: Path) -> Path:
    """Downloads the packages into a cache folder, checks their sha256, unpacks them."""
    for package in PACKAGES:
        with tarfile.open(package.fetch(cache)) as tar:
            tar.extractall(cache / package.archive.removesuffix(".tgz"), filter="data")
    return cache


def box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what is opaque."""
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def picture(path: Path) -> Image.Image:
    """The 3D picture at SIZE x SIZE, RGBA; one that is not square is padded."""
    image = Image.open(path, formats=["WEBP"]).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")


def drawing(path: Path, alpha: np.ndarray) -> np.ndarray | None:
    """(4 SIZE, 4 SIZE, 4) uint8 of the flat drawing on the 3D picture's bounding box; None where the silhouettes differ."""
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=512, height=512, skip_system_fonts=True))
    flat = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")
    flat = flat.crop(box(np.asarray(flat)[..., 3] > 127))
    left, top, right, bottom = box(alpha)
    canvas = Image.new("RGBA", (4 * SIZE, 4 * SIZE))
    canvas.paste(flat.resize((4 * (right - left), 4 * (bottom - top)), Image.Resampling.NEAREST), (4 * left, 4 * top))
    laid = np.asarray(canvas)
    seen = np.asarray(canvas.getchannel("A").resize((SIZE, SIZE), Image.Resampling.BOX)) > 127
    overlap = (seen & alpha).sum() / (seen | alpha).sum()
    return laid if overlap >= MIN_OVERLAP else None


def colours_of(laid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct colours (K, 3) of an RGBA picture, and each pixel's number (H W,) among them."""
    packed = laid[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    distinct, number = np.unique(packed.ravel(), return_inverse=True)
    return np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], -1).astype(float), number.ravel()


def palette_of(drawings: list[np.ndarray]) -> np.ndarray:
    """(K, 3) Lab centres: k-means over the drawings' colours, each drawing weighing the same, from COLOURS."""
    points, weights = [], []
    for drawing in drawings:
        seen = drawing[2::8, 2::8]
        colours, number = colours_of(seen[seen[..., 3] > 200][None])
        points.append(to_lab(colours))
        weights.append(np.bincount(number) / max(1, len(number)))
    point, weight = np.concatenate(points), np.concatenate(weights)
    start = to_lab(np.array(list(COLOURS.values()), dtype=float))
    centres = start.copy()
    for _ in range(6):
        nearest = distance(point, centres).argmin(1)
        for k in range(len(centres)):
            share = weight * (nearest == k)
            if share.sum() > 0:  # half-way between the named colour and its points: a centre keeps its name
                centres[k] = 0.5 * start[k] + 0.5 * (point * share[:, None]).sum(0) / share.sum()
    return centres


def layout(laid: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(SIZE, SIZE) uint8 class map by majority of 4x4: 0 = background, 1.. = colours."""
    colours, number = colours_of(laid)
    nearest = distance(to_lab(colours), centres).argmin(1) + 1
    classes = np.where(laid[..., 3] > 127, nearest[number].reshape(laid.shape[:2]), 0)
    return majority(classes, 4)


def captions(name: str, tags: list[str], colour: str | None, key: str) -> tuple[str, ...]:
    """The name, then up to seven other wordings, drawn by key."""
    name = name.replace("“", "").replace("”", "").replace("’", "'")
    spoken = name.replace(": ", ", ") if ":" in name else name
    words = set(name.lower().replace(":", "").split())
    extra = [t for t in tags if t.lower() not in words and t.replace(" ", "").replace("-", "").isalpha() and len(t) > 2]
    draw = generator("emoji-128", key)
    order = [extra[i] for i in torch.randperm(len(extra), generator=draw).tolist()]
    captions = [spoken, article(spoken)]
    if colour and colour not in words and not words & set(COLOURS):
        captions += [f"a {colour} {spoken}" if article(spoken) != spoken else f"{colour} {spoken}"]
    captions += [f"{spoken}, {', '.join(order[i : i + 2])}" for i in range(0, min(4, len(order)), 2)]
    captions += [f"an emoji of {article(spoken)}", f"3D icon, {spoken}"]
    if len(order) >= 2:
        captions += [" ".join(order[-2:]) + " " + spoken.split()[-1] if len(order) == 2 else ", ".join(order[-3:])]
    return tuple(dict.fromkeys(captions))[:8]


def bytes_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def make(source: Path, out: Path) -> None:
    """Writes the whole folder, or nothing."""
    package = {package.archive.removesuffix(".tgz"): source / package.archive.removesuffix(".tgz") / "package" for package in PACKAGES}
    pictures = {plain(p.stem): p for p in package["lobehub-fluent-emoji-3d-1.1.0"].glob("assets/*.webp")}
    drawings = {plain(p.stem): p for p in package["lobehub-fluent-emoji-flat-1.1.0"].glob("assets/*.svg")}
    own = {plain(code) for code in json.loads((package["iconify-json-fluent-emoji-flat-1.2.6"] / "chars.json").read_text())}
    known = json.loads((package["emojibase-data-17.0.0"] / "en/data.json").read_text())
    chosen = {plain(e["hexcode"]): e for e in known if e.get("group") in GROUPS and e["label"] not in DROPPED}
    keys = sorted(own & pictures.keys() & chosen.keys(), key=lambda key: [int(part, 16) for part in key.split("-")])

    images = {key: picture(pictures[key]) for key in tqdm(keys, desc="pictures")}
    alphas = {key: np.asarray(image)[..., 3] > 127 for key, image in images.items()}
    laid = {key: drawing(drawings[key], alphas[key]) for key in tqdm(keys, desc="drawings") if key in drawings}
    laid = {key: d for key, d in laid.items() if d is not None}
    centres = palette_of(list(laid.values()))

    def record(key: str) -> Record:
        entry, map_png, colour = chosen[key], None, None
        if key in laid:
            classes = layout(laid[key], centres)
            map_png = bytes_of(Image.fromarray(classes), format="PNG", optimize=True)
            share = np.bincount(classes[classes > 0], minlength=len(COLOURS) + 1) / max(1, (classes > 0).sum())
            name = list(COLOURS)[int(share.argmax()) - 1].removeprefix("light ").removeprefix("dark ")
            colour = name if share.max() > 0.5 and name in SAID_COLOURS else None
        return Record(
            key=key,
            suffix="webp",
            image=bytes_of(images[key], format="WEBP", quality=90, method=4, use_sharp_yuv=True),
            captions=captions(entry["label"], entry.get("tags", []), colour, key),
            label=GROUPS[entry["group"]],
            mask=bytes_of(Image.fromarray(alphas[key]), format="PNG", optimize=True),
            map=map_png,
        )

    with new_folder(out) as folder:
        splits = {"train": [k for i, k in enumerate(keys) if i % 10 != 9], "val": keys[9::10]}
        shards = {split: write_shards(folder, split, map(record, tqdm(part, desc=split))) for split, part in splits.items()}
        about = {
            "source": [f"{package.name}@{package.version}" for package in PACKAGES],
            "credits": ["Fluent Emoji, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji, MIT"],
            "licence": "MIT, see LICENSE",
            "map_colours": {name: list(rgb) for name, rgb in COLOURS.items()},
        }
        index = Index(splits=shards, label_names=tuple(GROUPS.values()), map_names=("background", *COLOURS), about=about)
        index.write(folder)
        write_file(folder / "LICENSE", LICENSE)
        write_file(folder / "README.md", README.format(count=len(keys), val=len(splits["val"]), maps=len(laid)))


MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
LICENSE = f"""The pictures, masks and layout maps are made from Fluent Emoji:

MIT License

Copyright (c) Microsoft Corporation.

{MIT}
They were taken from the npm packages of LobeHub, under the same licence:

Copyright (c) 2023 LobeHub

The names, keywords and groups are from emojibase:

MIT License

Copyright (c) 2017-2019 Miles Johnson

{MIT}"""
README = """# emoji-128

{count} pictures of Microsoft's Fluent 3D emoji (MIT, see LICENSE), 128x128 RGBA WebP, {val} of them held out (every 10th by code point).
Each has captions (its name first, then other wordings), one of 8 group labels, a silhouette mask, and {maps} have a layout map: the
Fluent Flat drawing laid over the picture, in named colours. `index.json` has the names and offsets.
`scripts/make_emoji.py` makes this folder.
"""
