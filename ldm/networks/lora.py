"""Low-rank adapters: only a low-rank product B A added to each frozen weight W is trained. O outputs, I inputs, r rank.

    W' = W + s B A        s = alpha / r, A (r, I), B (O, r) and 0 at the start; for a convolution A has the kernel and B is 1x1

The layers themselves are peft's. Source: Hu et al. 2022 (LoRA), sec. 4.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.networks.blocks.dit_block import MLP, DiTAttention, SwiGLU
from ldm.networks.blocks.resample import Downsample, Upsample
from ldm.networks.blocks.residual import ResidualBlock
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention
from ldm.networks.blocks.transformer import GatedFeedForward, SpatialTransformer, TokenAttention

Table = dict[type[nn.Module], tuple[str, ...]]
ATTENTION: Table = {
    TokenAttention: ("to_q", "to_k", "to_v", "to_out"),
    MultiHeadSpatialAttention: ("qkv", "proj_out"),
    DiTAttention: ("qkv", "proj"),
}
TRANSFORMER: Table = ATTENTION | {
    SpatialTransformer: ("proj_in", "proj_out"),
    GatedFeedForward: ("proj", "out"),
    MLP: ("fc1", "fc2"),
    SwiGLU: ("fc1", "fc2"),
}
ALL: Table = TRANSFORMER | {ResidualBlock: ("conv1", "conv2", "embed", "skip"), Downsample: ("conv",), Upsample: ("conv",)}
TABLES = {"attention": ATTENTION, "transformer": TRANSFORMER, "all": ALL}
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # suffixes of the names of A and B
LIVE = "default"  # peft's name of the only adapter


@dataclass(frozen=True, kw_only=True)
class Lora:
    """
    Attributes:
        rank: of B A.
        alpha: s = alpha / rank; None = rank, so that s = 1.
        targets: which layers are adapted. `attention`: queries, keys, values and outputs of every attention; `transformer`: also the
            feed-forward and the transformers' input and output projections; `all`: also the residual blocks, down- and upsampling. The
            network's first and last layers and its embeddings are never adapted.
    """

    rank: int = 8
    alpha: float | None = None
    targets: Literal["attention", "transformer", "all"] = "attention"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, got {self.rank}")
        if self.alpha is not None and self.alpha <= 0:
            raise UserError(f"lora.alpha must be positive, or null for lora.rank, got {self.alpha}")

    @property
    def scale(self) -> float:
        """s."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Adapters(nn.Module):
    """All A and B of an adapted network and no other parameters. They are shared with the network, so loading them here loads them there.

    Attributes:
        config: their shape.
        base: digest of the base weights that they adapt; a state with another digest is refused.
    """

    def __init__(self, network: nn.Module, config: Lora, base: str) -> None:
        super().__init__()
        self.config, self.base = config, base
        for name, parameter in network.named_parameters():
            if f".{LIVE}." in name:
                self.register_parameter(name.replace(f".{LIVE}.", ".").replace(".", "/"), parameter)

    def tensors(self) -> dict[str, Tensor]:
        """By the layer's name and DOWN or UP."""
        return {name.replace("/", "."): parameter.detach() for name, parameter in self.named_parameters()}

    def get_extra_state(self) -> str:
        """The base's digest."""
        return self.base

    def set_extra_state(self, state: str) -> None:
        """
        Raises:
            UserError: the state is of adapters of another base.
        """
        if state != self.base:
            raise UserError(
                f"the model of init_from changed since this run was started (digest {self.base[:12]} instead of {state[:12]}); "
                "put it back, or give --run-dir a new folder"
            )


def adapt(network: nn.Module, config: Lora, base: str, seed: int) -> Adapters:
    """Freezes a network and adds fresh adapters to its layers, in place.

    Args:
        network: its outputs do not change, as B is 0.
        config: rank, scale and layers.
        base: digest of the network's weights.
        seed: of A.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = list(_target_names(network, TABLES[config.targets]))
    assert names, f"no layer of the network is {config.targets}"
    network.requires_grad_(False)
    alpha: Any = config.rank if config.alpha is None else config.alpha  # peft annotates int, but takes any number
    peft_config = LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(digest(seed, "lora"))
        inject_adapter_in_model(peft_config, network, LIVE)
    adapters = Adapters(network, config, base)
    assert adapters.tensors().keys() == {f"{name}{end}" for name in names for end in (DOWN, UP)}
    return adapters


def twin(network: nn.Module, adapters: Adapters, others: Adapters) -> nn.Module:
    """A copy of an adapted network that uses `others` as its adapters and shares all frozen weights with the network."""
    memo: dict[int, nn.Parameter] = {id(p): p for p in network.parameters()}
    memo |= {id(p): other for p, other in zip(adapters.parameters(), others.parameters(), strict=True)}
    return copy.deepcopy(network, memo).eval()


def base_weights(network: nn.Module) -> dict[str, Tensor]:
    """The frozen weights of an adapted network, under the names that they had before."""
    return {name.replace(".base_layer.", "."): value for name, value in network.state_dict().items() if f".{LIVE}." not in name}


def merged(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """W' for every adapted layer, in float32, and the other weights unchanged.

    Args:
        weights: of the network.
        adapters: A and B, by the names of `Adapters.tensors`.
        scale: s, or another value for a weaker or stronger effect.
    """
    result = dict(weights)
    for name, down in adapters.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            weight, up = weights[f"{layer}.weight"].float(), adapters[layer + UP]
            change = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)
            result[f"{layer}.weight"] = weight + scale * change
    return result


def _target_names(network: nn.Module, table: Table) -> Iterator[str]:
    for name, module in network.named_modules():
        for leaf in table.get(type(module), ()):
            if isinstance(getattr(module, leaf), nn.Linear | nn.Conv2d):  # a skip connection may have no weights
                yield f"{name}.{leaf}"
