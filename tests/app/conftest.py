"""What the tests of the scripts train on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import write_squares


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures; see `tiny_runs.write_squares`."""
    return write_squares(tmp_path_factory.mktemp("squares") / "data")
