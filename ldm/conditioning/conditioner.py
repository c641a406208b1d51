"""The base of all conditioners, and the family by which a config chooses them."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import Family
from ldm.core.random import Streams


class Conditioner(nn.Module, abc.ABC):
    """Turns some of the inputs into a Condition. Subclasses set what they give.

    Attributes:
        drop: share of training rows that are told nothing by this conditioner.
        concat_channels: channels that it adds to the network's input.
        reads_text: whether it reads captions.
        uses_tokens: whether it gives tokens for cross-attention.
        vector_width: width of its vector; None = gives none.
    """

    drop: float
    here: Tensor
    concat_channels: int = 0
    reads_text: bool = False
    uses_tokens: bool = False
    vector_width: int | None = None

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device, weights or not

    @property
    def device(self) -> torch.device:
        """Where its conditions come to lie."""
        return self.here.device

    @abc.abstractmethod
    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """The condition of all rows; an input that is None is told as "nothing".

        Args:
            inputs: on any device.
            latent_size: (h, w) of the latents, for what is concatenated to them.
        """

    @abc.abstractmethod
    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """The inputs with this conditioner's own set to "nothing" where rows, (B,) bool, is True."""

    def frozen_digests(self) -> dict[str, str]:
        """Name -> sha256 of each pretrained network that it uses but does not store."""
        return {}

    @property
    def num_frozen(self) -> int:
        """Parameters of those networks; they are not in `parameters()`."""
        return 0

    @property
    def num_unused(self) -> int:
        """Parameters that the published weights carry beside for a layer that nothing reads, and that we do not have."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ConditionerConfig(Family, abc.ABC):
    """Base of all conditioners' configs.

    Attributes:
        drop: share of training rows that are told nothing, for classifier-free guidance. In [0, 1].
    """

    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise UserError(f"drop must be a share from 0 to 1, got {self.drop}")

    @property
    def is_pretrained(self) -> bool:
        """Whether `build` loads a pretrained network."""
        return False

    @property
    def is_open(self) -> bool:
        """Whether it leaves to the training data what `build` needs; see `fitted`."""
        return False

    def fitted(self, *, label_names: tuple[str, ...], map_names: tuple[str, ...], has: frozenset[str]) -> ConditionerConfig:
        """The same, with what it leaves open taken from the training data.

        Args:
            label_names, map_names: of the data, in the order of their indices.
            has: what the data can tell: "captions", "labels", "masks", "maps", "boxes".

        Raises:
            UserError: the data cannot tell what this conditioner reads.
        """
        return self

    @abc.abstractmethod
    def build(self, *, context_width: int | None, latent_channels: int) -> Conditioner:
        """A new conditioner.

        Args:
            context_width: width of the tokens that the network attends to; None = it has no cross-attention.
            latent_channels: channels of a latent.

        Raises:
            UserError: it gives tokens and the network attends to none; a pretrained part cannot be had.
        """


def needs(kind: str, what: str, has: frozenset[str]) -> None:
    """Refuses data that cannot teach a conditioner.

    Raises:
        UserError: `what` is not among what the data can tell.
    """
    if what not in has:
        found = ", ".join(sorted(has)) or "pictures only"
        raise UserError(f"conditioner {kind} needs {what}, and the training data has none (it has {found})")


def check_names(kind: str, names: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Refuses data whose classes have other names than the model's, where both have some: their numbers mean something else.

    Raises:
        UserError: names the first class that differs.
    """
    for number, (ours, theirs) in enumerate(zip_longest(names, found)) if names and found else ():
        if ours != theirs:
            raise UserError(f"{kind}: class {number} of the data is {theirs or 'none'}, of the model {ours or 'none'}")


def context_of(kind: str, context_width: int | None) -> int:
    """The width of tokens, for a conditioner that gives them.

    Raises:
        UserError: the network has no cross-attention.
    """
    if context_width is None:
        raise UserError(f"{kind} gives tokens to attend to, but the network has no cross-attention: set its context_width")
    return context_width


def build_conditioners(
    configs: Mapping[str, ConditionerConfig], *, context_width: int | None, latent_channels: int, empty: bool = False
) -> Conditioners:
    """All of a model's conditioners, by the names that the config gives them.

    Args:
        configs: by name.
        context_width, latent_channels: see `ConditionerConfig.build`.
        empty: the weights to be trained are not drawn, since a checkpoint's take their place; until then they cost no memory.
    """

    def built(config: ConditionerConfig) -> Conditioner:
        if not empty or config.is_pretrained:
            return config.build(context_width=context_width, latent_channels=latent_channels)
        with torch.device("meta"):
            return config.build(context_width=context_width, latent_channels=latent_channels).to_empty(device="cpu")

    return Conditioners({name: built(config) for name, config in configs.items()})


class Conditioners(nn.Module):
    """All of a model's conditioners; their conditions are told side by side."""

    def __init__(self, parts: Mapping[str, Conditioner]) -> None:
        super().__init__()
        for name in parts:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise UserError(f"conditioner name {name!r} cannot be used: choose another plain word, e.g. text")
        self.parts = nn.ModuleDict(parts)
        widths = {part.vector_width for part in self if part.vector_width is not None}
        if len(widths) > 1:
            raise UserError(f"conditioners that give vectors must agree on one width, got {sorted(widths)}")
        self.vector_width: int | None = next(iter(widths), None)
        self.concat_channels = sum(part.concat_channels for part in self)
        self.uses_tokens = any(part.uses_tokens for part in self)

    def __iter__(self) -> Iterator[Conditioner]:
        return iter(self.parts.values())  # type: ignore[arg-type]

    @property
    def names(self) -> tuple[str, ...]:
        """The conditioners' names, in the order in which they stand side by side."""
        return tuple(self.parts)

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int], drops: Mapping[str, Tensor] | None = None) -> Condition:
        """The merged condition of all rows. See `Conditioner.forward`.

        Args:
            drops: by name, the rows, (B,) bool, that a conditioner tells nothing; two that read the same input are dropped apart.
        """
        told = Condition()
        for name, part in zip(self.names, self, strict=True):
            told = told.beside(part(part.blank(inputs, drops[name]) if drops else inputs, latent_size))
        return told

    def blank(self, inputs: ConditionInputs, names: tuple[str, ...] | None = None, rows: Tensor | None = None) -> ConditionInputs:
        """The inputs with "nothing" told by the named conditioners (None = all) where rows, (B,) bool, is True (None = everywhere)."""
        rows = torch.ones(inputs.count, dtype=torch.bool) if rows is None else rows.cpu()
        for name in self.names if names is None else names:
            inputs = dict(zip(self.names, self, strict=True))[name].blank(inputs, rows)
        return inputs

    def draw_drops(self, streams: Streams) -> dict[str, Tensor]:
        """By name, which rows, (B,) bool, a training step tells nothing: drawn by its name, so that 1 and N processes agree."""
        return {name: streams.uniform(f"drop/{name}") < part.drop for name, part in zip(self.names, self, strict=True)}

    def frozen_digests(self) -> dict[str, str]:
        """Name -> sha256 of every pretrained network used but not stored."""
        return {name: digest for part in self for name, digest in part.frozen_digests().items()}

    @property
    def num_frozen(self) -> int:
        """Parameters of those networks."""
        return sum(part.num_frozen for part in self)

    @property
    def num_unused(self) -> int:
        """See `Conditioner.num_unused`."""
        return sum(part.num_unused for part in self)
