"""The diffusion transformer: its published size, parity with diffusers, positions, what its output depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.networks.dit import DiT, DiTConfig
from ldm.networks.positions import rotary_angles, sin_cos_table, turned

XL_2 = DiTConfig(width=1152, depth=28, heads=16, vector_width=1152)
SMALL = DiTConfig(width=32, depth=2, heads=4)
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "rotary": {"positions": "rotary"},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"swiglu": True},
    "all": {"positions": "rotary", "qk_norm": True, "swiglu": True, "context_width": 6, "vector_width": 5},
    "checkpointing": {"checkpointing": True},
}


def randomised(config: DiTConfig, in_channels: int = 4, out_channels: int = 4) -> DiT:
    """With no layer that starts at zero."""
    torch.manual_seed(0)
    network = config.build(in_channels, out_channels)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def condition_of(config: DiTConfig, count: int = 2) -> Condition:
    generator = torch.Generator().manual_seed(1)
    tokens = None if config.context_width is None else torch.randn(count, 3, config.context_width, generator=generator)
    return Condition(
        tokens=tokens,
        vector=None if config.vector_width is None else torch.randn(count, config.vector_width, generator=generator),
    )


def test_dit_xl_2_has_the_published_number_of_parameters() -> None:
    """675,129,632 with the class table, 1,001 rows, and the fixed table of 16 x 16 positions, which here is computed."""
    with torch.device("meta"):
        network = XL_2.build(4, 8)
    assert sum(p.numel() for p in network.parameters()) + 1001 * 1152 + 16 * 16 * 1152 == 675_129_632


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_as_zero_and_trains_every_weight(variant: str) -> None:
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    x, t = torch.randn(2, 4, 4, 6), torch.tensor([3.0, 700.0])
    assert not config.build(4, 3)(x, t, condition_of(config)).any()
    network = randomised(config)
    network(x, t, condition_of(config)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["time", "vector", "tokens", "concat"])
def test_its_output_depends_on_every_condition(name: str) -> None:
    config = dataclasses.replace(SMALL, context_width=6, vector_width=5)
    network = randomised(config, in_channels=5)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 700.0])
    given = dataclasses.replace(condition_of(config), concat=torch.randn(2, 1, 4, 4))
    before = network(x, t, given)
    changed = t + 1 if name == "time" else t
    other = given if name == "time" else dataclasses.replace(given, **{name: getattr(given, name) + 1})
    assert (network(x, changed, other) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_masked_tokens_have_no_influence() -> None:
    config = dataclasses.replace(SMALL, context_width=6)
    network = randomised(config)
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 700.0]), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    changed = torch.where(mask[..., None], tokens, tokens + 5)
    assert_close(network(x, t, Condition(tokens=tokens, token_mask=mask)), network(x, t, Condition(tokens=changed, token_mask=mask)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_are_independent(variant: str) -> None:
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    network = randomised(config).double()
    x, t, given = torch.randn(2, 4, 6, 4).double(), torch.tensor([3.0, 700.0]), condition_of(config)
    both = network(x, t, given)
    alone = [network(x[i : i + 1], t[i : i + 1], Condition(**{k: v[i : i + 1] for k, v in vars_of(given).items()})) for i in range(2)]
    assert_close(torch.cat(alone), both)


def vars_of(condition: Condition) -> dict[str, Tensor]:
    return {name: value for name in ("tokens", "vector") if (value := getattr(condition, name)) is not None}


def test_rotary_scores_depend_on_distance_alone() -> None:
    """q at (r, c) with k at (r', c') gives what q at (r + 1, c + 2) with k at (r' + 1, c' + 2) gives."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).float()
    angles = rotary_angles(6, 7, 8).view(6, 7, 4)

    def score(a: tuple[int, int], b: tuple[int, int]) -> float:
        return (turned(q, angles[a][None]) * turned(k, angles[b][None])).sum().item()

    assert score((1, 1), (4, 3)) == pytest.approx(score((2, 3), (5, 5)), abs=1e-5)
    assert score((1, 1), (4, 3)) != pytest.approx(score((1, 1), (3, 4)), abs=1e-3)
    assert_close(turned(q, angles[2, 3][None]).norm(), q.norm())


def test_the_table_of_positions_is_the_published_one() -> None:
    """MAE's: the first half is the column's, sines before cosines."""
    table = sin_cos_table(2, 3, 8)
    assert_close(table[1, :2], torch.tensor([1.0, 0.01]).sin())
    assert_close(table[1, 2:4], torch.tensor([1.0, 0.01]).cos())
    assert_close(table[3, 4:6], torch.tensor([1.0, 0.01]).sin())
    assert_close(table[3, 6:], torch.tensor([1.0, 0.01]).cos())


@pytest.mark.parity
def test_it_is_diffusers_transformer_to_rounding() -> None:
    """Its time frequencies and the eps of one norm are diffusers' own; the published ones are ours by default."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = dataclasses.replace(SMALL, vector_width=32, frequency_shift=1, mlp_eps=1e-5)
    ours = config.build(4, 8).eval()
    source = theirs.state_dict()
    first = "transformer_blocks.0.norm1.emb."
    weights = {
        "patch_embed": "pos_embed.proj",
        "time_embed.0": f"{first}timestep_embedder.linear_1",
        "time_embed.2": f"{first}timestep_embedder.linear_2",
        "final.modulation": "proj_out_1",
        "final.linear": "proj_out_2",
    }
    for index in range(2):
        here, there = f"blocks.{index}", f"transformer_blocks.{index}"
        weights |= {f"{here}.attn.proj": f"{there}.attn1.to_out.0", f"{here}.modulation": f"{there}.norm1.linear"}
        weights |= {f"{here}.mlp.fc1": f"{there}.ff.net.0.proj", f"{here}.mlp.fc2": f"{there}.ff.net.2"}
        for name, value in source.items():  # all blocks embed alike
            if name.startswith(f"{there}.norm1.emb."):
                value.copy_(source[name.replace(there, "transformer_blocks.0")])
    state = {f"{here}.{leaf}": source[f"{there}.{leaf}"] for here, there in weights.items() for leaf in ("weight", "bias")}
    for index in range(2):
        for leaf in ("weight", "bias"):
            parts = [source[f"transformer_blocks.{index}.attn1.to_{one}.{leaf}"] for one in "qkv"]
            state[f"blocks.{index}.attn.qkv.{leaf}"] = torch.cat(parts)
    ours.load_state_dict(state)
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 9])
    vector = source[f"{first}class_embedder.embedding_table.weight"][labels]
    with torch.no_grad():
        wanted = theirs(x, t, labels).sample
        assert_close(ours(x, t.float(), Condition(vector=vector)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"heads": 5}, "divisible by its heads"),
        ({"positions": "learned"}, "rotary, sin_cos"),
        ({"width": 24, "heads": 4, "positions": "rotary"}, "divisible by 4"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"frequency_shift": 2}, "0 (published) or 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        dataclasses.replace(SMALL, **changes)
    assert word in str(caught.value)


def test_another_size_or_channel_is_refused() -> None:
    network = SMALL.build(4, 4)
    with pytest.raises(UserError, match="multiples of 2"):
        network(torch.zeros(1, 4, 5, 4), torch.zeros(1), Condition())
    with pytest.raises(UserError, match="4 input channels, not 3"):
        network(torch.zeros(1, 3, 4, 4), torch.zeros(1), Condition())
