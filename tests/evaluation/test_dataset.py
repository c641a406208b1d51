"""The pictures of an evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

from evaluations import write_images

from ldm.evaluation.dataset import Preprocessing, held_out_images, in_training_set, training_images

HOW = Preprocessing(size=8, channels=3, background=(255, 255, 255))


def test_held_out_pictures_that_are_trained_on_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 4, 1, captions=False)
    write_images(tmp_path / "other", 3, 2, captions=False)
    held_out = tmp_path / "val"
    held_out.mkdir()
    for number, path in enumerate(sorted((tmp_path / "other").glob("*.png"))[1:]):
        shutil.copy(path, held_out / f"own-{number}.png")
    shutil.copy(next((tmp_path / "train").glob("*.png")), held_out / "trained.png")
    training = training_images(str(tmp_path / "train"), HOW)
    drawn = held_out_images(str(held_out), HOW, shared=False)
    assert in_training_set(drawn, training) == [str(held_out / "trained.png")]
    assert drawn.split == "all"
