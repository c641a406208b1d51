"""benchmarks/survival runs, and finds nothing in a small share of what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_small_share_of_what_must_be_survived(tmp_path: Path) -> None:
    words = ["--share", "0.004", "--part", "records", "--part", "checkpoints", "--part", "pictures", "--part", "lines"]
    command = [sys.executable, "benchmarks/survival", *words, "--out", str(tmp_path / "table.md")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, errors="replace", timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert (tmp_path / "table.md").read_text().count(" | 0 | 0 | 0 | 0 | ") == 4
