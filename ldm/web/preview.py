"""The estimate of x0 while a picture is drawn, made visible for at most a fifth of the time."""

from __future__ import annotations

import io
import time

import torch

from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.samplers.sampler import Step

MOST = 4  # pictures that are shown
SIDE = 320  # pixels, at most
SHARE = 4  # a preview that took one second is followed by as many without
TILE = 512  # pixels: larger ones are decoded in tiles


class Preview:
    """Decodes x0 now and then. It draws no random numbers, so what is drawn is the same with and without it."""

    def __init__(self, model: LatentDiffusion) -> None:
        self.model = model
        self._next = 0.0

    @torch.no_grad()
    def of(self, step: Step) -> list[bytes] | None:
        """WebP files of the pictures so far; None = not now."""
        started = time.perf_counter()
        if started < self._next or step.done == step.steps:
            return None
        factor = self.model.first_stage.downsampling_factor
        images = self.model.decode(step.estimate.x0[:MOST], tile=TILE // factor * factor)
        files = []
        for image in to_pil(images.nan_to_num()):
            image.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=80)
            files.append(buffer.getvalue())
        ended = time.perf_counter()
        self._next = ended + SHARE * (ended - started)
        return files
