"""A checkpoint and the text encoder beside it, moved together to another folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interop_rows import stable, write_clip, write_row
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.checkpoints.model import read_spec
from ldm.core.errors import UserError
from ldm.interop.ours import Ours


def sampled(folder: Path) -> torch.Tensor:
    model = LatentDiffusion.from_pretrained(folder, device="cpu")
    return model.generate(model.text_inputs("cat"), model.sampling(steps=2))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """`old/sd1`, whose text encoder is `old/sd1-text-encoder`."""
    write_row(tmp_path / "old" / "sd1", stable(write_clip(tmp_path / "old" / "sd1-text-encoder", is_open=False), version=1))
    return tmp_path / "old"


def test_moved_together_they_give_the_same_samples(old: Path) -> None:
    before, new = sampled(old / "sd1"), old.with_name("new")
    old.rename(new)
    assert_close(sampled(new / "sd1"), before, rtol=0, atol=0)
    for spec in (read_spec(new / "sd1"), Ours.open(new / "sd1").spec):  # for fine-tuning, and for export
        assert spec.conditioning["text"].model == str(new / "sd1-text-encoder")
        assert spec.frozen.keys() == {str(new / "sd1-text-encoder")}


def test_the_recorded_folder_comes_first(old: Path, tmp_path: Path) -> None:
    """A folder of the same name beside the checkpoint is ignored while the recorded one exists."""
    (old / "sd1").rename(tmp_path / "sd1")
    (tmp_path / "sd1-text-encoder").mkdir()
    assert sampled(tmp_path / "sd1").isfinite().all()


def test_another_encoder_of_that_name_is_refused(old: Path) -> None:
    new = old.with_name("new")
    old.rename(new)
    tower = new / "sd1-text-encoder" / "model.safetensors"
    content = bytearray(tower.read_bytes())
    content[-1] ^= 1
    tower.write_bytes(content)
    with pytest.raises(UserError, match="trained with another pretrained encoder"):
        LatentDiffusion.from_pretrained(new / "sd1", device="cpu")


def test_an_encoder_left_behind_is_reported(old: Path) -> None:
    (old / "sd1").rename(old.with_name("sd1"))
    (old / "sd1-text-encoder").rename(old / "elsewhere")
    with pytest.raises(UserError, match="cannot load the text encoder .*sd1-text-encoder"):
        LatentDiffusion.from_pretrained(old.with_name("sd1"), device="cpu")
