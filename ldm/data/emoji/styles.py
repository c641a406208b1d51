"""The eight styles: their packages, and which drawing of each is of which thing."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldm.core.packages import NpmPackage
from ldm.data.emoji.things import Thing, plain

EMOJIBASE = NpmPackage(name="emojibase-data", version="17.0.0", sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")


@dataclass(frozen=True, kw_only=True)
class Style:
    """A set of drawings in one hand.

    Attributes:
        words: what captions call it.
        family: styles of one family share a hand.
        package: of its drawings; None = they are built in.
        has_codes: whether the package knows its drawings' code points; otherwise they are known by their names.
        licence: SPDX.
        credit: who made it, and where.
    """

    words: str
    family: str
    package: NpmPackage | None
    has_codes: bool = False
    licence: str
    credit: str


def _iconify(name: str, version: str, sha256: str) -> NpmPackage:
    return NpmPackage(name=f"@iconify-json/{name}", version=version, sha256=sha256)


STYLES = {
    "fluent-3d": Style(
        words="fluent 3d",
        family="fluent",
        package=None,
        licence="MIT",
        credit="Fluent Emoji, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent-flat": Style(
        words="fluent flat",
        family="fluent",
        package=_iconify("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        has_codes=True,
        licence="MIT",
        credit="Fluent Emoji, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
    ),
    "noto": Style(
        words="noto",
        family="noto",
        package=_iconify("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        has_codes=True,
        licence="Apache-2.0",
        credit="Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji",
    ),
    "noto-v1": Style(
        words="noto v1",
        family="noto",
        package=_iconify("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        licence="Apache-2.0",
        credit="Noto Emoji (v1), Google Inc, https://github.com/googlefonts/noto-emoji",
    ),
    "twemoji": Style(
        words="twemoji",
        family="twemoji",
        package=_iconify("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
        has_codes=True,
        licence="CC-BY-4.0",
        credit="Twemoji, Twitter, Inc and other contributors, https://github.com/jdecked/twemoji",
    ),
    "emojione": Style(
        words="emojione",
        family="emojione",
        package=_iconify("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
        licence="CC-BY-4.0",
        credit="Emoji One, https://github.com/EmojiTwo/emojitwo",
    ),
    "fxemoji": Style(
        words="fxemoji",
        family="fxemoji",
        package=_iconify("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
        licence="Apache-2.0",
        credit="FxEmojis, Mozilla, https://github.com/mozilla/fxemoji",
    ),
    "streamline": Style(
        words="streamline",
        family="streamline",
        package=_iconify("streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc"),
        licence="CC-BY-4.0",
        credit="Streamline Emojis, Streamline, https://github.com/webalys-hq/streamline-vectors",
    ),
}
SKINS = re.compile(r"skin-(tone|type)")
NUMBER = re.compile(r"-(\d)$")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """
    Attributes:
        style: one of STYLES.
        thing: what it shows.
        number: 1, or that of one of several drawings of the thing in this style.
        icon: its name in the package.
        svg: as a file has it.
    """

    style: str
    thing: Thing
    number: int
    icon: str
    svg: str


def drawings(style: str, things: Mapping[str, Thing], cache_folder: Path) -> tuple[list[Drawing], list[str]]:
    """A style's drawings in the order of the things, and the names of those that fit no thing.

    Of skin tones only the yellow one is a drawing of ours; of equal drawings in one style, that of the first thing.

    Raises:
        UserError: its package cannot be had.
    """
    package = STYLES[style].package
    assert package is not None
    icons, codes = (json.loads(content) for content in package.read(cache_folder, ("icons.json", "chars.json")))
    bodies: Mapping[str, Mapping[str, Any]] = icons["icons"]
    if STYLES[style].has_codes:
        code_of = {name: plain(code) for code, name in codes.items() if plain(code) in things}
        found = {name: (code_of[name], 1) for name in bodies if name in code_of}
    else:
        found = _by_name(style, bodies, things, cache_folder)
    seen: set[str] = set()
    kept: list[Drawing] = []
    for name, (code, _) in sorted(found.items(), key=lambda one: (things[one[1][0]].order, one[1][1], one[0])):
        body = bodies[name]["body"]
        if body not in seen:
            seen.add(body)
            same = sum(one.thing.code == code for one in kept[-9:])
            kept.append(Drawing(style=style, thing=things[code], number=same + 1, icon=name, svg=_svg(bodies[name], icons)))
    return kept, sorted(bodies.keys() - found.keys())


def _by_name(style: str, icons: Iterable[str], things: Mapping[str, Thing], cache_folder: Path) -> dict[str, tuple[str, int]]:
    """(code, number) of the icons whose names are those of things, or stand in the table of aliases."""
    names, aliases = _names(things, cache_folder), _aliases().get(style, {})
    found: dict[str, tuple[str, int]] = {}
    for icon in icons:
        if SKINS.search(icon):
            continue
        base = NUMBER.sub("", icon)
        code = aliases.get(icon) or names.get(squeezed(icon)) or aliases.get(base) or names.get(squeezed(base), "")
        number = int(icon.rpartition("-")[2]) if base != icon else 1
        if code in things and not (number > 1 and things[code].group == "people-body"):  # there the others are skin tones
            found[icon] = (code, number)
    return found


def squeezed(name: str) -> str:
    """Letters and digits only, so that names compare however they are written."""
    ascii_only = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_only)


def _names(things: Mapping[str, Thing], cache_folder: Path) -> dict[str, str]:
    """Squeezed name -> code: as the packages with code points call it, as emojibase does, and as Unicode does."""
    found: dict[str, str] = {}
    for package in (style.package for style in STYLES.values() if style.has_codes and style.package is not None):
        (codes,) = package.read(cache_folder, ("chars.json",))
        for code, name in json.loads(codes).items():
            found.setdefault(squeezed(name), plain(code))
    for code, thing in things.items():
        found.setdefault(squeezed(thing.label), code)
        if "-" not in code:
            found.setdefault(squeezed(unicodedata.name(chr(int(code, 16)), "")), code)
    return found


@cache
def _aliases() -> dict[str, dict[str, str]]:
    """By style and icon: the code of what it shows, reviewed by eye; "-" = it shows no thing, whatever it is called."""
    found: dict[str, dict[str, str]] = {}
    with open(Path(__file__).with_name("aliases.tsv"), encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            found.setdefault(row["style"], {})[row["icon"]] = row["code"]
    return found


def _svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    left, top, width, height = (
        icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    body = icon["body"]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
