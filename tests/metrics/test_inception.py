"""The Inception is the published one: pinned to published and to peers' numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm.pretrained.inception import fid_inception, write_fidelity_weights
from ldm.pretrained.table import TABLE


def test_features_are_those_of_an_independent_network():
    """Pinned to what NVIDIA's TorchScript port of the same network, run by itself, gives for this picture."""
    y, x, c = torch.meshgrid(torch.arange(299), torch.arange(299), torch.arange(3), indexing="ij")
    picture = ((x * (c + 1) + y * y // 50) % 256).to(torch.uint8).permute(2, 0, 1)[None]
    network = fid_inception()
    features = network(picture)[0]
    assert features.mean().item() == pytest.approx(0.276574, rel=1e-4)
    assert features.std().item() == pytest.approx(0.313419, rel=1e-4)
    assert features.topk(4).indices.tolist() == [624, 922, 3, 1924]
    names = [name.removesuffix(".conv") for name, part in network.network.named_modules() if isinstance(part, nn.Conv2d)]
    assert names == list(TABLE["fid-inception"].architecture["layers"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed, published", [(42, 12.6388), (123, 12.7202)])
def test_torchmetrics_documented_values(seed, published, tmp_path):
    """FID of the first pooling's 64 features: the value in the manual of torchmetrics 1.9, and that of versions before 1.0."""
    weights = write_fidelity_weights(tmp_path / "inception.pth")
    torch.manual_seed(seed)
    metric = FrechetInceptionDistance(feature=64, feature_extractor_weights_path=str(weights))
    one = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
    other = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
    for images, is_real in ((one, True), (other, False)):
        for some in images.split(20):
            metric.update(some, real=is_real)
    assert round(metric.compute().item(), 4) == published
