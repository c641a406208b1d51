"""Checkpoints, a prepared set and a run folder of format 1, made by the last version that wrote it, open and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ldm import LatentDiffusion
from ldm.app.arguments import train_ldm
from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.formats import FORMAT, upgraded
from ldm.checkpoints.model import load_first_stage
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.first_stage.latent_normalization import LatentNormalization

FOLDER = Path(__file__).parent / "format-1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the current folder."""
    shutil.copytree(FOLDER, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_checkpoints_of_both_stages_open(old: Path):
    stage, spec, _ = load_first_stage("vae/checkpoint", torch.device("cpu"))
    assert spec.normalization == stage.normalization and stage.normalization.downsampling_factor == 2
    model = LatentDiffusion.from_pretrained("ldm/checkpoint", "cpu")
    assert model.spec.normalization == stage.normalization
    (image,) = model.sample(label="odd", steps=1)
    assert image.size == (16, 16)


def test_a_prepared_set_opens(old: Path):
    data = open_dataset(DataConfig(train="set", size=16), "train", 0)
    assert data.count == 6 and data.facts.label_names == ("even", "odd")
    assert next(iter(data.some(1))).image.shape == (3, 16, 16)


def test_a_run_goes_on_and_then_writes_todays_format(old: Path):
    train_ldm.main(["--config", "ldm.yaml", "--run-dir", "ldm", "train.steps=4", "train.checkpoint_every=4"])
    steps = [json.loads(line)["step"] for line in Path("ldm/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]  # not from the first again
    assert json.loads(Path("ldm/checkpoint/manifest.json").read_text())["format"] == FORMAT
    assert Checkpoint.open("ldm/checkpoint").config["normalization"]["downsampling_factor"] == 2


def test_a_config_within_a_loras_is_upgraded_too():
    space = {"channels": 2, "ratio": 8}
    normalization = {"channels": 2, "downsampling_factor": 8}
    assert upgraded({"base": {"name": "a", "space": space}, "rank": 4}) == {
        "base": {"name": "a", "normalization": normalization},
        "rank": 4,
    }
    assert upgraded({"normalization": normalization}) == {"normalization": normalization}


def test_a_later_format_is_refused(old: Path):
    manifest = Path("ldm/checkpoint/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"is of format {FORMAT + 1}; this version reads formats 1 to {FORMAT}: update it"):
        Checkpoint.open("ldm/checkpoint")


def test_a_normalization_is_recorded_in_runs_as_it_was_in_format_1():
    normalization = LatentNormalization(channels=2, downsampling_factor=8, shift=(1.0, -2.0), scale=(0.5, 4.0), digest="ab")
    assert normalization.identity == "LatentSpace(channels=2, ratio=8, shift=(1.0, -2.0), scale=(0.5, 4.0), digest='ab')"
