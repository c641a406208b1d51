"""The Inception is the published one: pinned to published and to peers' numbers."""

from __future__ import annotations

import pytest
import torch
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.v2.functional import to_pil_image

from ldm.app.evaluation import Preprocessing, training_pictures
from ldm.metrics.features import InceptionFeatures
from ldm.metrics.frechet import FrechetReference
from ldm.metrics.kernel import KernelReference
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
    names = [name for name, part in network.named_modules() if isinstance(part, BasicConv2d)]
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


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.timeout(600)
def test_two_folders_are_as_far_apart_as_torch_fidelity_says(tmp_path, monkeypatch):
    """FID within 0.1 %, KID with one subset of all pictures likewise, through our own reading of the folders."""
    monkeypatch.setenv("LDM_OFFLINE", "1")
    draw = torch.Generator().manual_seed(0)
    for name, tint in (("one", 0), ("other", 60)):
        (tmp_path / name).mkdir()
        for i in range(10):
            coarse = torch.randint(0, 196, (3, 4, 4), generator=draw).repeat_interleave(8, 1).repeat_interleave(8, 2)
            coarse[0] += tint
            to_pil_image(coarse.to(torch.uint8)).save(tmp_path / name / f"{i:02d}.png")

    theirs = calculate_metrics(
        input1=str(tmp_path / "one"),
        input2=str(tmp_path / "other"),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=10,
        feature_extractor_weights_path=str(write_fidelity_weights(tmp_path / "inception.pth")),
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    inception = InceptionFeatures(torch.device("cpu"))
    how = Preprocessing(size=32, channels=3, background=(255, 255, 255))
    sets = [training_pictures(str(tmp_path / name), how) for name in ("one", "other")]
    one, other = (inception.of(drawn.batches(), drawn.count, drawn.place) for drawn in sets)
    assert FrechetReference(other).distance(one) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert KernelReference(other).distance(one) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
