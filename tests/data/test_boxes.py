"""Boxes of objects: read, cut and moved with their picture, and learned from."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from ldm.app.arguments import train_ldm
from ldm.conditioning.boxes import Boxes
from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Batch, Sample
from ldm.data.config import Augment, DataConfig
from ldm.data.facts import BOXES
from ldm.data.open import open_dataset
from ldm.data.record import Record, boxes_of
from ldm.data.set_index import Index
from ldm.data.shards import write_shards
from ldm.data.sources.folder import FolderSource
from ldm.data.transforms import Placement, augmented, fitted, fitted_boxes

LAYOUT = """
name: tiny-layout
data: {train: null, val: null, size: 16, cache_latents: false}
first_stage: {kind: identity}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [2], heads: 2, context_width: 12}
process: discrete_vp
prediction: v
weighting: constant
conditioning: {boxes: {kind: boxes, num_classes: 5, width: 12, depth: 1, heads: 1, head_width: 8, max_boxes: 3, vocabulary: 101}}
sampling: {sampler: ddim, steps: 2, guidance: 1}
train: {steps: 2, batch_size: 4, checkpoint_every: 100, sample_every: 100, optimizer: {learning_rate: 1.0e-3}}
"""


def test_a_folder_of_boxes_beside_the_pictures(tmp_path):
    """`boxes/PATH.json` mirrors the pictures' paths; a picture without one has no boxes; a broken one makes the picture unreadable."""
    for name in ("a/one", "a/two", "b/three"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png(8, 8))
    (tmp_path / "boxes/a").mkdir(parents=True)
    (tmp_path / "boxes/a/one.json").write_text("[[2, 0.25, 0, 0.5, 1]]")
    source = FolderSource(tmp_path)
    assert source.has_boxes and source.label_names == ("a", "b")
    assert [source.record(index).boxes for index in range(3)] == [((2, 0.25, 0.0, 0.5, 1.0),), (), ()]
    before = source.digest
    (tmp_path / "boxes/a/one.json").write_text("[[2, 0.25, 0, 0.5]]")
    assert FolderSource(tmp_path).digest != before
    with pytest.raises(UserError, match="one.json: not boxes as JSON"):
        FolderSource(tmp_path).record(0)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return buffer.getvalue()


def around(mask: torch.Tensor) -> list[float]:
    """Left, top, right, bottom, as shares, of where a mask (1, S, S) is bright."""
    rows, columns = (mask[0] > 0.5).any(1).nonzero(), (mask[0] > 0.5).any(0).nonzero()
    side = mask.shape[-1]
    return [columns.min().item() / side, rows.min().item() / side, (columns.max().item() + 1) / side, (rows.max().item() + 1) / side]


