"""Holes that a model learns to paint: boxes, strokes and silhouettes, in their shares and sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ldm.core.random import generator
from ldm.data import random_masks
from ldm.data.random_masks import random_mask

SIZE, COUNT = 100, 2000
ERROR = 4 * 0.5 / COUNT**0.5


class Recorder:
    """Stands for PIL's canvas."""

    def __init__(self) -> None:
        self.boxes: list[tuple[float, ...]] = []
        self.lines: list[tuple[tuple[float, ...], int]] = []
        self.brush: list[float] = []

    def rectangle(self, box: tuple[float, ...], fill: int) -> None:
        self.boxes.append(box)

    def line(self, ends: tuple[float, ...], fill: int, width: int) -> None:
        self.lines.append((ends, width))

    def ellipse(self, box: tuple[float, ...], fill: int) -> None:
        self.brush.append(box[2] - box[0])


def test_a_mask_is_of_zeros_and_ones_and_never_empty() -> None:
    """Also where the object fills the picture, or grows to fill it, so that nothing is around it."""
    everything, dot = torch.ones(1, 16, 16), torch.zeros(1, 16, 16)
    dot[:, 3, 5] = 1
    for silhouette in (None, torch.zeros(1, 16, 16), dot, everything):
        masks = torch.stack([random_mask((16, 16), silhouette, generator("mask", i)) for i in range(200)])
        assert masks.shape == (200, 1, 16, 16) and set(masks.unique().tolist()) == {0.0, 1.0} - ({0.0} if masks.all() else set())
        assert masks.flatten(1).any(1).all()


def test_boxes_strokes_and_silhouettes_have_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, two and one of five; a silhouette is grown by up to 8 % of the side, and half of the time all but it is the hole."""
    monkeypatch.setattr(random_masks, "_boxes", lambda draw, size, generator: draw.point((0, 0), 1))
    monkeypatch.setattr(random_masks, "_strokes", lambda draw, size, generator: draw.point((1, 0), 1))
    dot = torch.zeros(1, SIZE, SIZE)
    dot[:, 50, 50] = 1
    found: Counter[str] = Counter()
    reach = []
    for i in range(COUNT):
        mask = random_mask((SIZE, SIZE), dot, generator("share", i))[0]
        is_inverted = mask.sum() > SIZE**2 / 2
        if mask.sum() == 1 and not mask[50, 50]:
            found["boxes" if mask[0, 0] else "strokes"] += 1
            continue
        found["around" if is_inverted else "object"] += 1
        reach.append(int((1 - mask if is_inverted else mask)[50].sum()) // 2)
    shares = {kind: count / COUNT for kind, count in found.items()}
    assert shares == pytest.approx({"boxes": 0.4, "strokes": 0.4, "around": 0.1, "object": 0.1}, abs=ERROR)
    assert set(reach) == set(range(9))

    plain = Counter(int(random_mask((SIZE, SIZE), None, generator("plain", i))[0, 0, 0]) for i in range(COUNT))
    assert plain[1] / COUNT == pytest.approx(0.5, abs=ERROR)


def test_boxes_have_their_number_and_size() -> None:
    """One to three, of 15 to 70 % of the side, anywhere within."""
    numbers: Counter[int] = Counter()
    boxes = []
    for i in range(COUNT):
        recorder = Recorder()
        random_masks._boxes(recorder, (SIZE, SIZE), generator("boxes", i))  # type: ignore[arg-type]
        numbers[len(recorder.boxes)] += 1
        boxes += recorder.boxes
    assert {number: count / COUNT for number, count in numbers.items()} == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, abs=ERROR)
    left, top, right, bottom = torch.tensor(boxes).unbind(1)
    for low, high in ((left, right), (top, bottom)):
        assert (low.min(), high.max()) == (0, SIZE - 1)
        assert ((high - low + 1).min(), (high - low + 1).max()) == (15, 70)


def test_strokes_have_their_number_length_and_width() -> None:
    """One to four walks of two to six steps, by a brush of 6 to 22 % of the side; a step is of 8 to 30 %, and ends at the border."""
    numbers: Counter[int] = Counter()
    steps, widths, lengths = set(), [], []
    for i in range(COUNT):
        recorder = Recorder()
        random_masks._strokes(recorder, (SIZE, SIZE), generator("strokes", i))  # type: ignore[arg-type]
        walks: list[list[tuple[float, ...]]] = []
        for ends, width in recorder.lines:
            if not walks or walks[-1][-1][2:] != ends[:2]:
                walks.append([])
            walks[-1].append(ends)
            widths.append(width)
        numbers[len(walks)] += 1
        steps |= {len(walk) for walk in walks}
        ends = torch.tensor([ends for ends, _ in recorder.lines])
        assert ends.min() >= 0 and ends.max() <= SIZE
        inside = ((ends[:, 2:] > 0) & (ends[:, 2:] < SIZE)).all(1)
        lengths += (ends[:, 2:] - ends[:, :2]).norm(dim=1)[inside].tolist()
        assert torch.tensor(recorder.brush).round().int().tolist() == [width for _, width in recorder.lines]
    assert {number: count / COUNT for number, count in numbers.items()} == pytest.approx(dict.fromkeys((1, 2, 3, 4), 0.25), abs=ERROR)
    assert steps == {2, 3, 4, 5, 6} and (min(widths), max(widths)) == (6, 22)
    assert min(lengths) == pytest.approx(8, abs=0.1) and max(lengths) == pytest.approx(30, abs=0.1)
