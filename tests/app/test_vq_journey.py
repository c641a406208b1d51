"""From pictures to a VQ first stage, and on it a model that enlarges pictures: both scripts, a few steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import metrics

from ldm import LatentDiffusion
from ldm.app.arguments import train_ldm, train_vae
from ldm.checkpoints.model import load_first_stage
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.low_resolution import LowResolution
from ldm.core.errors import UserError
from ldm.first_stage.vq import VQAutoencoder

VQ = """
name: tiny-vq
data: {train: null, val: null, size: 16}
first_stage: {kind: vq, channels: 16, multipliers: [1, 2], blocks: 1, num_codes: 24, code_channels: 2}
loss: {perceptual_weight: 0, disc_start: 56, disc_layers: 1, disc_channels: 8}
train: {steps: 60, batch_size: 5, checkpoint_every: 100, sample_every: 100, optimizer: {learning_rate: 3.0e-3}}
"""
ENLARGER = """
name: tiny-enlarger
data: {train: null, val: null, size: 16}
first_stage: {checkpoint: null, scale: 1.5}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2}
process: discrete_vp
prediction: v
weighting: constant
conditioning: {small: {kind: low_resolution, drop: 0.0}}
drop_all: 0.0
sampling: {sampler: ddim, steps: 2, guidance: 1}
train: {steps: 3, batch_size: 4, checkpoint_every: 100, sample_every: 100, optimizer: {learning_rate: 1.0e-3}}
"""


CONDITIONS: list[torch.Tensor | None] = []  # the pictures that the conditioner got while it trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    """A VQ first stage in `vq`, a model on it in `enlarger`."""
    folder = tmp_path_factory.mktemp("vq")
    (folder / "vq.yaml").write_text(VQ)
    (folder / "enlarger.yaml").write_text(ENLARGER)
    data = f"data.train={squares}"
    train_vae.main(["--config", str(folder / "vq.yaml"), "--run-dir", str(folder / "vq"), data])
    first_stage = f"first_stage.checkpoint={folder / 'vq' / 'checkpoint'}"
    with pytest.MonkeyPatch.context() as patch:
        forward = LowResolution.forward
        patch.setattr(LowResolution, "forward", lambda part, value, size: CONDITIONS.append(value) or forward(part, value, size))
        train_ldm.main(["--config", str(folder / "enlarger.yaml"), "--run-dir", str(folder / "enlarger"), data, first_stage])
    return folder


def test_the_codebook_is_learned_in_place_of_a_kl(trained: Path) -> None:
    rows = metrics(trained / "vq")
    assert all(row["codebook"] == pytest.approx(row["commitment"]) and "kl" not in row for row in rows)
    assert sum(row["pixel"] for row in rows[50:55]) < 0.85 * sum(row["pixel"] for row in rows[:5])
    assert "VQ autoencoder" in (trained / "vq" / "checkpoint" / "README.md").read_text()
    first_stage, spec, weights = load_first_stage(trained / "vq" / "checkpoint", torch.device("cpu"))
    assert isinstance(first_stage, VQAutoencoder)
    assert weights["codebook.weight"].shape == (24, 2)
    assert weights["codebook.weight"].abs().max() > 2 / 24  # far from where it began


def test_the_diagnostics_count_the_codes(trained: Path) -> None:
    (last,) = [row for row in metrics(trained / "vq") if "train_eval/codes_used" in row]
    assert 1 <= last["train_eval/code_perplexity"] <= last["train_eval/codes_used"] <= 24
    assert "train_eval/kl_per_dimension" not in last


def test_a_stated_scale_replaces_the_measured_one(trained: Path) -> None:
    _, measured, _ = load_first_stage(trained / "vq" / "checkpoint", torch.device("cpu"))
    model = LatentDiffusion.from_pretrained(trained / "enlarger" / "checkpoint")
    assert measured.normalization.scale[0] != 1.5 and measured.normalization.shift != (0.0,)
    assert (model.spec.normalization.scale, model.spec.normalization.shift) == ((1.5,), (0.0,))
    assert model.spec.normalization.digest == measured.normalization.digest
    images = torch.zeros(1, 3, 16, 16)
    torch.testing.assert_close(model.first_stage.encode(images), 1.5 * model.first_stage.moments(images)[0])


def test_the_small_picture_is_learned_from_and_heard(trained: Path, squares: Path) -> None:
    """Training keeps the pictures beside the cached latents, since they are the condition."""
    (shard,) = (trained / "enlarger" / "latents").glob("*.arrays")
    assert b"image" in shard.read_bytes()
    steps = [pictures for pictures in CONDITIONS if pictures is not None and pictures.shape == (4, 3, 16, 16)]
    assert len(steps) >= 3 and all(pictures.std() > 0.1 for pictures in steps)
    model = LatentDiffusion.from_pretrained(trained / "enlarger" / "checkpoint")
    small = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    how = model.sampling(seed=1)
    one, other = (model.generate(ConditionInputs(count=1, values={"small": picture}), how) for picture in small)
    assert one.shape == (1, 3, 16, 16)
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize(
    "change, message",
    [
        ("first_stage.scale=0", "first_stage.scale must be positive"),
        ("first_stage.kind=identity", "pixels are used as they are"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(trained: Path, squares: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_ldm.main(["--config", str(trained / "enlarger.yaml"), "--run-dir", str(tmp_path), f"data.train={squares}", change])
