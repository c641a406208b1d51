"""The page's colours: text can be read on its grounds, light and dark (WCAG 2.2, AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOKENS = (Path(__file__).parents[2] / "ldm" / "web" / "static" / "css" / "tokens.css").read_text()
GROUNDS = ("ground", "surface", "sunken")
PAIRS = [
    *((text, ground) for text in ("text", "quiet", "accent", "danger", "good") for ground in GROUNDS),
    *((("accent-text", "accent"), ("accent", "accent-soft"), ("danger", "danger-soft"), ("warn", "warn-soft"), ("text", "warn-soft"))),
]


def theme(name: str) -> dict[str, str]:
    light, dark = re.findall(r":root[^{]*\{([^}]*)\}", TOKENS)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    return found if name == "light" else found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_can_be_read_on_its_grounds(name):
    colours = theme(name)
    faint = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in PAIRS}
    assert not {pair: round(found, 2) for pair, found in faint.items() if found < 4.5}


@pytest.mark.parametrize("name", ["light", "dark"])
def test_edges_of_fields_and_curves_can_be_seen(name):
    colours = theme(name)
    lines = ["line-strong", *(f"curve-{i}" for i in range(1, 7))]
    assert not {line: found for line in lines if (found := contrast(colours[line], colours["surface"])) < 3}
