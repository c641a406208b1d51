"""Attributes: values to features, per-attribute dropout, and what of the data is refused."""

from __future__ import annotations

import math

import pytest
import torch

from ldm.conditioning.attributes import AttributesConfig, ChoiceAttribute, NumberAttribute, TagsAttribute
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.data.facts import ATTRIBUTES, DataFacts, attribute_facts

RECORDS = [
    {"colour": "red", "size": "1.5", "tags": "big;old", "smiles": True},
    {"colour": "blue", "size": 4, "tags": ["old"], "smiles": False},
    {"size": "-2"},
]
FACTS = DataFacts(has=frozenset((ATTRIBUTES,)), scan=lambda: attribute_facts(RECORDS))


def config(**fields) -> AttributesConfig:
    return AttributesConfig(fields=fields, width=8)


def built(**fields):
    torch.manual_seed(0)
    return config(**fields).fitted(FACTS).build(context_width=None, latent_channels=4)


def test_open_fields_are_inferred_from_all_records():
    fitted = config(colour=ChoiceAttribute(), size=NumberAttribute(), tags=TagsAttribute(), smiles=ChoiceAttribute()).fitted(FACTS)
    assert fitted.fields["colour"].names == ("blue", "red") and fitted.fields["tags"].names == ("big", "old")
    assert fitted.fields["size"].range == (-2.0, 4.0) and fitted.fields["smiles"].names == ("False", "True")
    assert config(size=NumberAttribute()).is_open and not fitted.is_open


def test_a_number_is_cosines_over_its_range_and_stays_within_it():
    size = NumberAttribute(low=-2.0, high=4.0)
    assert size.features("size", 1.0) == pytest.approx([math.cos(math.pi * 2**k / 2) for k in range(8)])
    assert size.features("size", "9") == size.features("size", 4) != size.features("size", 3.9)


def test_tags_add_up_and_a_missing_value_is_null():
    part = built(tags=TagsAttribute(), size=NumberAttribute())

    def vector(**value) -> torch.Tensor:
        return part(part.of_user(value), (4, 4)).vector[0]

    none, big, old, both = (vector(tags=tags) for tags in ([], ["big"], "old", "big;old"))
    torch.testing.assert_close(both - none, (big - none) + (old - none))
    assert not torch.allclose(none, vector())  # no tags, and tags that are not known
    torch.testing.assert_close(vector(), torch.zeros(8))
    torch.testing.assert_close(part(part.null(1, (4, 4)), (4, 4)).vector[0], torch.zeros(8))


def test_each_attribute_is_dropped_by_its_own_probability():
    part = built(tags=TagsAttribute(drop=0.5), size=NumberAttribute(drop=0.2), smiles=ChoiceAttribute(drop=0.0))
    value = {name: torch.ones_like(rows) for name, rows in part.null(2000, (4, 4)).items()}
    left = {name: rows[:, 0] for name, rows in part.dropped(value, Streams.of(0, samples=range(2000))).items()}
    assert [rows.mean().item() for rows in left.values()] == pytest.approx([0.5, 0.8, 1.0], abs=0.04)
    assert (left["tags"] * left["size"]).mean().item() == pytest.approx(0.4, abs=0.04)  # independent of each other


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weight": NumberAttribute()}, "attribute 'weight'.*colour, size"),
        ({"colour": NumberAttribute()}, "'colour' is a number, but the data has others"),
        ({"colour": ChoiceAttribute(names=("red", "green"))}, "has 'blue', which is not among its names"),
    ],
)
def test_data_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields).fitted(FACTS)


@pytest.mark.parametrize(
    "value, message",
    [
        ({"sizes": 1}, "Did you mean 'size'"),
        ({"size": "tall"}, "size takes a number, not 'tall'"),
        ({"size": float("nan")}, "size takes a number"),
        ({"tags": "big;odl"}, "Did you mean 'old'"),
        ({"tags": "big|old"}, "unknown tags 'big.old'; allowed: .* Several are separated by ';'"),
        ({"size": 500}, "size takes a number from -2 to 4, the range that the model was trained on, got 500"),
        ({"size": "-2.5"}, "got -2.5"),
        ("red", "NAME.FIELD=VALUE, with one of tags, size"),
    ],
)
def test_a_users_mistakes_get_one_line(value, message):
    with pytest.raises(UserError, match=message):
        built(tags=TagsAttribute(), size=NumberAttribute()).of_user(value)
