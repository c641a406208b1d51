"""Reading for training: order, augmentation, losses, the latent cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data.config import Augment, DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.open import open_dataset
from ldm.data.order import GlobalOrder
from ldm.data.set_index import Index
from ldm.data.shards import write_shards
from ldm.data.sources.folder import FolderSource

ALONE = World(0, 1, torch.device("cpu"))
MOVES = Augment(flip=0.5, shift=0.2, zoom=(0.7, 1.4), rotate=25)
COLOURS = Augment(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten white discs on black; the mask is the disc and the map is 1 on it."""
    rows, columns = np.mgrid[:32, :32]
    for name in ("masks", "maps"):
        (tmp_path / "in" / name).mkdir(parents=True)
    for i in range(10):
        disc = ((rows - 10 - i) ** 2 + (columns - 20 + i) ** 2 < 60).astype(np.uint8)
        Image.fromarray(np.stack([disc * 255] * 3, -1)).save(tmp_path / f"in/{i}.png")
        Image.fromarray(disc * 255).save(tmp_path / f"in/masks/{i}.png")
        Image.fromarray(disc).save(tmp_path / f"in/maps/{i}.png")
        (tmp_path / f"in/{i}.txt").write_text(f"disc {i}\nround {i}\nspot {i}")
    return tmp_path / "in"


def opened(folder: Path, **changes: object) -> IndexedDataset:
    values = {"train": str(folder), "size": 32, "background": (0, 0, 0)} | changes
    return open_dataset(DataConfig(**values), "train", 0)  # type: ignore[arg-type]


# --- order


def test_every_epoch_is_another_permutation() -> None:
    order = GlobalOrder(11, 4, seed=3)
    seen = [place for step in range(1, 12) for place in order.indices(step)]  # 44 places: 4 epochs
    epochs = [[index for index, epoch in seen if epoch == e] for e in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("batch_size", [1, 3, 11, 30])
def test_an_epoch_ends_with_the_batch_that_holds_its_last_sample(batch_size: int) -> None:
    order = GlobalOrder(11, batch_size, seed=0)
    for step in range(1, 25):
        shown = [place % 11 for place in range((step - 1) * batch_size, step * batch_size)]
        assert order.ends_epoch(step) == (10 in shown)


def test_a_batch_may_be_larger_than_the_set() -> None:
    counts = Counter(index for index, _ in GlobalOrder(3, 9, seed=0).indices(5))
    assert counts == {0: 3, 1: 3, 2: 3}


def test_resuming_and_sharing_out_give_the_same_batches(pictures: Path) -> None:
    data = opened(pictures, augment=MOVES, workers=1)
    whole = [batch for batch, _ in islice(data.batches(5, 1, (0, 5)), 6)]
    later = [batch for batch, _ in islice(opened(pictures, augment=MOVES).batches(5, 4, (0, 5)), 3)]
    shares = [list(islice(data.batches(5, 4, part), 3)) for part in ((0, 2), (2, 5))]
    for expected, resumed, (first, places), (second, _) in zip(whole[3:], later, *shares, strict=True):
        assert resumed.names == expected.names == first.names + second.names and places == (0, 1)
        assert resumed.captions == expected.captions
        assert_close(resumed.images, expected.images, rtol=0, atol=0)
        assert_close(torch.cat([first.images, second.images]), expected.images, rtol=0, atol=0)


# --- augmentation


def test_mask_and_map_move_with_the_picture(pictures: Path) -> None:
    data = opened(pictures, augment=MOVES)
    for epoch in range(12):
        sample = data.sample(epoch % 10, epoch)
        assert isinstance(sample.mask, Tensor) and isinstance(sample.map, Tensor)
        bright = sample.image[:1] > 0
        assert (bright != sample.mask.bool()).sum() <= 0.1 * bright.sum()  # the disc's edge
        assert torch.equal(sample.map == 1, sample.mask[0].bool())


def test_augmentation_depends_on_seed_epoch_and_sample_only(pictures: Path) -> None:
    config = DataConfig(train=str(pictures), size=32, augment=MOVES)
    one, again, other = (open_dataset(config, "train", seed) for seed in (0, 0, 1))
    again.sample(3, 0)  # whatever was read before
    assert_close(one.sample(4, 2).image, again.sample(4, 2).image, rtol=0, atol=0)
    assert not torch.equal(one.sample(4, 2).image, one.sample(4, 3).image)
    assert not torch.equal(one.sample(4, 2).image, other.sample(4, 2).image)
    assert {one.sample(4, epoch).caption for epoch in range(40)} == {"disc 4", "round 4", "spot 4"}


def test_nothing_changes_unless_it_is_asked_for(pictures: Path) -> None:
    changed = [opened(pictures, augment=augment).sample(3, 1) for augment in (Augment(), replace(Augment(), flip=1.0))]
    stored = torch.from_numpy(np.array(Image.open(pictures / "3.png"))).permute(2, 0, 1) / 127.5 - 1
    assert_close(changed[0].image, stored, rtol=0, atol=1e-6)
    assert_close(changed[1].image, stored.flip(-1), rtol=0, atol=1e-6)


def test_what_comes_into_view_has_the_colour_that_a_transparent_picture_was_laid_on(tmp_path: Path) -> None:
    """Shown half as large, an empty picture is of one colour: the background, or its grey."""
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "a.png")
    for channels, levels in ((3, (30, 60, 120)), (1, (58,))):
        config = DataConfig(train=str(tmp_path), size=32, channels=channels, background=(30, 60, 120), augment=Augment(zoom=(0.5, 0.5)))
        image = open_dataset(config, "train", 0).sample(0, 0).image
        wanted = torch.tensor(levels)[:, None, None].expand(-1, 32, 32) / 127.5 - 1
        assert_close(image, wanted, rtol=0, atol=1e-6)


