"""The set emoji-styles, made of small packages of the same form."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import npm_archive
from PIL import Image

from ldm.app.arguments.prepare_data import main
from ldm.core.errors import UserError
from ldm.core.packages import NpmPackage
from ldm.data.config import DataConfig
from ldm.data.emoji import source as emoji_source
from ldm.data.emoji import styles as emoji_styles
from ldm.data.emoji.layout import COLOURS, MAP_NAMES, layout_of, majority, nearest_colours
from ldm.data.emoji.source import COMPOSITION, NOVEL, held_out_pairs, open_emoji_styles, render
from ldm.data.emoji.styles import STYLES, drawings, squeezed
from ldm.data.emoji.things import Thing, captions, read_things
from ldm.data.open import open_dataset

ENTRIES = [
    {"hexcode": "1F600", "label": "grinning face", "tags": ["face", "happy", "smile"], "group": 0},
    {"hexcode": "1F44D", "label": "thumbs up", "tags": ["hand", "yes"], "group": 1},
    {"hexcode": "1F431", "label": "cat face", "tags": ["cat", "pet", "kitten"], "group": 3},
    {"hexcode": "1F408", "label": "cat", "tags": ["cat"], "group": 3},
    {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love"], "group": 0},
    {"hexcode": "1F3F4", "label": "black flag", "tags": ["flag"], "group": 9},
    {"hexcode": "1F4A3", "label": "bomb", "tags": ["comic"], "group": 7},
    {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
    {"hexcode": "1F469-200D-1F680", "label": "woman astronaut", "tags": ["space"], "group": 1},
]
RED = '<rect x="0" y="0" width="10" height="10" fill="#f8312f"/>'


def drawn(colour: str) -> dict[str, str]:
    return {"body": RED.replace("#f8312f", colour)}


ICONS = {
    "noto": {"grinning-face": drawn("#111"), "thumbs-up": drawn("#222"), "thumbs-up-light": drawn("#333"), "red-heart": {"body": RED}},
    "emojione": {
        "grinning-face": drawn("#444"),
        "cat-face": drawn("#555"),
        "thumbs-up": drawn("#666"),
        "thumbs-up-medium-skin-tone": drawn("#777"),
        "o-button": drawn("#888"),
        "cat": drawn("#555"),
    },
    "streamline": {
        "cat-1": drawn("#999"),
        "cat-2": drawn("#aaa"),
        "thumbs-up-1": drawn("#bbb"),
        "thumbs-up-2": drawn("#ccc"),
        "turkey": drawn("#d00"),
    },
}
CODES = {"noto": {"1f600": "grinning-face", "1f44d": "thumbs-up", "1f44d-1f3fb": "thumbs-up-light", "2764-fe0f": "red-heart"}}


def packed(cache: Path, package: NpmPackage, files: dict[str, object]) -> NpmPackage:
    content = npm_archive({name: json.dumps(value).encode() for name, value in files.items()})
    cache.mkdir(parents=True, exist_ok=True)
    (cache / package.archive).write_bytes(content)
    return replace(package, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three styles and the built-in one."""
    folder = tmp_path / "cache"
    small = {"fluent-3d": STYLES["fluent-3d"]}
    for style, icons in ICONS.items():
        package = STYLES[style].package
        assert package is not None
        files = {"icons.json": {"icons": icons, "width": 10, "height": 10}, "chars.json": CODES.get(style, {})}
        small[style] = replace(STYLES[style], package=packed(folder, package, files))
    for module in (emoji_styles, emoji_source):
        monkeypatch.setattr(module, "STYLES", small)
    monkeypatch.setattr(emoji_source, "EMOJIBASE", packed(folder, emoji_styles.EMOJIBASE, {"en/data.json": ENTRIES}))
    return folder


def things() -> dict[str, Thing]:
    return read_things(json.dumps(ENTRIES).encode())


def test_things_are_emoji_without_flags_skin_tones_and_what_is_dropped() -> None:
    found = things()
    assert list(found) == ["2764", "1f408", "1f431", "1f44d", "1f600", "1f469-200d-1f680"]
    assert found["1f600"].group == "smileys-emotion" and found["1f600"].keywords == ("face", "happy", "smile")


def test_a_drawing_is_known_by_its_code_its_name_or_the_table(cache: Path) -> None:
    def of(style: str) -> tuple[list[tuple[str, str, int]], list[str]]:
        found, strange = drawings(style, things(), cache)
        return [(one.icon, one.thing.code, one.number) for one in found], strange

    assert of("noto") == ([("red-heart", "2764", 1), ("thumbs-up", "1f44d", 1), ("grinning-face", "1f600", 1)], ["thumbs-up-light"])
    # Of two equal drawings the first thing's is taken; o-button is of a thing that this set has not.
    assert of("emojione") == (
        [("cat", "1f408", 1), ("thumbs-up", "1f44d", 1), ("grinning-face", "1f600", 1)],
        ["o-button", "thumbs-up-medium-skin-tone"],
    )
    # Numbered drawings are several of one thing; of hands and people they are skin tones. "turkey" is a flag, as the table says.
    assert of("streamline") == ([("cat-1", "1f408", 1), ("cat-2", "1f408", 2), ("thumbs-up-1", "1f44d", 1)], ["thumbs-up-2", "turkey"])


def test_names_compare_however_they_are_written() -> None:
    assert squeezed("Man’s shoe") == squeezed("mans-shoe") == "mansshoe"
    assert squeezed("piñata") == "pinata"


