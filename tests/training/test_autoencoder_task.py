"""Stage one's checkpoint: the latent normalization is that of the weights which are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tasks import DrawnPictures, autoencoder_task, train_config
from torch.testing import assert_close

from ldm.checkpoints.model import load_first_stage
from ldm.core.distributed import World
from ldm.first_stage.latent_normalization import encoder_weights, measure
from ldm.training import autoencoder_task as module
from ldm.training.engine import fit
from ldm.training.run_folder import RunFolder

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("step, pictures", [(2, 10), (1, 4)])  # of two steps; the set has ten pictures
def test_the_latent_normalization_is_that_of_the_stored_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, pictures: int
) -> None:
    """The average, rounded to the checkpoint's precision; over all pictures at the last checkpoint, over the first ones before."""
    monkeypatch.setattr(module, "QUICK_MEASURE", 4)
    task = autoencoder_task(ALONE, train_config(checkpoint_dtype="bf16"))
    with torch.no_grad():
        for live in task.first_stage.parameters():  # training has gone on since
            live.mul_(1.5)
    task.save(tmp_path / "model", step, 2)

    first_stage, spec, weights = load_first_stage(tmp_path / "model", ALONE.device)
    images = torch.stack([sample.image for sample in DrawnPictures().some(pictures)])
    wanted = measure([first_stage.moments(images)], per_channel=False, downsampling_factor=2, weights=weights)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16} and spec.normalization.digest == wanted.digest
    assert_close((spec.normalization.shift, spec.normalization.scale), (wanted.shift, wanted.scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_frozen_encoder_keeps_its_latents_while_the_decoder_trains(tmp_path: Path, dtype: str) -> None:
    """To the bit, and with them shift, scale and the encoder's digest, whatever the checkpoint's precision."""
    autoencoder_task(ALONE, train_config(checkpoint_dtype="bf16")).save(tmp_path / "start", 2, 2)
    start, _, stored = load_first_stage(tmp_path / "start", ALONE.device)
    frozen = module.FrozenEncoder(weights=encoder_weights(stored), normalization=start.normalization)
    config = train_config(checkpoint_dtype=dtype, steps=3)
    task = autoencoder_task(ALONE, config, frozen=frozen)
    task.first_stage.load_state_dict(stored)
    task.average.module.load_state_dict(stored)
    assert fit(task, config, RunFolder(tmp_path / "run", True), 0, ALONE)

    tuned, _, weights = load_first_stage(tmp_path / "run/checkpoint", ALONE.device)
    images = torch.stack([sample.image for sample in DrawnPictures().some(4)])
    assert_close(tuned.moments(images), start.moments(images), rtol=0, atol=0)
    assert tuned.normalization.has_latents_of(start.normalization) and tuned.normalization.digest != start.normalization.digest
    assert (tuned.normalization.shift, tuned.normalization.scale) == (start.normalization.shift, start.normalization.scale)
    changed = {name for name, tensor in weights.items() if not torch.equal(tensor.float(), stored[name].float())}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
