"""The Inception v3 of 2015-12-05, on whose features FID, KID and related metrics are defined (Heusel et al. 2017)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ldm.core.errors import UserError
from ldm.pretrained import sources
from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE, TORCH_FIDELITY_INCEPTION

FEATURES = 2048
CLASSES = 1008


def fid_inception(progress: bool = True) -> nn.Module:
    """torch-fidelity's network on the CPU, frozen, with its batch norms folded into its convolutions: the same in train and eval mode.

    It takes images (B, 3, H, W) uint8 of any size, resizes them to 299 x 299 as TensorFlow 1 did (no antialiasing), and returns
    (B, 2048). The global random state is restored.

    Raises:
        UserError: the weights are not available.
    """
    from torch_fidelity import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory(prefix="ldm-inception-") as folder:
        path = write_fidelity_weights(Path(folder) / "inception.pth", progress)
        with torch.random.fork_rng(devices=[]):  # its random initial weights are all replaced
            network = FeatureExtractorInceptionV3("inception-v3-compat", [str(FEATURES)], str(path))
    for block in network.modules():
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    return _OnlyFeatures(network)


class _OnlyFeatures(nn.Module):
    """A network whose call gives a tuple of one, without the tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor
        (features,) = self.network(images)
        return features


def write_fidelity_weights(path: Path, progress: bool = True) -> Path:
    """Writes the weights as torch-fidelity and torchmetrics read them (`feature_extractor_weights_path`), with a class layer of zeros."""
    state = safetensors.torch.load_file(fetch("fid-inception", progress))
    for layer in TABLE["fid-inception"].architecture["layers"]:  # type: ignore[attr-defined]
        state[f"{layer}.bn.weight"] = torch.ones_like(state[f"{layer}.bn.bias"])
    state |= {"fc.weight": torch.zeros(CLASSES, FEATURES), "fc.bias": torch.zeros(CLASSES)}
    torch.save(state, path)
    return path


def class_layer(progress: bool = True) -> Tensor:
    """(1008, 2048): the weights from features to logits, without bias, for the Inception Score.

    Raises:
        UserError: torch-fidelity's own file, the only one with these weights, is not in torch's cache and cannot be downloaded.
    """
    try:
        return sources.from_torch_hub(TORCH_FIDELITY_INCEPTION, progress)["fc.weight"].float()
    except sources.Unavailable as error:
        raise UserError(f"Inception's class layer is not available: only torch-fidelity's own download has it ({error})") from error
