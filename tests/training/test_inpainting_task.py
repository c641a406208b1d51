"""What stage two shows a network that learns to inpaint: holes as its config's convention has them, in training and in the sample grid."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from tasks import diffusion_task, train_config
from torch import Tensor
from torch.testing import assert_close

from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.distributed import World
from ldm.first_stage.stage import FirstStage
from ldm.training.parallel import SharedGradients
from ldm.training.task import Pass

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("convention, hole", [("stable_diffusion", 0.0), ("inpainting_big", -1.0)])
def test_holes_are_as_the_convention_has_them(convention: str, hole: float, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Tensor] = []
    encode_any, seen = FirstStage.encode, []

    def watched(first_stage: FirstStage, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None and len(pictures) > 1:  # else it is a latent to be learned, or all hole
            encoded.append(pictures)
        return encode_any(first_stage, pictures, noise)

    monkeypatch.setattr(FirstStage, "encode", watched)
    task = diffusion_task(ALONE, train_config(), InpaintMaskConfig(convention=convention, drop=0.5))
    conditioners = task.model.conditioners
    encode, forward = functools.partial(encode_any, task.model.first_stage), conditioners.forward
    monkeypatch.setattr(conditioners, "forward", lambda *inputs: seen.append(inputs) or forward(*inputs))
    batch = next(task.batches(1))
    scaler, shared = torch.amp.GradScaler(enabled=False), {"denoiser": SharedGradients(task.groups["denoiser"], ALONE)}
    task.accumulate(batch, Pass(step=2, world=ALONE, autocast_dtype=None, scaler=scaler, batch_size=7, accumulate=1, shared=shared))

    ((inputs, _, drops),) = seen
    given = inputs.values["mask"]
    kept = ~drops["mask"]
    assert 1 < kept.sum() < 7
    pictures, masks = batch.records.images[kept], given.masks[kept]
    assert_close(encoded[0], pictures.where(masks == 0, torch.tensor(hole)), rtol=0, atol=0)
    assert_close(given.latents[kept], encode(encoded[0]), rtol=0, atol=0)
    nothing = encode(torch.full((1, 3, 16, 16), hole))
    assert given.masks[~kept].all()
    assert_close(given.latents[~kept], nothing.expand(int((~kept).sum()), -1, -1, -1), rtol=0, atol=1e-6)

    grid = task.sample_grid(nullcontext())  # whose last row is what was shown
    assert (encoded[-1][:, :, 4:12, 4:12] == hole).all() and (encoded[-1][:, :, :4] != hole).all()
    shown = grid[:, -18:-2, 2:18][:, 4:12, 4:12] * 2 - 1
    assert_close(shown, torch.full_like(shown, hole), rtol=0, atol=1e-6)
