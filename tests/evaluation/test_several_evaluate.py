"""Two processes measure what one does, each of its share of the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import LDM, SEVERAL_BATCHES, call, call_by_two
from PIL import Image

from ldm.evaluation import dataset


def numbers_in(content: Any, path: str = "") -> dict[str, Any]:
    """What JSON holds, by its place in it."""
    if isinstance(content, dict | list):
        parts = content.items() if isinstance(content, dict) else enumerate(content)
        return {name: value for key, part in parts for name, value in numbers_in(part, f"{path}/{key}").items()}
    return {path: content}


@pytest.mark.parametrize("words", ["vae --model model --data train", f"{LDM} --model model --num-images 37 --save-images"])
def test_two_processes_measure_what_one_does(words: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them finds features in a cache; an odd number of batches, the last of which is not full."""
    monkeypatch.setattr(dataset, "AT_ONCE", SEVERAL_BATCHES)
    (home / "cache-of-two" / "pretrained").parent.mkdir()
    (home / "cache-of-two" / "pretrained").symlink_to((home / "cache" / "pretrained").resolve())
    assert call(f"{words} --out alone", monkeypatch) == 0
    call_by_two(f"{words} --out two", home, home / "cache-of-two")
    alone, two = (numbers_in(json.loads((home / out / "evaluation.json").read_text())) for out in ("alone", "two"))
    assert alone.keys() == two.keys()
    for name, value in alone.items():
        assert two[name] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value), name
    assert len(list((home / "cache-of-two" / "features").glob("*.safetensors"))) == len(list((home / "cache" / "features").iterdir()))
    pictures = sorted(path.name for path in (home / "alone").glob("pictures/*.png"))
    assert len(pictures) == 37 * ("--save-images" in words)
    for name in pictures:
        one, other = (np.asarray(Image.open(home / out / "pictures" / name)).astype(int) for out in ("alone", "two"))
        assert np.abs(one - other).max() <= 1
