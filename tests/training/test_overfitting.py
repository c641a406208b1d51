"""When a run is said to learn its training pictures by heart."""

from __future__ import annotations

import pytest

from ldm.training.overfitting import overfitting


def rows(held_out: list[float], trained: list[float], names: tuple[str, str] = ("val/loss", "loss")) -> list[dict[str, float]]:
    """Ten steps an evaluation."""
    found = []
    for number, (value, loss) in enumerate(zip(held_out, trained, strict=True), 1):
        found += [{"step": 10 * number - 10 + step, names[1]: loss} for step in range(1, 11)]
        found[-1][names[0]] = value
    return found


FALLING = [5.0, 4.0, 3.0, 2.0]


@pytest.mark.parametrize("names", [("val/loss", "loss"), ("val/l1", "pixel")])
def test_it_is_said_with_the_step_and_the_keys(names: tuple[str, str]) -> None:
    line = overfitting(rows([2.0, 1.0, 1.1, 1.2], FALLING, names))
    assert f"least at step 20 ({names[0]} 1) and is 1.2 now, while that of training fell from 4 to 2" in line
    assert f"train.keep_best={names[0]}" in line and "train.steps=20" in line and "data.augment" in line


@pytest.mark.parametrize(
    "held_out, trained",
    [
        ([4.0, 3.0, 2.0, 1.0], FALLING),  # better and better
        ([2.0, 1.0, 1.015, 1.018], FALLING),  # hardly worse
        ([2.0, 1.5, 1.0, 1.2], FALLING),  # one evaluation only
        ([2.0, 1.0, 1.1, 1.2], [2.0, 1.0, 2.0, 3.0]),  # training gets worse too: it diverges
        ([1.0, 2.0], FALLING[:2]),  # too short
    ],
)
def test_what_is_no_sign_of_it(held_out: list[float], trained: list[float]) -> None:
    assert overfitting(rows(held_out, trained)) == ""


def test_without_held_out_numbers_nothing_is_said() -> None:
    assert overfitting([{"step": step, "loss": 1.0} for step in range(1, 40)]) == ""
    assert overfitting([*rows([2.0, 1.0, 1.1, 1.2], FALLING), {"step": 41, "loss": 1.0}]) == ""  # no evaluation now
