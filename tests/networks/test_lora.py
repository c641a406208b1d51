"""Low-rank adapters: what they compute, which layers they adapt, and how they are saved and shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.networks.lora import DOWN, TABLES, UP, Adapters, Lora, adapt, base_weights, merged, twin
from ldm.networks.unet import UNetConfig

COND = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, context_width=12)
UNCOND = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, transformer_depth=0, resample="residual")
every_target = pytest.mark.parametrize("targets", TABLES)


def random_unet(config: UNetConfig) -> nn.Module:
    torch.manual_seed(0)
    network = config.build(3, 3)
    shake(network, 0.05)
    return network.eval()


@torch.no_grad()
def shake(module: nn.Module, scale: float) -> None:
    for p in module.parameters():
        p += scale * torch.randn_like(p)


@torch.no_grad()
def output(network: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    tokens = None if network.config.context_width is None else torch.randn(2, 5, 12, generator=draw)
    return network(torch.randn(2, 3, 8, 8, generator=draw), torch.tensor([3.0, 700.0]), Condition(tokens=tokens))


@every_target
@pytest.mark.parametrize("config", [COND, UNCOND], ids=["cond", "uncond"])
def test_merged_weights_are_the_adapted_network(config: UNetConfig, targets: str):
    """Fresh adapters change nothing. Others give the same output as the merged weights W + s B A, and leave the base weights unchanged."""
    network = random_unet(config)
    plain, before = copy.deepcopy(network), output(network)
    adapters = adapt(network, Lora(rank=3, alpha=7.0, targets=targets), "base", 0)
    assert torch.equal(output(network), before)
    shake(adapters, 0.1)
    after = output(network)
    assert (after - before).abs().max() > 0.05
    assert base_weights(network).keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in base_weights(network).items())
    plain.load_state_dict(merged(base_weights(network), adapters.tensors(), adapters.config.scale))
    torch.testing.assert_close(output(plain), after, rtol=1e-5, atol=1e-5)


@every_target
def test_gradients_reach_all_adapters_and_only_them(targets: str):
    network = random_unet(COND)
    adapters = adapt(network, Lora(rank=2, targets=targets), "base", 0)
    shake(adapters, 0.1)
    network(torch.randn(2, 3, 8, 8), torch.zeros(2), Condition(tokens=torch.randn(2, 5, 12))).square().sum().backward()
    trained = {id(p) for p in network.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {id(p) for p in adapters.parameters()} and trained


def test_each_wider_target_includes_the_narrower_ones():
    chosen = {}
    for targets in TABLES:
        tensors = adapt(random_unet(COND), Lora(targets=targets), "base", 0).tensors()
        chosen[targets] = {name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)}
        assert {f"{name}{end}" for name in chosen[targets] for end in (DOWN, UP)} == tensors.keys()
    assert chosen["attention"] < chosen["transformer"] < chosen["all"]
    assert {name.rsplit(".", 1)[1] for name in chosen["attention"]} == {"to_q", "to_k", "to_v", "to_out"}
    everything = {name for name, module in random_unet(COND).named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert everything - chosen["all"] == {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"}


def test_a_twin_shares_the_frozen_weights_and_has_other_adapters():
    network = random_unet(COND)
    adapters = adapt(network, Lora(rank=2), "base", 0)
    shake(adapters, 0.1)
    others = copy.deepcopy(adapters)
    same = twin(network, adapters, others)
    assert torch.equal(output(same), output(network))
    shake(others, 0.1)
    assert not torch.equal(output(same), output(network))
    mine, theirs = ({p.data_ptr() for p in module.parameters()} for module in (network, same))
    assert mine & theirs == {value.data_ptr() for value in base_weights(network).values()}


def test_loading_adapters_changes_the_network_and_needs_the_same_base():
    network, another = random_unet(COND), random_unet(COND)
    adapters, theirs = adapt(network, Lora(rank=2), "base", 0), adapt(another, Lora(rank=2), "base", 5)
    shake(theirs, 0.1)
    adapters.load_state_dict(theirs.state_dict())
    assert torch.equal(output(network), output(another))
    with pytest.raises(UserError, match="the model of init_from changed"):
        Adapters(network, Lora(rank=2), "another base").load_state_dict(theirs.state_dict())


def test_fresh_adapters_depend_only_on_the_seed():
    first, again, other = (adapt(random_unet(COND), Lora(rank=2), "base", seed).tensors() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == name.endswith(UP) for name in first)  # B is 0


def test_scale_is_alpha_over_rank_and_1_by_default():
    assert (Lora(rank=16).scale, Lora(rank=8, alpha=4.0).scale) == (1.0, 0.5)
