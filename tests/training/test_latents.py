"""What stage two trains on: latents drawn from the first stage's posterior, anew at each step, in the units of the latent normalization."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tasks import FIRST_STAGE, DrawnPictures
from torch import Tensor
from torch.testing import assert_close

from ldm.core.random import Streams
from ldm.data.batch import Batch, Sample
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.training.latents import LatentBatch, LatentData, Latents

COUNT = 2000
SPACE = LatentNormalization(channels=2, downsampling_factor=2, shift=(0.5, -1.0), scale=(2.0, 0.25))


@pytest.mark.parametrize("is_cached", [True, False])
def test_latents_are_drawn_from_the_posterior(is_cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """N(mean, std^2), shifted and scaled: from cached moments as from those of the encoder."""
    first_stage = FIRST_STAGE.build().eval().requires_grad_(False)
    first_stage.normalization = SPACE
    latents = Latents(first_stage, LatentData(train_set=DrawnPictures()), torch.device("cpu"))
    batch = next(latents.batches(1, 1, (0, 1)))
    batch = replace(batch, records=replace(batch.records, images=batch.records.images.expand(COUNT, -1, -1, -1)))

    means, stds = torch.tensor([1.0, -3.0]), torch.tensor([0.5, 2.0])
    moments = tuple(each[:, None, None].expand(COUNT, 2, 1, 1) for each in (means, stds))
    monkeypatch.setattr(first_stage, "moments", lambda images: moments)
    if is_cached:
        batch = replace(batch, moments=moments)
        monkeypatch.setattr(first_stage, "moments", None)

    drawn = latents.draw(batch, Streams.of(0, "train", 1, samples=range(COUNT)))[:, :, 0, 0]
    shift, scale = torch.tensor(SPACE.shift), torch.tensor(SPACE.scale)
    assert_close((drawn.mean(0) / scale + shift - means) / stds, torch.zeros(2), rtol=0, atol=4 / COUNT**0.5)
    assert_close(drawn.std(0) / scale, stds, rtol=4 / (2 * COUNT) ** 0.5, atol=0)

    again = latents.draw(batch, Streams.of(0, "train", 2, samples=range(COUNT)))[:, :, 0, 0]
    correlation = torch.corrcoef(torch.stack((drawn[:, 0], again[:, 0])))[0, 1].abs()
    assert correlation < 4 / COUNT**0.5  # another step draws anew


def test_parts_of_a_batch_are_all_of_it() -> None:
    pictures = Batch.of([DrawnPictures().sample(index, 0) for index in range(7)])
    moments = torch.arange(7.0), -torch.arange(7.0)
    batch = LatentBatch(records=pictures, positions=tuple(range(3, 10)), moments=moments)
    parts = [batch.part(start, stop) for start, stop in batch.parts(3)]
    assert [len(part.positions) for part in parts] == [2, 2, 3]
    assert sum((part.positions for part in parts), ()) == batch.positions
    assert sum((part.records.names for part in parts), ()) == pictures.names
    for number in range(2):
        assert torch.equal(torch.cat([part.moments[number] for part in parts]), moments[number])
    assert list(batch.parts(99)) == [(i, i + 1) for i in range(7)] and list(batch.part(0, 0).parts(3)) == [(0, 0)]


def test_cached_latents_are_the_same_read_ahead_or_not() -> None:
    """By a worker process, from any step on."""

    def item(index: int, epoch: int) -> tuple[Sample, Tensor, Tensor]:
        return DrawnPictures().sample(index, epoch), torch.full((2, 1, 1), float(index)), torch.full((2, 1, 1), float(epoch))

    cache = SimpleNamespace(count=10, item=item)
    found = []
    for workers in (0, 1):
        data = LatentData(train_set=DrawnPictures(), cache=cache, workers=workers)  # type: ignore[arg-type]
        found.append(list(islice(Latents(FIRST_STAGE.build(), data, torch.device("cpu")).batches(4, 2, (1, 3)), 3)))
    for here, ahead in zip(*found, strict=True):
        assert here.positions == ahead.positions == (1, 2) and here.records.names == ahead.records.names
        assert here.moments and ahead.moments
        assert all(torch.equal(a, b) for a, b in zip(here.moments, ahead.moments, strict=True))
    assert len({batch.records.names for batch in found[0]}) == 3
