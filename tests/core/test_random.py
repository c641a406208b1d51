"""Random numbers that depend on names only."""

from __future__ import annotations

import torch

from ldm.core.random import Streams


def test_a_sample_draws_the_same_alone_in_a_batch_and_in_a_part() -> None:
    batch = Streams.of(7, "train", 3, samples=range(5))
    alone = Streams.of(7, "train", 3, samples=[2])
    assert torch.equal(batch.normal("noise", (4,))[2:3], alone.normal("noise", (4,)))
    assert torch.equal(batch.part(2, 4).normal("noise", (4,)), batch.normal("noise", (4,))[2:4])


def test_names_seeds_steps_and_samples_are_independent() -> None:
    draws = [
        Streams.of(seed, step, samples=[sample]).normal(name, (1000,))[0]
        for seed, step, sample, name in [(0, 1, 1, "a"), (1, 1, 1, "a"), (0, 2, 1, "a"), (0, 1, 2, "a"), (0, 1, 1, "b"), (0, 11, 1, "a")]
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.15  # about 4.5 standard errors


def test_normal_and_uniform_have_their_moments() -> None:
    streams = Streams.of("moments", samples=range(200))
    normal, uniform = streams.normal("n", (100,)), streams.uniform("u", (100,))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.var() - 1 / 12) < 0.003