def test_colours_change_and_nothing_moves(pictures: Path) -> None:
    plain, coloured = opened(pictures).sample(2, 0), opened(pictures, augment=COLOURS).sample(2, 0)
    assert not torch.equal(plain.image, coloured.image) and coloured.image.abs().max() <= 1
    assert isinstance(plain.map, Tensor) and isinstance(coloured.map, Tensor) and torch.equal(plain.map, coloured.map)


def test_a_folder_is_not_its_own_held_out_set_however_it_is_spelled(pictures: Path) -> None:
    for val in (str(pictures), f"{pictures}/", f"{pictures}/../{pictures.name}"):
        with pytest.raises(UserError, match="has no held-out split"):
            open_dataset(DataConfig(train=str(pictures), val=val, size=32), "val", 0)


def test_held_out_pictures_never_change(pictures: Path) -> None:
    shards = {split: write_shards(pictures, split, map(FolderSource(pictures).record, part)) for split, part in PARTS.items()}
    Index(splits=shards, map_names=("ground", "disc")).write(pictures)
    config = DataConfig(train=str(pictures), val=str(pictures), size=32, background=(0, 0, 0), augment=MOVES)
    held_out = open_dataset(config, "val", 0)
    assert [held_out.sample(i, 0).name for i in range(len(held_out))] == ["7.png", "8.png", "9.png"]
    first, later = held_out.sample(1, 0), held_out.sample(1, 5)
    assert first.caption == later.caption == "disc 8"
    assert_close(first.image, later.image, rtol=0, atol=0)
    assert len(open_dataset(config, "train", 0)) == 7


PARTS = {"train": range(7), "val": range(7, 10)}


