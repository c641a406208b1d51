"""ResNet50 of Keras, trained on ImageNet: a second feature space, beside Inception's (He et al. 2016)."""

from __future__ import annotations

from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms.v2.functional import resize

from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE

SIDE = 224
MEAN = (103.939, 116.779, 123.68)  # blue, green, red


class ResNetFeatures(nn.Module):
    """Images (B, 3, H, W) uint8 of any size to (B, 2048) float32: scaled to 224 x 224 (bilinear, antialiased), frozen.

    Raises:
        UserError: the weights are not available.
    """

    def __init__(self, progress: bool = True) -> None:
        super().__init__()
        self.network = empty()
        state = safetensors.torch.load_file(fetch("resnet50", progress))
        counted = {name: tensor for name, tensor in self.network.state_dict().items() if name.endswith("num_batches_tracked")}
        self.network.load_state_dict(state | counted)
        self.network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        scaled = resize(images.float(), [SIDE, SIDE], antialias=True)
        mean = torch.tensor(MEAN, device=images.device).reshape(1, 3, 1, 1)
        features: Tensor = self.network(scaled.flip(1) - mean)
        return features


def empty() -> nn.Module:
    """torchvision's network with what is Keras' own: strides lie in a block's first convolution, and batch norms have a larger epsilon."""
    epsilon: float = TABLE["resnet50"].architecture["epsilon"]  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):  # its random initial weights are all replaced
        network: nn.Module = resnet50(norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=epsilon))
    for stage in ("layer2", "layer3", "layer4"):
        block: Any = network.get_submodule(f"{stage}.0")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    network.fc = nn.Identity()
    return network
