"""Aspect-ratio buckets: sizes, which picture is in which, and the order, which is pinned."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core.errors import UserError
from ldm.data import images
from ldm.data.bucket_order import BucketOrder
from ldm.data.buckets import Buckets
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.images import decode_image, size_of
from ldm.data.open import open_dataset
from ldm.data.prepare import Preparation, prepare_sources
from ldm.data.sample_transform import SampleTransform
from ldm.data.sources.folder import FolderSource

SMALL = Buckets(pixels=256, step=4, aspects=(0.5, 1.0, 2.0))  # 20x12, 16x16, 12x20
DIGEST = "8bd77150a0b8cf5eda133c18d8c360817d80c2b5741aedc0d19bedfae543c063"  # of the plain config's transform
SHAPES = ((20, 40), (40, 20), (28, 28), (18, 44), (30, 40))  # height, width


def encoded(height: int, width: int, level: int, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (level, 200, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve of five shapes, with maps whose left half is class 1."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in" / "maps").mkdir(parents=True)
    for number in range(12):
        height, width = SHAPES[number % 5]
        (tmp_path / f"in/{number:02d}.png").write_bytes(encoded(height, width, 20 * number, "PNG"))
        classes = np.zeros((height, width), np.uint8)
        classes[:, : width // 2] = 1
        Image.fromarray(classes).save(tmp_path / f"in/maps/{number:02d}.png")
    return tmp_path / "in"


def opened(folder: Path, **changes: object) -> IndexedDataset:
    values = {"train": str(folder), "size": 16, "buckets": SMALL} | changes
    found = open_dataset(DataConfig(**values), "train", 0)  # type: ignore[arg-type]
    assert isinstance(found, IndexedDataset)
    return found


def test_sizes_have_at_most_the_pixels_and_nearly_the_aspect() -> None:
    """At 1024 x 1024 they are much those of SDXL's table (Podell et al. 2023, appendix I)."""
    found = Buckets(pixels=1024**2).sizes
    assert found[:5] == ((1472, 704), (1344, 768), (1216, 832), (1152, 896), (1024, 1024))
    assert found[5:] == tuple((width, height) for height, width in reversed(found[:4]))
    assert all(height * width <= 1024**2 and height % 64 == width % 64 == 0 for height, width in found)
    assert Buckets(pixels=256, step=16, aspects=(0.9, 1.0, 1.1)).sizes == ((16, 16),)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"pixels": 100, "step": 0}, "must be at least 1"),
        ({"pixels": 4096, "aspects": ()}, r"must be positive numbers, width by height, as in \[0.5, 1, 2\], got \[\]"),
        ({"pixels": 4096, "aspects": (1.0, -2.0)}, "must be positive numbers"),
        ({"pixels": 4096, "aspects": (1.0, 4.0)}, "no image of aspect 4 with sides that are multiples of 64 has 4096 pixels"),
    ],
)
def test_buckets_that_are_none_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Buckets(**wrong)  # type: ignore[arg-type]


def test_a_picture_is_in_the_bucket_of_the_nearest_logarithm_of_its_aspect() -> None:
    buckets = Buckets(pixels=1024**2)
    draw = np.random.default_rng(0)
    shapes = draw.integers(1, 9000, (500, 2)).astype(np.uint32)
    logs = np.log([width / height for height, width in buckets.sizes])
    wanted = np.abs(np.log(shapes[:, 1] / shapes[:, 0])[:, None] - logs).argmin(1)
    assert np.array_equal(buckets.nearest(shapes), wanted)
    extremes = np.array([[10**8, 1], [1, 10**8], [0, 0], [704, 1472], [100, 100]])
    assert buckets.nearest(extremes).tolist() == [0, 8, 4, 8, 4]


