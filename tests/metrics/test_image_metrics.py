"""Metrics of images, the input of Inception, and the cache of features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from ldm.core.errors import UserError
from ldm.metrics import reconstruction
from ldm.metrics.features import cached_features, levels
from ldm.metrics.inception_score import logits_of, score_and_interval, score_of_logits
from ldm.metrics.report import Metric, table
from ldm.pipelines.canvas import to_pil


def random_images(count=3, channels=3, size=16, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_errors_in_closed_form():
    """An error of 0.1 everywhere is 20 log10(2 / 0.1) dB."""
    images = random_images() * 0.8
    torch.testing.assert_close(reconstruction.l1(images, images + 0.1), torch.full((3,), 0.1))
    torch.testing.assert_close(reconstruction.psnr(images, images + 0.1), torch.full((3,), 20 * math.log10(20)).double(), rtol=1e-5, atol=0)


def test_each_image_has_its_own_number():
    images, other = random_images(), random_images(seed=1)
    for measure in (reconstruction.l1, reconstruction.psnr, reconstruction.ssim):
        together = measure(images, other)
        torch.testing.assert_close(together, torch.cat([measure(images[i : i + 1], other[i : i + 1]) for i in range(3)]))


def test_equal_images_and_values_out_of_range():
    images = random_images().round()
    beyond = images * 5  # the same when clipped
    assert reconstruction.psnr(images, beyond).tolist() == [126.0] * 3
    assert reconstruction.l1(images, beyond).max() == 0
    torch.testing.assert_close(reconstruction.ssim(images, beyond), torch.ones(3))


def test_ssim_of_constant_images():
    """Without structure only the term of the means is left: (2ab + C) / (a^2 + b^2 + C), C = (0.01 L)^2, for levels in [0, L], L = 255."""
    a, b, c = 191.25, 95.625, 2.55**2
    found = reconstruction.ssim(torch.full((1, 1, 16, 16), a / 127.5 - 1), torch.full((1, 1, 16, 16), b / 127.5 - 1))
    torch.testing.assert_close(found, torch.tensor([(2 * a * b + c) / (a * a + b * b + c)]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_gets_what_a_png_would_hold(channels):
    images = random_images(channels=channels) * 1.2
    for pixels, picture in zip(levels(images), to_pil(images), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(picture.convert("RGB")))


def test_inception_refuses_other_channels():
    with pytest.raises(UserError, match="these have 4 channels"):
        levels(torch.zeros(1, 4, 8, 8))


def test_features_are_computed_once_and_again_when_anything_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return torch.full((4, 2), float(len(made)))

    first = cached_features(("data", "transform"), 4, make, {})
    assert torch.equal(cached_features(("data", "transform"), 4, make, {}), first) and len(made) == 1
    assert cached_features(("other data", "transform"), 4, make, {})[0, 0] == 2
    assert cached_features(("data", "other transform"), 4, make, {})[0, 0] == 3

    (file,) = (f for f in (tmp_path / "features").iterdir() if f.read_bytes()[-4:] == first[0, 0].numpy().tobytes())
    file.write_bytes(file.read_bytes()[:-8])  # truncated
    assert cached_features(("data", "transform"), 4, make, {})[0, 0] == 4


def test_inception_score_in_closed_form():
    """Certain class probabilities, equally over ten classes: 10. Uniform class probabilities: 1."""
    layer = torch.zeros(1008, 2048)
    layer[torch.arange(10), torch.arange(10)] = 1
    certain = torch.zeros(1000, 2048)
    certain[torch.arange(1000), torch.arange(1000) % 10] = 200
    assert score_of_logits(logits_of(certain, layer)) == pytest.approx(10, rel=0.05)  # classes are not quite even in the parts of 100
    assert score_of_logits(logits_of(torch.zeros(20, 2048), layer)) == pytest.approx(1)


@pytest.mark.parity
def test_inception_score_is_the_peers():
    logits = 3 * torch.randn(203, 7, generator=torch.Generator().manual_seed(0))
    assert score_of_logits(logits) == pytest.approx(isc_features_to_metric(logits)["inception_score_mean"], rel=1e-12)


def test_the_interval_of_a_score_has_the_deviation_over_new_samples():
    sets = [3 * torch.randn(400, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(40)]
    values, spans = zip(*(score_and_interval(logits) for logits in sets), strict=True)
    mean, widths = sum(values) / 40, torch.tensor([high - low for low, high in spans])
    assert sum(low <= mean <= high for low, high in spans) >= 34
    assert widths.mean().item() == pytest.approx(2 * 1.96 * torch.tensor(values).std().item(), rel=0.35)
    assert score_and_interval(torch.randn(5000, 5))[1] is None


def test_table_names_what_could_not_be_measured():
    measured = Metric(name="fid", title="FID", value=12.34567, interval=(11.0, 1300.4), pictures=8, better="lower", about="...")
    missing = Metric(name="is", title="Inception Score", value=None, pictures=8, better="higher", about="no class layer")
    lines = table([measured, missing]).splitlines()
    assert lines[2].split() == ["FID", "12.35", "11", "to", "1300", "8", "lower"]
    assert lines[-1] == "Inception Score: not measured: no class layer"
    assert measured.plain()["interval"] == [11.0, 1300.4] and missing.plain()["value"] is None
