"""Random numbers that depend on names only."""

from __future__ import annotations

import math

import pytest
import torch

from ldm.core import philox
from ldm.core.random import Streams, digest


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


@pytest.mark.parametrize("size", [1, 3, 7, 16, 65, 100, 4096, 4 * philox.CHUNK + 5])
def test_what_is_drawn_does_not_depend_on_the_batch(size: int) -> None:
    """To the bit, for sizes that fill no vector register, and for those that are drawn in several chunks."""
    samples = range(5, 5 + (40 if size == 4096 else 3))
    for draw in (Streams.normal, Streams.uniform):
        batch = draw(Streams.of("batch", samples=samples), "x", (size,))
        for row, sample in list(enumerate(samples))[::7]:
            assert torch.equal(draw(Streams.of("batch", samples=[sample]), "x", (size,))[0], batch[row])


def test_samples_beyond_32_bits_have_numbers_of_their_own() -> None:
    near, far = (Streams.of("far", samples=[sample]).uniform("x", (100,)) for sample in (1, 1 + 2**32))
    assert not (near == far).any()


@pytest.mark.parametrize(
    "counter, key, wanted",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ],
)
def test_the_words_are_the_published_ones(counter: str, key: str, wanted: str) -> None:
    """The lines "philox4x32 7" of Random123's kat_vectors; however many of the rounds are made in place."""
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    keys = philox._keys(high << 32 | low)
    for apart in range(len(keys) + 1):
        begun = [word.clone() for word in philox._rounds(words, keys[:apart])]
        found = philox._rounds_in_place([*begun, torch.empty_like(begun[0]), torch.empty_like(begun[0])], keys[apart:])
        assert " ".join(f"{int(word):08x}" for word in found) == wanted


def test_a_draw_is_what_it_was() -> None:
    """A pin: what a seed gives must not change by accident. Uniform numbers are the words' upper 24 bits."""
    drawn = Streams.of(0, "train", 1, samples=[3]).uniform("noise", (4,))[0]
    blocks = philox._rounds([torch.tensor([value]) for value in (0, 3, 0, 0)], philox._keys(digest(0, "train", 1, "noise")))
    assert drawn.tolist() == [(int(word) & philox.WORD) // 256 / 2**24 for word in blocks]
    assert digest(0, "train", 1, "noise") == 6985070707063758457
    assert drawn.tolist() == [0.5950983762741089, 0.5967876315116882, 0.009920835494995117, 0.39866113662719727]


def test_normals_are_normal_in_all_pairs_of_neighbours() -> None:
    """Moments to the sixth, the share beyond three standard deviations, and what share a block or stand side by side is uncorrelated."""
    x = Streams.of("shape", samples=range(256)).normal("x", (1024,)).double()
    count = x.numel()
    for order, wanted, error in ((2, 1, 2), (4, 3, 96), (6, 15, 10170)):
        assert abs((x**order).mean() - wanted) < 4 * math.sqrt(error / count)
    assert abs((x.abs() > 3).double().mean() - 0.0026998) < 4 * math.sqrt(0.0027 / count)
    quarters = x.unflatten(1, (4, 256)).transpose(0, 1).flatten(1)
    assert (torch.corrcoef(quarters) - torch.eye(4)).abs().max() < 4 / math.sqrt(count / 4)
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4 / math.sqrt(count)
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(count)
