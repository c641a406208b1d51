"""Guidance of images to classes by a classifier, and whether it fits the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from ldm.checkpoints.classifier import LoadedClassifier
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.core.errors import UserError
from ldm.core.settings import in_pixels
from ldm.diffusion.estimate import Denoise
from ldm.diffusion.process import NoiseProcess
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.guidance.classifier_guided import classifier_guided
from ldm.pipelines.sampling import is_number


@dataclass(frozen=True, kw_only=True)
class ClassifierGuide:
    """Classifier guidance of one call.

    Attributes:
        classifier: noise-aware.
        labels: image i is guided to class labels[i], from the first again when they are used up.
        scale: 1 = Bayes' rule, beyond 1 sharpens; see `classifier_guided`.
    """

    classifier: LoadedClassifier
    labels: tuple[int, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.classifier.spec.process is None:
            raise UserError(
                f"classifier {self.classifier.spec.name!r} was trained on clean samples (process: null), so it can judge but not guide"
            )
        if not self.labels:
            raise UserError("classifier guidance needs a label, the class to lead to")
        if not (is_number(self.scale) and self.scale >= 0 and isfinite(self.scale)):
            raise UserError(f"the classifier's scale must be a number from 0 up (0 = none, 1 = Bayes' rule), got {self.scale}")

    def check(self, model: LatentDiffusionSpec) -> None:
        """Refuses, by UserError, a model whose noisy samples are not those that the classifier was trained on."""
        spec = self.classifier.spec
        misfit = f"classifier {spec.name!r} does not fit model {model.name!r}"
        if not spec.normalization.has_latents_of(model.normalization):
            raise UserError(
                f"{misfit}: it was trained on {_in_words(spec.normalization)}, the model draws {_in_words(model.normalization)}"
            )
        for what, its, models in (
            ("picture size", in_pixels(spec.size), in_pixels(model.size)),
            ("number of channels", spec.normalization.channels, model.normalization.channels),
            ("latents' shift", spec.normalization.shift, model.normalization.shift),
            ("latents' scale", spec.normalization.scale, model.normalization.scale),
            ("process", spec.process, model.process),
        ):
            if its != models:
                raise UserError(f"{misfit}: its {what} is {its}, the model's {models}")

    def __call__(self, denoise: Denoise, process: NoiseProcess, rows: Sequence[int]) -> Denoise:
        """The guided denoiser of the images with these numbers."""
        labels = torch.tensor([self.labels[row % len(self.labels)] for row in rows])
        return classifier_guided(denoise, self.classifier.logits, labels, self.scale, process)


def _in_words(normalization: LatentNormalization) -> str:
    return f"latents of first stage {normalization.digest[:12]}" if normalization.digest else "pixels"
