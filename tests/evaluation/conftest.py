"""What `scripts/evaluate.py` is called on: models, folders of pictures, a stand-in for Inception."""

from __future__ import annotations

import pytest
import torch
from evaluations import COUNTS, StandIn, write_images

from ldm.checkpoints.model import AutoencoderSpec, load_first_stage, write_autoencoder
from ldm.pretrained import cache


@pytest.fixture
def stand_in(monkeypatch):
    network = StandIn()
    monkeypatch.setattr("ldm.metrics.features.fid_inception", lambda progress: network)
    monkeypatch.setenv("LDM_OFFLINE", "1")  # no class layer
    return network


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of features of its own. The pretrained files stay where they are."""
    pretrained = cache.cache_folder()
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pretrained").symlink_to(pretrained)


@pytest.fixture
def home(tmp_path, tiny, stand_in, own_cache, monkeypatch):
    """Models, a training and a held-out folder; the current folder."""
    (tmp_path / "model").symlink_to(tiny("text"))
    (tmp_path / "plain").symlink_to(tiny(first_stage="identity"))
    (tmp_path / "labels").symlink_to(tiny("class"))
    (tmp_path / "grey").symlink_to(tiny(first_stage="identity", image_channels=1))
    first_stage, spec, weights = load_first_stage(tmp_path / "model", torch.device("cpu"))
    spec = AutoencoderSpec(name="first", size=16, first_stage=spec.first_stage, normalization=spec.normalization)
    write_autoencoder(tmp_path / "stage-one", spec, weights, "# tiny\n", 1 << 30)
    for number, (name, count) in enumerate(COUNTS.items()):
        write_images(tmp_path / name, count, number)
    monkeypatch.chdir(tmp_path)
    return tmp_path
