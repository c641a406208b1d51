"""`scripts/demo.py`: what it must not touch. What it makes is looked at, not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.app.arguments import demo
from ldm.core.errors import UserError


def test_a_folder_of_something_else_keeps_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("the demo began"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="something else than a demo"):
        demo.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "mine"]
