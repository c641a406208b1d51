"""What emoji show: their names, keywords, groups and captions, by code point."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ldm.core.random import generator

GROUPS = {
    0: "smileys-emotion",
    1: "people-body",
    3: "animals-nature",
    4: "food-drink",
    5: "travel-places",
    6: "activities",
    7: "objects",
    8: "symbols",
}
"""By emojibase's number, without 2, the skin tones, and 9, the flags."""
DROPPED = {
    "technologist": "trademark-like laptop",
    "man technologist": "trademark-like laptop",
    "woman technologist": "trademark-like laptop",
    "paperclip": "Microsoft's Clippy",
    "video game": "trademark-like controller",
    "middle finger": "offensive gesture",
    "bomb": "weapon",
    "dagger": "weapon",
    "crossed swords": "weapon",
    "cigarette": "tobacco",
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """
    Attributes:
        code: see `plain`.
        label: its name, e.g. "person: blond hair".
        keywords: that people would search it by.
        group: one of GROUPS' names.
    """

    code: str
    label: str
    keywords: tuple[str, ...]
    group: str

    @property
    def name(self) -> str:
        """As it stands in a sentence."""
        return self.label.replace(": ", ", ")

    @property
    def order(self) -> tuple[int, ...]:
        """By number of code points, then by these: "detective" comes before "man detective"."""
        parts = [int(part, 16) for part in self.code.split("-")]
        return (len(parts), *parts)

    @property
    def further_words(self) -> list[str]:
        """Keywords that say more than the name, in plain letters."""
        words = set(self.label.lower().replace(":", "").split())
        return [
            word
            for word in self.keywords
            if word.lower() not in words and word.replace(" ", "").replace("-", "").isalpha() and len(word) > 2
        ]


def plain(code: str) -> str:
    """A sequence of code points such as "1f636-200d-1f32b", without the variation selector, which packages put in at will."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def read_things(data: bytes) -> dict[str, Thing]:
    """All things by code, in the order of the code points, from emojibase's `data.json` in English; skin tones and flags are none."""
    found = [
        Thing(
            code=plain(entry["hexcode"]),
            label=entry["label"].replace("“", "").replace("”", "").replace("’", "'"),
            keywords=tuple(entry.get("tags", ())),
            group=GROUPS[entry["group"]],
        )
        for entry in json.loads(data)
        if entry.get("group") in GROUPS and entry["label"] not in DROPPED
    ]
    return {thing.code: thing for thing in sorted(found, key=lambda thing: thing.order)}


def article(name: str) -> str:
    """ "a red heart", but "eyes", "man: beard" and "OK button" as they stand."""
    last = name.split()[-1]
    if not name[0].isalpha() or name[0].isupper() or ":" in name or (last.endswith("s") and not last.endswith(("ss", "us"))):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def captions(thing: Thing, style: str) -> tuple[str, ...]:
    """Two with its name and style, up to two with keywords too, and two that leave the style open.

    Which keywords is drawn by thing and style.
    """
    words = thing.further_words
    order = [words[place] for place in torch.randperm(len(words), generator=generator("emoji-styles", thing.code, style)).tolist()]
    some = [", ".join(order[start : start + 2]) for start in range(0, min(4, len(order)), 2)]
    found = [f"{article(thing.name)}, {style} style", f"{style} drawing of {article(thing.name)}"]
    found += [f"{thing.name}, {pair}, {style} style" for pair in some]
    found += [article(thing.name), f"{thing.name}, {some[0]}" if some else thing.name]
    return tuple(dict.fromkeys(found))