def test_pictures_of_five_channels(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (12, 12, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", drawn)
    image = opened(tmp_path, size=12, channels=5).sample(0, 0).image
    assert_close((image + 1) * 127.5, torch.from_numpy(drawn).permute(2, 0, 1).float(), rtol=0, atol=1e-4)


# --- losses


def test_an_unreadable_record_is_replaced_and_named(pictures: Path) -> None:
    (pictures / "4.png").write_bytes(b"broken")
    data = opened(pictures, max_lost=0.1)
    assert [data.sample(i, 0).name for i in (3, 4, 5)] == ["3.png", "5.png", "5.png"]
    assert list(data.unreadable.records) == ["4"] and "1 of 10" in data.unreadable.line()


def test_more_losses_than_stated_stop_the_run(pictures: Path) -> None:
    for name in ("4", "6"):
        (pictures / f"{name}.png").write_bytes(b"broken")
    data = opened(pictures, max_lost=0.1)
    data.sample(4, 0)
    with pytest.raises(UserError, match="max_lost"):
        data.sample(6, 0)


def test_a_truncated_shard_loses_its_tail_by_key(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    split = write_shards(out, "train", map(FolderSource(pictures).record, range(10)))
    Index(splits={"train": split}, map_names=("ground", "disc")).write(out)
    (shard,) = split.shards
    whole = (out / shard.name).read_bytes()
    (out / shard.name).write_bytes(whole[: dict(shard.open_index(out))["8"][0].offset])
    data = opened(out, max_lost=0.5)
    assert sorted(data.unreadable.records) == ["8", "9"] and len(data) == 8
    with pytest.raises(UserError, match="max_lost"):
        opened(out, max_lost=0.1)


def test_commands_need_permission() -> None:
    with pytest.raises(UserError, match="allow_remote"):
        open_dataset(DataConfig(train="pipe:cat shard.tar", size=8), "train", 0)


# --- the latent cache


def test_the_cache_gives_what_the_first_stage_gave(pictures: Path, tmp_path: Path) -> None:
    data = opened(pictures, augment=MOVES)
    calls: list[int] = []

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return images[:, :2, ::4, ::4] * 3, images[:, :2, ::4, ::4].abs()

    def cache(data: IndexedDataset, first_stage: str = "a", views: int = 3) -> LatentCache:
        folder = tmp_path / "cache"
        how = {"first_stage_digest": first_stage, "views": views, "keeps_pixels": True, "batch_size": 7, "processes": ALONE}
        return LatentCache.open_or_build(folder, data, encode, **how)  # type: ignore[arg-type]

    built = cache(data)
    for index, epoch in ((0, 0), (9, 2), (4, 7)):
        found, mean, std = built.item(index, epoch)
        sample = data.sample(index, epoch % 3)
        assert (found.name, found.captions, found.label) == (sample.name, sample.captions, sample.label)
        assert_close(found.image, sample.image, rtol=0, atol=1 / 255 + 1e-6)
        assert isinstance(found.map, Tensor) and isinstance(sample.map, Tensor) and torch.equal(found.map, sample.map)
        expected_mean, expected_std = encode(sample.image[None])
        assert_close(mean, expected_mean[0])
        assert_close(std, expected_std[0])

    captions = {built.item(5, epoch)[0].caption for epoch in range(0, 60, 3)}
    assert captions == {"disc 5", "round 5", "spot 5"}  # one view, but all of its captions

    def builds(*changed: object) -> bool:
        calls.clear()
        cache(*changed)  # type: ignore[arg-type]
        return bool(calls)

    assert not builds(data)
    assert builds(data, "b") and builds(data, "b", 2)
    assert builds(opened(pictures, augment=COLOURS), "b", 2)
    Image.new("RGB", (32, 32)).save(pictures / "0.png")
    assert builds(opened(pictures, augment=COLOURS), "b", 2)


def test_a_flipped_bit_in_the_cache_is_told(pictures: Path, tmp_path: Path) -> None:
    def opened_cache() -> LatentCache:
        how = {"first_stage_digest": "a", "views": 1, "keeps_pixels": False, "batch_size": 7, "processes": ALONE}
        encode = lambda images: (images[:, :2, ::4, ::4], images[:, :2, ::4, ::4].abs())  # noqa: E731
        return LatentCache.open_or_build(tmp_path / "cache", opened(pictures), encode, **how)  # type: ignore[arg-type]

    opened_cache().item(9, 0)
    (path,) = (tmp_path / "cache").glob("*.arrays")
    content = bytearray(path.read_bytes())
    size = 4 * 2 * 8 * 8  # bytes of mean or std: float32, 2 channels, 8x8
    std = opened_cache().item(9, 0)[2]
    content[content.rindex(std.numpy().tobytes()) - size] ^= 1
    path.write_bytes(content)
    opened_cache().item(8, 0)
    with pytest.raises(UserError, match=r"\.arrays: the mean of row 9, 9\.png, is not what was written there"):
        opened_cache().item(9, 0)


def test_the_cache_replaces_only_a_cache(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "own.npy").write_bytes(b"a year's work")
    how = {"first_stage_digest": "a", "views": 1, "keeps_pixels": True, "batch_size": 7, "processes": ALONE}
    with pytest.raises(UserError, match="latents is not a cache"):
        LatentCache.open_or_build(tmp_path / "latents", opened(pictures), lambda images: (images, images), **how)  # type: ignore[arg-type]
    assert (tmp_path / "latents" / "own.npy").read_bytes() == b"a year's work"


# --- what a plain place shows of itself


def test_a_folder_of_maps_knows_its_classes_and_what_is_unknown(pictures: Path) -> None:
    """Class 0 is a class; a picture without a map is unknown everywhere, not class 0."""
    (pictures / "maps/3.png").unlink()
    data = opened(pictures)
    assert data.facts.map_names == ("class 0", "class 1")
    sample = next(s for s in (data.sample(i, 0) for i in range(10)) if s.name == "3.png")
    assert sample.map is not None
    assert sample.map.unique().tolist() == [-1]


def test_bare_shards_with_text_labels_name_them(pictures: Path, tmp_path: Path) -> None:
    records = [replace(FolderSource(pictures).record(i), label=("pear", "apple")[i % 2]) for i in range(4)]
    (tmp_path / "bare").mkdir()
    write_shards(tmp_path / "bare", "some", records)
    data = opened(tmp_path / "bare")
    assert data.facts.label_names == ("apple", "pear")
    assert [data.sample(i, 0).label for i in range(4)] == [1, 0, 1, 0]


def test_reading_ahead_by_processes_gives_the_same_batches(pictures: Path) -> None:
    here, ahead = ([batch for batch, _ in islice(opened(pictures, workers=w).batches(4, 3, (1, 3)), 3)] for w in (0, 1))
    for one, other in zip(here, ahead, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