def test_the_table_of_aliases_is_sound() -> None:
    seen = set()
    for line in (Path(emoji_styles.__file__).with_name("aliases.tsv")).read_text().splitlines()[1:]:
        style, icon, code, name = line.split("\t")
        assert style in STYLES and not STYLES[style].has_codes and name
        assert code == "-" or re.fullmatch(r"[0-9a-f]{4,5}", code), line
        assert (style, icon) not in seen
        seen.add((style, icon))
    assert len(seen) > 300


def test_records_have_captions_style_thing_mask_and_map(cache: Path) -> None:
    sources = open_emoji_styles(cache)
    records = {record.key: record for source in sources.values() for record in map(source.record, range(len(source)))}
    assert {key for key in records if key.startswith("1f408")} == {
        "1f408-fluent-3d",
        "1f408-emojione",
        "1f408-streamline",
        "1f408-streamline-2",
    }
    heart = records["2764-noto"]
    assert heart.captions[:3] == ("a red heart, noto style", "noto drawing of a red heart", "red heart, love, noto style")
    assert heart.captions[3:] == ("a red heart", "red heart, love")
    assert heart.label == "smileys-emotion" and heart.attributes["style"] == "noto" and heart.attributes["thing"] == "2764"
    image, mask, classes = (Image.open(io.BytesIO(content or b"")) for content in (heart.image, heart.mask, heart.map))
    assert image.size == mask.size == classes.size == (128, 128) and image.mode == "RGBA"
    assert np.asarray(mask).all() and (np.asarray(classes) == MAP_NAMES.index("red")).all()
    assert records["1f408-fluent-3d"].suffix == "webp" and records["1f408-fluent-3d"].map
    again = {source.key(i): source.record(i) for source in open_emoji_styles(cache).values() for i in range(len(source))}
    assert again == records


def test_a_drawing_that_is_not_square_lies_in_the_middle() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><rect width="20" height="10" fill="#00f"/></svg>'
    alpha = np.asarray(render(svg, 64))[..., 3]
    assert alpha[32].all() and not alpha[0].any() and not alpha[-1].any()
    assert (alpha > 127).sum(0).tolist() == [32] * 64


def test_what_is_held_out_depends_on_thing_and_family_only() -> None:
    families = ("fluent", "noto", "twemoji", "streamline")
    pairs = {
        (Thing(code=f"{number:x}", label="thing", keywords=(), group="objects"), family)
        for number in range(0x1F300, 0x1F300 + 2000)
        for family in families[: 1 + number % 4]
    }
    held_out = held_out_pairs(pairs)
    things_of: dict[str, set[str]] = {}
    for thing, family in pairs:
        things_of.setdefault(thing.code, set()).add(family)
    novel = {code for (code, _), why in held_out.items() if why == NOVEL}
    assert novel == set(sorted(things_of, key=lambda code: int(code, 16))[19::20])
    assert all(held_out.get((code, family)) == NOVEL for code in novel for family in things_of[code])
    compositions = {pair for pair, why in held_out.items() if why == COMPOSITION}
    assert all((code, family) not in compositions for code in things_of if len(things_of[code]) == 1 for family in families)
    assert all({family for other, family in compositions if other == code} < things_of[code] for code in {code for code, _ in compositions})
    possible = sum(len(found) for code, found in things_of.items() if code not in novel and len(found) > 1)
    assert 0.08 < len(compositions) / possible < 0.12
    fewer = held_out_pairs({(thing, family) for thing, family in pairs if int(thing.code, 16) < 0x1F300 + 1000})
    assert {pair: why for pair, why in fewer.items()} == {pair: why for pair, why in held_out.items() if int(pair[0], 16) < 0x1F300 + 1000}


def test_captions_vary_with_style_and_thing() -> None:
    cat = replace(things()["1f431"], keywords=("pet", "kitten", "whiskers", "meow", "cat"))
    found = captions(cat, "noto v1")
    assert len(set(found)) == len(found) == 6 and sum("noto v1" in caption for caption in found) == 4
    assert all("cat face" in caption for caption in found)
    assert captions(cat, "noto v1") == found != captions(cat, "noto")


def test_a_map_has_the_nearest_named_colour_of_most_of_a_cell() -> None:
    nearest = nearest_colours()
    for number, colour in enumerate(COLOURS.values(), 1):
        drawing = np.zeros((4, 4, 4), np.uint8)
        drawing[:, :2] = (*colour, 255)
        assert layout_of(drawing, 2, nearest).tolist() == [[number, 0], [number, 0]]
    cells = np.zeros((4, 8), np.int64)
    cells[:, 4:] = 3
    cells[0, :] = 5
    assert majority(cells, 4).tolist() == [[0, 3]]


def test_preparing_writes_credits_which_reach_the_training_set(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["emoji-styles", "--out", str(tmp_path / "out"), "--cache", str(cache), "--size", "16"])
    said = capsys.readouterr().out
    assert "drawings of emojione that show no thing of the set (skin tones, flags, brands, others), left out: 2 (o-button, thumbs" in said
    written = (tmp_path / "out/CREDITS.txt").read_text()
    assert "noto: Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji, Apache-2.0\n" in written
    data = open_dataset(DataConfig(train=str(tmp_path / "out"), size=16), "train", 0)
    assert "- Pictures of noto: Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji, Apache-2.0.\n" in data.card
    assert data.facts.attributes["style"].names == ("emojione", "fluent-3d", "noto", "streamline")


def test_without_the_renderer_it_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    source = next(source for source in open_emoji_styles(cache).values() if any("noto" in source.key(i) for i in range(len(source))))
    index = next(i for i in range(len(source)) if "noto" in source.key(i))
    with pytest.raises(UserError, match="pip install"):
        source.record(index)
