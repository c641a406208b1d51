"""A classifier on disk: it guides a diffusion model to a class, or judges the model's samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.folder import Checkpoint, load_strictly, read_again, write_checkpoint
from ldm.conditioning.class_label import label_index
from ldm.config.loader import to_yaml
from ldm.core.errors import UserError
from ldm.core.settings import Size, height_width
from ldm.data.config import Fit
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.process import NoiseProcess
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest
from ldm.networks.classifier import ClassifierConfig, ClassifierNetwork


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """All that rebuilds a classifier.

    Attributes:
        name: of the run.
        size: of the training images, [height, width] in pixels, or the side of a square.
        fit: how images were brought to that size, see `DataConfig.fit`.
        normalization: of its input: that of a first stage's latents, or of pixels (downsampling factor 1, empty digest).
        process: noise process of its input, for a noise-aware classifier; None = a judge, which was trained on clean samples only.
        network_input: scaling and network_time of the network's input at a time t; a judge gets the clean sample and network_time 0.
        label_names: names of the classes, in the order of their indices.
        accuracy: top-1 on held-out samples, at times drawn as in training; None = not measured.
    """

    name: str
    size: Size
    fit: Fit = "centre"
    normalization: LatentNormalization
    network: ClassifierConfig
    process: NoiseProcess | None
    network_input: NetworkInput = TableIndex()
    label_names: tuple[str, ...]
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if len(self.label_names) < 2 or len(set(self.label_names)) < len(self.label_names):
            raise UserError(f"a classifier needs at least 2 classes of different names, got {', '.join(self.label_names) or 'none'}")
        if self.process is not None:
            self.network_input.check(self.process)

    @property
    def sees_pixels(self) -> bool:
        return not self.normalization.digest

    def build_network(self) -> ClassifierNetwork:
        """The network with fresh weights.

        Raises:
            UserError: samples whose side cannot be halved down to the last level.
        """
        height, width = (side // self.normalization.downsampling_factor for side in height_width(self.size))
        return self.network.build(self.normalization.channels, (height, width), len(self.label_names))

    def logits(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor | None) -> Tensor:
        """Logits (B, classes), float32, of a network made by `build_network`.

        Args:
            x: (B, channels, H, W); noised to time t, or clean if this is a judge.
            t: (B,) times on any device; None for a judge.
        """
        if self.process is None:
            assert t is None, "a judge takes no time"
            return network(x.float(), torch.zeros(len(x), device=x.device)).float()
        assert t is not None, "a noise-aware classifier needs the time"
        return network(*self.network_input(x, t, self.process)).float()


@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A classifier, frozen and in eval mode.

    Attributes:
        digest: of its weights.
    """

    spec: ClassifierSpec
    network: ClassifierNetwork
    digest: str

    def logits(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """(B, classes), differentiable in x; see `ClassifierSpec.logits`.

        Raises:
            UserError: samples of another size or number of channels.
        """
        return self.spec.logits(self.network, x, t)

    def index_of(self, label: str | int) -> int:
        """The index of a class given by name or number; see `label_index`."""
        return label_index(label, self.spec.label_names, len(self.spec.label_names))


def write_classifier(folder: Path, spec: ClassifierSpec, weights: dict[str, Tensor], card: str, max_file_bytes: int) -> None:
    """Writes a classifier's checkpoint folder."""
    write_checkpoint(folder, to_yaml(spec), {"classifier": weights}, card, max_file_bytes)


@read_again
def load_classifier(folder: Path | str, device: torch.device) -> LoadedClassifier:
    """A classifier from a checkpoint folder.

    Raises:
        UserError: not a checkpoint; altered; not of a classifier; weights and config that do not belong together.
    """
    opened = Checkpoint.open(folder)
    if not opened.has("classifier"):
        found = "a diffusion model" if opened.has("denoiser") else "a first stage"
        raise UserError(f"checkpoint {folder} holds {found}, not a classifier; train one with scripts/train_classifier.py")
    spec, weights = opened.spec(ClassifierSpec), opened.tensors("classifier")
    with torch.device("meta"):
        network = spec.build_network()
    load_strictly(network, weights, f"checkpoint {folder}: classifier")
    return LoadedClassifier(spec=spec, network=network.to(device).eval().requires_grad_(False), digest=weights_digest(weights))