def rectangle(box: list[float], height: int, width: int) -> torch.Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(1, height, width)
    mask[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1
    return mask


@pytest.mark.parametrize("height, width", [(64, 128), (160, 64), (96, 96)])
def test_a_box_is_cut_as_the_picture_is(height, width):
    for box in ([0.3, 0.25, 0.5, 0.75], [0.0, 0.1, 0.9, 0.4], [0.45, 0.45, 1.0, 1.0]):
        ((label, *found),) = fitted_boxes(torch.tensor([[3.0, *box]]), Placement.of((height, width), (32, 32))).tolist()
        assert label == 3
        assert found == pytest.approx(around(fitted(rectangle(box, height, width), Placement.of((height, width), (32, 32)))), abs=1.1 / 32)


def test_what_is_cut_away_has_no_box():
    boxes = torch.tensor([[1.0, 0.0, 0.0, 0.2, 1.0], [2.0, 0.4, 0.0, 0.6, 1.0]])  # the first lies left of a wide picture's centre
    place = Placement.of((64, 128), (32, 32))
    torch.testing.assert_close(fitted_boxes(boxes, place), torch.tensor([[2.0, 0.3, 0.0, 0.7, 1.0]]))
    touching = torch.tensor([[1.0, 0.0, 0.0, 0.25, 1.0]])  # ends where what is shown begins
    assert len(fitted_boxes(touching, place)) == 0


@pytest.mark.parametrize(
    "augment",
    [
        Augment(flip=1.0),
        Augment(shift=0.2),
        Augment(zoom=(0.7, 1.3)),
        Augment(rotate=40),
        Augment(flip=0.5, shift=0.1, zoom=(0.8, 1.2), rotate=30),
    ],
    ids=["flip", "shift", "zoom", "rotate", "all"],
)
def test_a_box_moves_as_the_picture_does(augment):
    """Around the moved rectangle, which a turned box holds as tightly as can be."""
    box = [0.35, 0.4, 0.6, 0.55]
    for draw in range(12):
        mask = rectangle(box, 120, 120)
        seen = torch.tensor([[4.0, *box]])
        _, moved, _, boxes = augmented(mask, mask, None, seen, augment, torch.zeros(1, 1, 1), generator("boxes", draw))
        assert boxes[0, 0] == 4
        assert boxes[0, 1:].tolist() == pytest.approx(around(moved), abs=2.6 / 120)


def test_records_keep_their_boxes_and_refuse_what_is_none():
    record = Record(key="a", suffix="png", image=png(4, 4), boxes=((2, 0.0, 0.25, 0.5, 1.0), (0, 0.1, 0.1, 0.2, 0.2)))
    assert Record.of("a", record.members()) == record
    for wrong in ([[1, 0, 0, 1]], [[1, 0, 0, "x", 1]], [[-1, 0, 0, 1, 1]], [[1.5, 0, 0, 1, 1]], [[1, 0.5, 0, 0.5, 1]], [[1, 0, 0, 2, 1]]):
        members = {"png": png(4, 4), "json": json.dumps({"boxes": wrong}).encode()}
        with pytest.raises(UserError, match="box"):
            Record.of("a", members)


def test_a_batch_has_room_for_the_most_boxes():
    def sample(count: int) -> Sample:
        return Sample(name=str(count), image=torch.zeros(3, 2, 2), caption="", label=-1, boxes=torch.full((count, 5), 0.5))

    batch = Batch.of([sample(1), sample(3), sample(0)])
    assert (batch.boxes[..., 0] >= 0).sum(1).tolist() == [1, 3, 0]
    assert batch.boxes.shape == (3, 3, 5)
    assert torch.equal(batch.part(1, 2).boxes, batch.boxes[1:2])


@pytest.fixture
def shards(tmp_path):
    """Six pictures, the i-th with a box of class i % 3 and, from the fourth on, a second."""

    def records():
        for i in range(6):
            boxes = [(i % 3, 0.25, 0.25, 0.75, 0.5), (4, 0.0, 0.0, 1.0, 1.0)][: 1 + i // 3]
            yield Record(key=f"p{i}", suffix="png", image=png(16, 16), boxes=tuple(boxes))

    folder = tmp_path / "shards"
    Index(splits={"train": write_shards(folder, "train", records())}).write(folder)
    return folder


def test_training_conditions_each_picture_on_its_boxes(shards, tmp_path, monkeypatch):
    data = open_dataset(DataConfig(train=str(shards), size=16), "train", 0)
    assert BOXES in data.facts.has
    assert next(iter(data.some(1))).boxes.tolist() == [[0, 0.25, 0.25, 0.75, 0.5]]

    seen = []
    forward = Boxes.forward
    monkeypatch.setattr(Boxes, "forward", lambda part, boxes, size: seen.append(boxes) or forward(part, boxes, size))
    (tmp_path / "layout.yaml").write_text(LAYOUT)
    words = ["--config", str(tmp_path / "layout.yaml"), "--run-dir", str(tmp_path / "run"), f"data.train={shards}"]
    train_ldm.main(words)
    steps = [boxes for boxes in seen if boxes is not None and len(boxes) == 4]
    assert len(steps) >= 2 and any((boxes[..., 0] >= 0).any() for boxes in steps)
    known = {(0.25, 0.25, 0.75, 0.5), (0.0, 0.0, 1.0, 1.0), (-1.0,) * 4}
    assert all(tuple(box[1:]) in known for boxes in steps for box in boxes.flatten(0, 1).tolist())

    with pytest.raises(UserError, match="set data.cache_latents=false"):
        train_ldm.main([*words, "data.cache_latents=true"])


@pytest.mark.parametrize(
    "box", [[0, 0.5, 0, 0.5, 1], [0, 0, 0.5, 1, 0.5], [0, 0.6, 0, 0.5, 1], [0, 0, 0, 1, 1.01], [0.5, 0, 0, 1, 1], [-1, 0, 0, 1, 1]]
)
def test_a_box_without_an_inside_is_none(box: list[float]) -> None:
    assert boxes_of([[0, 0, 0, 1, 1]]) == ((0, 0.0, 0.0, 1.0, 1.0),)
    with pytest.raises(ValueError, match="must have a class index, then left < right and top < bottom"):
        boxes_of([box])
