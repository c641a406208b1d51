"""The recipes of docs/training.md: each is a config that can be built, as the page says to put it together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ldm.app.description import describe

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "training.md").read_text().split("## Recipes")[1].split("### ")[1:]
BLOCKS = [(text.splitlines()[0], yaml.safe_load(block)) for text in RECIPES for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
WHOLE = [content for _, content in BLOCKS if "name" in content]
CHANGES = [pytest.param(content, id=title) for title, content in BLOCKS if "name" not in content]


def described(content: dict, path: Path) -> None:
    """With pictures that are at hand in the place of DIR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content | {"data": content["data"] | {"train": "emoji-128", "val": "emoji-128"}}))
    assert describe(path).step(1).flops > 0


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)


def test_all_recipes_are_found():
    assert len(WHOLE) == 2 and len(CHANGES) == 8


def test_both_stages_at_256(tmp_path: Path):
    """The second names the checkpoint of the first; before that is there, a config may name the first's config beside it."""
    first, second = WHOLE
    described(first, tmp_path / "first.yaml")
    described(second | {"first_stage": second["first_stage"] | {"config": "first.yaml"}}, tmp_path / "second.yaml")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_shipped_config(change: dict, tmp_path: Path):
    described(yaml.safe_load((ROOT / "configs" / "ldm" / "emoji-text.yaml").read_text()) | change, tmp_path / "recipe.yaml")


def test_inpainting_without_captions(tmp_path: Path):
    base = yaml.safe_load((ROOT / "configs" / "ldm" / "emoji-text.yaml").read_text())
    recipe = next(content for title, content in BLOCKS if title.startswith("Inpainting"))
    del recipe["conditioning"]["text"], base["denoiser"]["context_width"], base["denoiser"]["vector_width"]
    described(base | recipe, tmp_path / "recipe.yaml")