def test_the_order_of_buckets_is_pinned() -> None:
    """A run that resumes on another machine, or by a later release, goes on with these very samples."""
    order = BucketOrder(np.array([0] * 10 + [1] * 3 + [2] * 7), 4, seed=0)
    assert [order.indices(step) for step in (1, 2, 7)] == [
        [(16, 0), (13, 0), (17, 0), (19, 0)],
        [(6, 0), (5, 0), (8, 0), (0, 0)],
        [(17, 1), (15, 1), (14, 1), (18, 1)],
    ]
    large = BucketOrder(np.arange(100_000) % 7, 256, seed=3)
    assert [index for index, _ in large.indices(2_000_001)[:3]] == [24039, 197, 83007]


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_batches_are_of_one_bucket_and_leave_no_sample_out(batch_size: int) -> None:
    """Also where a batch is larger than a bucket, or than the set: after batch_size rounds each sample was there as often."""
    bucket_of = np.array([0] * 10 + [3] * 1 + [2] * 7)
    order = BucketOrder(bucket_of, batch_size, seed=1)
    steps = len(bucket_of)  # of batch_size rounds
    seen = [order.indices(step) for step in range(1, steps + 1)]
    assert all(len(batch) == batch_size and len({bucket_of[index] for index, _ in batch}) == 1 for batch in seen)
    assert Counter(place for batch in seen for place in batch) == {(i, e): 1 for i in range(len(bucket_of)) for e in range(batch_size)}
    ends = [step for step in range(1, steps + 1) if order.ends_epoch(step)]
    rounds = {sum(count * number // batch_size for count in (10, 1, 7)) for number in range(1, batch_size + 1)}
    assert ends == sorted(rounds - {0})
    assert len({tuple(bucket_of[index] for ((index, _), *_) in seen) for seen in (seen, seen[::-1])}) == 2 or batch_size > 10


def test_rounds_and_seeds_mix_the_buckets_anew() -> None:
    bucket_of = np.arange(4000) % 4
    orders = [BucketOrder(bucket_of, 10, seed) for seed in (0, 1)]
    rows = [[int(bucket_of[order.indices(step)[0][0]]) for step in range(first, first + 400)] for order in orders for first in (1, 401)]
    assert all(Counter(row) == {bucket: 100 for bucket in range(4)} for row in rows)
    for number, row in enumerate(rows):
        for other in rows[:number]:
            same = sum(one == two for one, two in zip(row, other, strict=True))
            assert abs(same - 100) < 4 * math.sqrt(400 * 3 / 16)


def test_samples_are_brought_to_their_buckets_with_their_maps(pictures: Path) -> None:
    data = opened(pictures)
    for index in range(12):
        height, width = SHAPES[index % 5]
        wanted = SMALL.sizes[int(SMALL.nearest(np.array([[height, width]]))[0])]
        sample = data.sample(index, 0)
        assert sample.map is not None and sample.image.shape[1:] == sample.map.shape == wanted == data.size_of(index)
        assert (sample.map[:, : wanted[1] // 2] == 1).all() and (sample.map[:, wanted[1] // 2 :] == 0).all()
    assert data.buckets == "pictures in each bucket of in (height x width): 20x12 3, 16x16 2, 12x20 7"


def test_shares_and_resumed_runs_see_the_same_batches(pictures: Path) -> None:
    whole = [batch for batch, _ in islice(opened(pictures, workers=1).batches(5, 1, (0, 5)), 6)]
    shares = [[batch for batch, _ in islice(opened(pictures).batches(5, 4, part), 3)] for part in ((0, 2), (2, 5))]
    assert len({batch.images.shape for batch in whole}) == 3
    for expected, first, second in zip(whole[3:], *shares, strict=True):
        assert first.names + second.names == expected.names
        assert torch.equal(torch.cat([first.images, second.images]), expected.images)


def test_what_stands_in_for_an_unreadable_picture_takes_its_size(pictures: Path) -> None:
    (pictures / "01.png").write_bytes(encoded(40, 20, 3, "PNG")[:-30])  # its header is whole
    (pictures / "02.png").write_bytes(b"no picture")
    data = opened(pictures, max_lost=0.5)
    assert [data.sample(index, 0).image.shape[1:] for index in (0, 1, 2)] == [(12, 20), (20, 12), (16, 16)]
    assert len(data.unreadable.records) == 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_header_says_the_size_of_the_upright_picture(kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(20, 40, 9, kind, exif=exif)
        image = decode_image(content, "x")
        assert size_of(content, "x") == (image.height, image.width)


def test_a_header_says_the_size_of_an_array() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 7, 2), np.uint16))
    assert size_of(buffer.getvalue(), "x", suffix="npy") == (5, 7)


def test_headers_of_a_folder_are_looked_at_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [opened(pictures).size_of(index) for index in range(12)]
    monkeypatch.setattr("ldm.data.sources.picture_sizes.size_of", lambda *_, **__: pytest.fail("a header is looked at"))
    assert [opened(pictures).size_of(index) for index in range(12)] == found


def test_a_prepared_set_knows_its_pictures_sizes(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [opened(pictures).size_of(index) for index in range(12)]
    out = tmp_path / "prepared"
    prepare_sources({"train": FolderSource(pictures)}, out, Preparation(), lambda records, *_: records)
    monkeypatch.setattr(images, "stored_size", lambda *_, **__: pytest.fail("a header is looked at"))
    assert [opened(out).size_of(index) for index in range(12)] == found
    (out / "train.sizes").write_bytes(bytes(8 * 12))
    with pytest.raises(UserError, match="train.sizes is not what was written there"):
        opened(out)


def digest_of(config: DataConfig) -> str:
    found = SampleTransform(config=config, split="train", seed=0, label_names=(), map_names=(), has_masks=False, has_maps=False)
    return found.digest


def test_without_buckets_nothing_changes_and_with_them_what_is_cached_does() -> None:
    """The digest that caches of latents and of features go by is that of before there were buckets."""
    plain = DataConfig(train="x", size=16)  # train names no part of it
    assert digest_of(plain) == DIGEST
    others = [replace(plain, buckets=buckets) for buckets in (SMALL, replace(SMALL, step=2))]
    assert len({DIGEST, *map(digest_of, others)}) == 3


def test_a_stream_is_refused() -> None:
    config = DataConfig(train="https://example.org/{0..3}.tar", size=16, buckets=SMALL, allow_remote=True)
    with pytest.raises(
        UserError, match="data.buckets needs the size of every picture before the first step, which is not known of shards at a URL"
    ):
        open_dataset(config, "train", 0)
