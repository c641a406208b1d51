"""Results that a benchmark keeps in its folder and does not measure again: taken only if they are of the same call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ldm.checkpoints.folder import MANIFEST
from ldm.core.errors import UserError
from ldm.core.files import sha256_of, write_file

EVALUATE = Path(__file__).parents[1] / "scripts" / "evaluate.py"


def check_asked(results: Path, model: str, asked: dict[str, Any]) -> None:
    """Writes `asked.json` beside results that are not there yet, and compares it with what is asked now if they are.

    Args:
        results: the file that will hold them.
        model: checkpoint folder, of which the contents count, too.
        asked: what else they depend on.

    Raises:
        UserError: the results are of something else.
    """
    note = results.with_name("asked.json")
    text = json.dumps({"model": model, "manifest": sha256_of(Path(model) / MANIFEST), **asked}, indent=1, default=str) + "\n"
    if not results.exists():
        write_file(note, text)
    elif not note.is_file() or note.read_text() != text:
        raise UserError(f"{results} is there and is of another model or other settings (see {note.name} there); give --out another folder")


def evaluated(out: Path, model: str, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """The metrics that `scripts/evaluate.py ldm` finds, name -> value, interval and more; its evaluation.json stays in out."""
    results = out / "evaluation.json"
    check_asked(results, model, {"arguments": arguments})
    if not results.exists():
        done = subprocess.run([sys.executable, str(EVALUATE), "ldm", "--model", model, *arguments, "--out", str(out)], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    return json.loads(results.read_text())["metrics"]
