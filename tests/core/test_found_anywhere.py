"""The shipped model and configs are found from any working directory; what lies here goes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.app.arguments.sampling import DEFAULT_MODEL
from ldm.app.frozen_first_stage import FirstStageSource
from ldm.checkpoints.folder import Checkpoint
from ldm.config.loader import read
from ldm.core.errors import UserError
from ldm.core.shipped import ROOT, locate


def test_the_shipped_model_and_configs_are_found_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open(DEFAULT_MODEL, verified=False).has("denoiser")
    assert read("configs/ldm/emoji.yaml")["name"] == "emoji"
    assert FirstStageSource().is_there
    assert not any(tmp_path.iterdir())


def test_what_lies_here_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("configs/ldm/emoji.yaml")
    mine.parent.mkdir(parents=True)
    mine.write_text("name: mine\n")
    assert read(mine)["name"] == "mine"
    Path("checkpoints/emoji").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint checkpoints/emoji: it has no manifest.json"):
        Checkpoint.open(DEFAULT_MODEL)


@pytest.mark.parametrize(
    "name", ["README.md", "tests/core/test_found_anywhere.py", "configs/../README.md", "checkpoints/nowhere", "/checkpoints/emoji"]
)
def test_nothing_else_is_looked_for_beside_the_tool(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / "README.md").is_file()
    monkeypatch.chdir(tmp_path)
    assert locate(Path(name)) == Path(name)
