"""Conditions as images and words, for the sample grid."""

from __future__ import annotations

import pytest
import torch

from ldm.conditioning.attributes import AttributesConfig, ChoiceAttribute, NumberAttribute, TagsAttribute
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.conditioner import Examples
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.conditioning.shown import box_images, map_images
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts

BATCH = Batch(
    names=("one", "two"),
    images=torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16),
    captions=("a cat", ""),
    labels=torch.tensor([0, 1]),
    maps=torch.tensor([[[0, 1], [2, -1]], [[1, 1], [1, 1]]]),
    boxes=torch.tensor([[[1, 0.0, 0.0, 1.0, 1.0], [2, 0.25, 0.25, 0.75, 0.5]], [[0, 0.5, 0.5, 0.75, 0.75], [-1, 0, 0, 0, 0]]]),
    attributes=({"age": 3, "colour": "red", "tags": ["big", "old"]}, {"age": "4"}),
)
ATTRIBUTES = AttributesConfig(
    fields={
        "age": NumberAttribute(low=0.0, high=9.0),
        "colour": ChoiceAttribute(names=("red", "blue")),
        "tags": TagsAttribute(names=("big", "old")),
    }
)
WORDS = [
    (ClassLabelConfig(num_classes=3, names=("cat", "dog", "owl")), ("cat", "dog")),
    (ClassLabelConfig(num_classes=3), ("0", "1")),
    (SemanticMapConfig(num_classes=3, names=("sky", "sea", "sand")), ("sky, sea, sand", "sea")),
    (
        BoxesConfig(num_classes=3, width=16, depth=1, heads=2, head_width=8, vocabulary=101),
        ("1 at 0.00 0.00 1.00 1.00; 2 at 0.25 0.25 0.75 0.50", "0 at 0.50 0.50 0.75 0.75"),
    ),
    (ATTRIBUTES, ("age 3, colour red, tags big; old", "age 4")),
]


def examples(config) -> Examples:
    found = config.build(context_width=16, latent_channels=4).examples(BATCH, DataFacts(has=frozenset()), 2, (), (4, 4))
    assert found is not None
    return found


@pytest.mark.parametrize("config, words", WORDS, ids=lambda value: getattr(value, "kind", ""))
def test_what_was_asked_for_is_put_in_words(config, words) -> None:
    assert examples(config).words == words


def test_a_map_has_a_colour_a_class_and_grey_for_unknown() -> None:
    shown = examples(SemanticMapConfig(num_classes=3)).shown
    assert shown.shape == (2, 3, 2, 2)
    colours = {tuple(shown[0, :, row, column].tolist()) for row in range(2) for column in range(2)}
    assert len(colours) == 4 and shown[0, :, 1, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(shown[1], shown[0, :, 0, 1][:, None, None].expand(3, 2, 2))
    many = map_images(torch.arange(24).reshape(1, 4, 6), 24)
    assert len({tuple(colour) for colour in many.flatten(2)[0].T.tolist()}) == 24


@pytest.mark.parametrize("side", [16, 64, 256])
def test_boxes_are_outlines_on_white(side: int) -> None:
    shown = box_images(BATCH.boxes, side)
    assert shown.shape == (2, 3, side, side)
    white = (shown == 1).all(1)
    assert not white[0, 0].any() and not white[0, -1].any() and not white[0, :, 0].any() and not white[0, :, -1].any()
    assert white[0, side // 8, side // 8] and not white[0, round(0.25 * (side - 1)), side // 2]
    rows, columns = (~white[1]).nonzero().T
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (round(0.5 * (side - 1)), round(0.75 * (side - 1)))


def test_a_small_picture_is_shown_as_the_network_is_given_it() -> None:
    config = LowResolutionConfig()
    found = examples(config)
    part = config.build(context_width=None, latent_channels=4)
    torch.testing.assert_close(found.shown, part(found.value, (4, 4)).concat, rtol=0, atol=0)
