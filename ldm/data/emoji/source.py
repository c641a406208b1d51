"""The records of emoji-styles, and which of them are held out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.data.emoji.layout import MAP_NAMES, layout_of, nearest_colours
from ldm.data.emoji.styles import EMOJIBASE, STYLES, Drawing, drawings
from ldm.data.emoji.things import GROUPS, Thing, captions, read_things
from ldm.data.findings import Finding
from ldm.data.names import BUILTIN
from ldm.data.record import Record
from ldm.data.sources.shards import open_indexed
from ldm.data.sources.source import Source

SIZE = 128  # of a picture
CELL = 2  # times as large a drawing is, so that edges are smooth
NOVEL, COMPOSITION = "novel", "composition"
NOVEL_EVERY = 20  # things
COMPOSITION_SHARE = 0.1  # of the pairs of the other things and the families they are drawn in
BUILT_IN = "fluent-3d"


class EmojiStyles(Source):
    """One split. Each record has its style and its thing's code as attributes; a held-out one also says why it is held out."""

    has_captions = has_labels = has_masks = has_maps = has_attributes = True
    label_names = tuple(GROUPS.values())
    map_names = MAP_NAMES

    def __init__(self, split: str, parts: Sequence[tuple[Drawing | Record, Thing, str, str]], findings: tuple[Finding, ...]) -> None:
        """
        Args:
            split: "train" or "val".
            parts: (a drawing, or a built-in record; its thing; its style; "" or why it is held out).
            findings: see `Source`.
        """
        self.name = self.digest = f"emoji-styles ({split})"
        self.split, self.unreadable, self.findings = split, {}, findings
        self.credits = tuple(f"{style}: {about.credit}, {about.licence}" for style, about in STYLES.items())
        self._parts, self._nearest = parts, nearest_colours()

    def __len__(self) -> int:
        return len(self._parts)

    def key(self, index: int) -> str:
        drawn, thing, style, _ = self._parts[index]
        return f"{thing.code}-{style}" + (f"-{drawn.number}" if isinstance(drawn, Drawing) and drawn.number > 1 else "")

    def attributes(self) -> Iterator[Mapping[str, Any]]:
        """See `Source.attributes`."""
        return (self._attributes(index) for index in range(len(self)))

    def _attributes(self, index: int) -> Mapping[str, Any]:
        _, thing, style, held_out = self._parts[index]
        return {"style": style, "thing": thing.code} | ({"held_out": held_out} if held_out else {})

    def record(self, index: int) -> Record:
        drawn, thing, style, _ = self._parts[index]
        if isinstance(drawn, Drawing):
            drawn = self._rendered(drawn)
        return replace(
            drawn,
            key=self.key(index),
            place=f"{drawn.place or drawn.key} of {style}",
            captions=captions(thing, STYLES[style].words),
            label=thing.group,
            attributes=self._attributes(index),
        )

    def _rendered(self, drawing: Drawing) -> Record:
        """Picture, mask and map, as PNG."""
        large = render(drawing.svg, SIZE * CELL)
        small = large.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.BOX).convert("RGBA")
        mask = Image.fromarray(np.asarray(small)[..., 3] > 127)
        classes = Image.fromarray(layout_of(np.asarray(large), CELL, self._nearest))
        return Record(key="", place=drawing.icon, suffix="png", image=_png(small), mask=_png(mask), map=_png(classes))


def render(svg: str, size: int) -> Image.Image:
    """An RGBA picture of size x size; what is not square lies in its middle.

    Raises:
        UserError: the renderer is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError('emoji-styles is drawn by resvg, which is not installed; install it with: pip install "resvg-py>=0.2,<1"') from None
    sized = svg.replace("<svg ", f'<svg width="{size}" height="{size}" ', 1)  # older releases scale by nothing else
    png = bytes(resvg_py.svg_to_bytes(svg_string=sized, width=size, height=size, skip_system_fonts=True))
    return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def open_emoji_styles(cache: Path) -> dict[str, Source]:
    """Both splits.

    Args:
        cache: folder of the packages' archives, which are downloaded where they are not there.

    Raises:
        UserError: a package cannot be had.
    """
    things = read_things(EMOJIBASE.read(cache, ("en/data.json",))[0])
    found: list[tuple[Drawing | Record, Thing, str]] = []
    findings = []
    for style, about in STYLES.items():
        if about.package is not None:
            drawn, strange = drawings(style, things, cache)
            found += [(drawing, drawing.thing, style) for drawing in drawn]
            findings.append(
                Finding(f"drawings of {style} that show no thing of the set (skin tones, flags, brands, others), left out", tuple(strange))
            )
    for split in ("train", "val"):
        source = open_indexed(BUILTIN["emoji-128"], split)
        records = (source.record(index) for index in range(len(source)))
        found += [(record, things[record.key], BUILT_IN) for record in records if record.key in things]
    found.sort(key=lambda one: digest("emoji-styles", "order", one[1].code, one[2]))  # so that the first ones stand for all
    held_out = held_out_pairs({(thing, STYLES[style].family) for _, thing, style in found})
    parts = [(drawn, thing, style, held_out.get((thing.code, STYLES[style].family), "")) for drawn, thing, style in found]
    return {
        "train": EmojiStyles("train", [part for part in parts if not part[3]], tuple(findings)),
        "val": EmojiStyles("val", [part for part in parts if part[3]], ()),
    }


def held_out_pairs(pairs: set[tuple[Thing, str]]) -> dict[tuple[str, str], str]:
    """(code, family) -> NOVEL or COMPOSITION, of those that are held out.

    Every twentieth thing is novel: none of its drawings is trained on. Of the pairs of the other things and families a tenth is held out,
    by a draw that depends on nothing else, so that such a thing is seen in other hands only; it stays seen in one at least.
    """
    families: dict[Thing, list[str]] = {}
    for thing, family in sorted(pairs, key=lambda pair: (pair[0].order, pair[1])):
        families.setdefault(thing, []).append(family)
    held_out: dict[tuple[str, str], str] = {}
    for number, (thing, drawn_in) in enumerate(families.items(), 1):
        if number % NOVEL_EVERY == 0:
            held_out |= {(thing.code, family): NOVEL for family in drawn_in}
            continue
        chosen = [family for family in drawn_in if digest("emoji-styles", thing.code, family) < COMPOSITION_SHARE * 2**63]
        held_out |= {(thing.code, family): COMPOSITION for family in (chosen if len(chosen) < len(drawn_in) else chosen[1:])}
    return held_out
