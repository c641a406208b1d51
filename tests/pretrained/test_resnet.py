"""Keras' ResNet50 from TensorFlow.js' files."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from ldm.pretrained import resnet
from ldm.pretrained.cache import cache_folder
from ldm.pretrained.convert import resnet_of_tfjs
from ldm.pretrained.resnet import MEAN, ResNetFeatures, empty
from ldm.pretrained.table import TABLE

BLOCKS = TABLE["resnet50"].architecture["blocks"]
EPSILON = 1e-3


def keras_arrays() -> dict[str, Tensor]:
    """Arrays of the network's names and shapes: kernels (H, W, I, O)."""
    random = torch.Generator().manual_seed(0)
    arrays: dict[str, Tensor] = {}

    def layer(convolution: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        arrays[f"{convolution}/kernel"] = torch.randn(shape, generator=random) * (2 / math.prod(shape[:3])) ** 0.5
        arrays[f"{convolution}/bias"] = torch.randn(shape[3], generator=random)
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            arrays[f"{norm}/{name}"] = torch.rand(shape[3], generator=random) + 0.5

    layer("conv1", "bn_conv1", (7, 7, 3, 64))
    width = 64
    for stage, count in enumerate(BLOCKS):
        inner = 64 * 2**stage
        for block in range(count):
            name = f"{stage + 2}{'abcdef'[block]}_branch"
            for branch, shape in (("2a", (1, 1, width, inner)), ("2b", (3, 3, inner, inner)), ("2c", (1, 1, inner, 4 * inner))):
                layer(f"res{name}{branch}", f"bn{name}{branch}", shape)
            if block == 0:
                layer(f"res{name}1", f"bn{name}1", (1, 1, width, 4 * inner))
            width = 4 * inner
    return arrays


def converted(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    entries = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]
    content = b"".join(array.contiguous().numpy().tobytes() for array in arrays.values())
    shards = [content[start : start + 4_000_000] for start in range(0, len(content), 4_000_000)]  # which cut through arrays
    model = json.dumps({"weightsManifest": [{"weights": entries}]}).encode()
    return safetensors.torch.load(resnet_of_tfjs(model, *shards, blocks=BLOCKS))


def as_keras(x: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    """The network as Keras' code has it: biases, strides in a block's first convolution, the mean over places."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, arrays[f"{convolution}/kernel"].permute(3, 2, 0, 1), arrays[f"{convolution}/bias"], stride, padding)
        gamma, beta, mean, variance = (arrays[f"{norm}/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance"))
        return F.batch_norm(x, mean, variance, gamma, beta, eps=EPSILON)

    x = F.pad(layer(x, "conv1", "bn_conv1", 2, 3).relu(), (1, 1, 1, 1))
    x = F.max_pool2d(x, 3, 2)
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            name, stride = f"{stage + 2}{'abcdef'[block]}_branch", 2 if block == 0 and stage > 0 else 1
            y = layer(x, f"res{name}2a", f"bn{name}2a", stride).relu()
            y = layer(y, f"res{name}2b", f"bn{name}2b", padding=1).relu()
            y = layer(y, f"res{name}2c", f"bn{name}2c")
            x = (y + (layer(x, f"res{name}1", f"bn{name}1", stride) if block == 0 else x)).relu()
    return x.mean((2, 3))


def test_the_network_is_keras_and_sees_blue_first(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = keras_arrays()
    state = converted(arrays)
    assert state.keys() == {name for name in empty().state_dict() if not name.endswith("num_batches_tracked")}
    monkeypatch.setattr(resnet, "fetch", lambda *_: "")
    monkeypatch.setattr(safetensors.torch, "load_file", lambda _: state)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    seen = images.float()[:, [2, 1, 0]] - torch.tensor(MEAN).reshape(1, 3, 1, 1)
    with torch.no_grad():
        assert_close(ResNetFeatures()(images), as_keras(seen, arrays), rtol=1e-3, atol=1e-3)


def test_the_published_weights_give_the_published_features() -> None:
    """Of a picture of four squares; by Keras' formulas above on the package's own arrays."""
    if not (cache_folder() / TABLE["resnet50"].file).is_file():
        pytest.skip("resnet50 is not fetched: python -m ldm.pretrained resnet50")
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 0, :32], image[:, 1, :, :32], image[:, 2, 32:, 32:] = 250, 120, 200
    with torch.no_grad():
        features = ResNetFeatures()(image)
    assert features.shape == (1, 2048)
    assert [features.mean().item(), features.std().item(), features.max().item()] == pytest.approx([0.18084, 0.82017, 18.5455], rel=1e-3)
