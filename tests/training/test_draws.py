"""Draws made ahead are those that would be made when they are asked for."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from ldm.core.random import Draw, Streams
from ldm.training.draws import StepDraws

SAMPLES = tuple(range(8))
SHAPE = (4, 32, 32)


def test_draws_are_the_same_ahead_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where steps are left out, by micro-batches, and where a step draws more than the one before."""
    makers: dict[tuple[object, ...], str] = {}
    make = Draw.make

    def watched(draw: Draw) -> Tensor:
        makers.setdefault(draw.names, threading.current_thread().name)
        return make(draw)

    monkeypatch.setattr(Draw, "make", watched)
    draws = StepDraws(7, torch.device("cpu"))
    for step in (1, 2, 3, 7, 8):
        streams, wanted = draws.streams(step, SAMPLES), Streams.of(7, "train", step, samples=SAMPLES)
        for start, stop in ((0, 8), (0, 4), (4, 8)):
            for name in ("noise", "noise", "posterior") if step > 2 else ("noise",):
                plain = Draw(
                    kind="normal", names=(*wanted.names, name), samples=SAMPLES[start:stop], shape=SHAPE, device=torch.device("cpu")
                )
                assert torch.equal(streams.part(start, stop).normal(name, SHAPE), make(plain))
        assert torch.equal(streams.uniform("time"), wanted.uniform("time"))
    by_thread = {(names[2], names[3]) for names, maker in makers.items() if maker.startswith("draws")}
    assert {(2, "noise"), (3, "noise"), (3, "time"), (8, "noise"), (8, "posterior")} <= by_thread
    assert not by_thread & {(1, "noise"), (3, "posterior"), (7, "noise")}


def test_numbers_that_a_step_changes_are_not_given_twice() -> None:
    draws = StepDraws(0, torch.device("cpu"))
    draws.streams(1, SAMPLES).normal("noise", SHAPE)
    streams = draws.streams(2, SAMPLES)
    wanted = streams.normal("noise", SHAPE).clone()
    streams.normal("noise", SHAPE).zero_()
    assert torch.equal(streams.normal("noise", SHAPE), wanted)
