"""Evaluation of models that were trained on aspect-ratio buckets: each picture at the size of its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluations import perfect
from PIL import Image

from ldm.checkpoints.model import AutoencoderSpec, load_first_stage, write_autoencoder
from ldm.core.distributed import ALONE
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.data.buckets import Buckets
from ldm.diffusion.likelihood import bound_times, variational_bound
from ldm.evaluation import generated
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.evaluation.first_stage import evaluate_vae
from ldm.evaluation.latent_diffusion import EvaluationConfig, evaluate_ldm
from ldm.evaluation.likelihood import _Noise, bits_per_dim
from ldm.evaluation.likelihood_task import LikelihoodConfig
from ldm.guidance.thresholded import thresholded
from ldm.metrics.features import as_shown
from ldm.pipelines.latent_diffusion import LatentDiffusion

BUCKETS = Buckets(pixels=256, step=4, aspects=(0.5, 1.0, 2.0))
SIZES = [(12, 20), (20, 12), (16, 16)]
COUNT = 7
CONFIG = EvaluationConfig(
    place="shapes", held_out=None, split="train", background=None, name="m", count=None, reference_count=None, classifier=None,
    classifier_scale=1.0, judge=None, bits=None, folder=None,
)  # fmt: skip


@pytest.fixture
def shapes(home: Path) -> Path:
    """Wide, tall and square pictures in turn, in the current folder, with captions."""
    folder = home / "shapes"
    folder.mkdir()
    for number in range(COUNT):
        height, width = SIZES[number % 3]
        levels = torch.randint(256, (height // 4, width // 4, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(levels.repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def opened(name: str) -> LatentDiffusion:
    model = LatentDiffusion.from_pretrained(name, device="cpu")
    return replace(model, spec=replace(model.spec, buckets=BUCKETS))


def test_each_picture_is_made_at_the_size_of_its_record(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as alone, also from the first record again, and kept under its own number."""
    model = opened("model")
    conditions = EvaluationConditions(model=model, source=training_images("shapes", Preprocessing.of(model.spec)))
    how = model.sampling(steps=2, guidance=3.0, num_images=COUNT + 2)
    found = [(numbers, images) for numbers, images in generated.made(conditions, how)]
    assert [numbers for numbers, _ in found] == [[0, 3, 6, 7], [1, 4, 8], [2, 5]]
    kept = generated.SavedImages(shapes.parent)
    for numbers, images in found:
        kept.add(images, numbers)
        for number, image in zip(numbers, images, strict=True):
            assert tuple(image.shape[1:]) == SIZES[number % COUNT % 3]
            one = model.at_size(*image.shape[1:]).render([conditions.condition(number)], [conditions.uncond(number)], how, numbers=[number])
            torch.testing.assert_close(image, one[0], rtol=1e-4, atol=1e-4)
    with Image.open(kept.path / "00008.png") as eighth:
        assert eighth.size == (12, 20)


def test_a_perfect_model_of_buckets_scores_perfectly(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of made, real and reconstructed pictures lie in the order of the records, whatever was computed together."""
    model = opened("model")
    data = training_images("shapes", Preprocessing.of(model.spec)).data
    monkeypatch.setattr(LatentDiffusion, "render", perfect(lambda number: data.sample(number, 0).image))
    result = evaluate_ldm(model, model.sampling(steps=1), CONFIG)
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["fid"] == pytest.approx(0, abs=1e-4) and values["retrieval_top_1"] == 1.0
    assert result.about["preprocessing"]["buckets"] == [[20, 12], [16, 16], [12, 20]]
    for unfit in ({"judge": "x"}, {"classifier": "x"}):
        with pytest.raises(UserError, match="classifiers and judges are of one image size"):
            evaluate_ldm(model, model.sampling(steps=1), replace(CONFIG, **unfit))


def test_a_first_stage_of_buckets_is_measured_on_them(shapes: Path) -> None:
    """Checkpoint and back; the square pictures, two of them, the tall and the wide ones have neighbours of their own size."""
    first_stage, spec, weights = load_first_stage("model", torch.device("cpu"))
    spec = AutoencoderSpec(name="b", size=16, buckets=BUCKETS, first_stage=spec.first_stage, normalization=spec.normalization)
    write_autoencoder(Path("with-buckets"), spec, weights, "# tiny\n", 1 << 30)
    result = evaluate_vae("with-buckets", "shapes", "train", None, None, ALONE)
    data = training_images("shapes", Preprocessing.of(load_first_stage("with-buckets", torch.device("cpu"))[1])).data
    images = [data.sample(number, 0).image[None] for number in range(COUNT)]
    errors = [(first_stage.decode(first_stage.encode(image)).clamp(-1, 1) - image).abs().mean().item() for image in images]
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["l1"] == pytest.approx(sum(errors) / COUNT, rel=1e-4)
    assert values["rfid"] > 0 and values["ifid"] > 0
    assert [tuple(image.shape[2:]) for image in images[:3]] == SIZES


def test_bits_of_pictures_of_several_sizes(shapes: Path) -> None:
    """The bound's mean is that of each size evaluated alone: noise goes by the picture's number, not by its place in a batch."""
    model = opened("plain")
    source = training_images("shapes", Preprocessing.of(model.spec))
    config = LikelihoodConfig(count=3, steps=3, variance=None, probe="rademacher", first_noise=0.5, tolerance=0.5)
    found = {m.name: m.value for m in bits_per_dim(EvaluationConditions(model=model, source=source), source, config, 0, False).metrics}
    bounds = []
    for number in range(3):
        size = SIZES[number]
        alone = model.at_size(*size)
        images = as_shown(training_images("shapes", Preprocessing.of(alone.spec)).images([number]))
        denoise = thresholded(alone.denoiser.bind(alone.encode_condition(alone.uncond())), alone.spec.process)
        streams = Streams.of(0, "bits", samples=[number])
        times = bound_times(alone.spec.process, 3)
        bound = variational_bound(denoise, images, times, alone.spec.process, _Noise(streams, images), fixed_logits=0.0)
        bounds.append(bound.total.item())
    assert found["bits_per_dim_bound"] == pytest.approx(sum(bounds) / 3, rel=1e-4)
