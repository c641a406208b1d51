"""The base of all conditioners, and the family by which a config chooses them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ldm.conditioning.control import Control
from ldm.conditioning.inputs import ConditionInputs, where
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import Family
from ldm.core.random import Streams
from ldm.data.batch import Batch
from ldm.data.facts import PIXELS, DataFacts
from ldm.data.findings import Finding

V = TypeVar("V")

Encode = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [-1, 1] to normalised latents (B, Z, h, w)."""


class Conditioner(nn.Module, abc.ABC, Generic[V]):
    """All that is special about one kind of condition. Subclasses set what they give and what they read.

    V is the type of its input for B images, see `ConditionInputs`.

    Attributes:
        drop: conditioning dropout probability.
        reads: what it reads of a record, see `ConditionerConfig.reads`.
        concat_channels: channels that it adds to the network's input.
        uses_tokens: whether it gives tokens for cross-attention.
        vector_width: width of its vector; None = gives none.
        keeps_under_guidance: whether the unconditional side of guidance is given its condition too.
        is_in_records: whether records have its input; a mask to inpaint is drawn in training, and no record has it.
        encodes_images: whether a training step has the first stage encode further images for it.
    """

    drop: float
    reads: str
    here: Tensor
    concat_channels: int = 0
    uses_tokens: bool = False
    vector_width: int | None = None
    keeps_under_guidance: bool = False
    is_in_records: bool = True
    encodes_images: bool = False

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__()
        self.drop, self.reads = config.drop, config.reads
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device, weights or not

    @property
    def device(self) -> torch.device:
        """Where its conditions come to lie."""
        return self.here.device

    @property
    @abc.abstractmethod
    def controls(self) -> Mapping[str, Control]:
        """What a user sets of it, by field; a conditioner that is set as a whole has one, under the empty name."""

    @abc.abstractmethod
    def forward(self, value: V, latent_size: tuple[int, int]) -> Condition:
        """The condition of all rows.

        Args:
            value: on any device.
            latent_size: (h, w) of the latents, for what is concatenated to them.
        """

    @abc.abstractmethod
    def null(self, count: int, latent_size: tuple[int, int]) -> V:
        """The null input, which makes an image unconditional, for so many images; latent_size: see `forward`."""

    @abc.abstractmethod
    def of_batch(self, batch: Batch, facts: DataFacts) -> V | None:
        """Its input for the records of a batch; None = they have none.

        Args:
            batch: decoded records.
            facts: of their data set.

        Raises:
            UserError: records of other classes than the model's.
        """

    @abc.abstractmethod
    def of_user(self, value: Any) -> V:
        """Its input for one image, from what a user gives; see `controls`. A command line gives texts.

        Raises:
            UserError: a value that it does not take.
        """

    def for_training(self, batch: Batch, facts: DataFacts, kept: Tensor, streams: Streams) -> V | None:
        """`of_batch` for a training step.

        Args:
            kept: (B,) bool, rows that are not dropped as a whole; the others need no work.
            streams: the rows' random numbers.
        """
        return self.of_batch(batch, facts)

    def dropped(self, value: V, streams: Streams) -> V:
        """The input of a training step with parts of it dropped, for conditioners that drop more than whole rows."""
        return value

    def examples(
        self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]
    ) -> Examples | None:
        """What the sample grid shows it with; None = nothing, as the batch has none.

        Args:
            batch, facts: see `of_batch`; B >= count.
            prompts: texts that the config asks for.
            latent_size: see `forward`.
        """
        value = self.of_batch(batch.part(0, count), facts)
        return None if value is None else Examples(value=value)

    def check(self, facts: DataFacts) -> None:
        """Refuses data whose classes have names that the model does not know.

        Raises:
            UserError: names the first.
        """

    def remarks(self, captions: Iterable[tuple[str, tuple[str, ...]]]) -> list[Finding]:
        """What it does not read of a data set's captions.

        Args:
            captions: (record's name, its captions).
        """
        return []

    def unread(self, value: V) -> list[str]:
        """What of a user's value has no effect, a line each."""
        return []

    def attach(self, encode: Encode, image_channels: int, downsampling_factor: int) -> None:
        """Lends it the frozen first stage, if it encodes images.

        Args:
            encode: of the first stage; takes and gives tensors on this conditioner's device.
            image_channels, downsampling_factor: of the first stage.
        """

    def frozen_digests(self) -> dict[str, str]:
        """Name -> sha256 of each pretrained network that it uses but does not store."""
        return {}

    @property
    def num_frozen(self) -> int:
        """Parameters of those networks; they are not in `parameters()`."""
        return 0

    @property
    def num_unused(self) -> int:
        """Parameters that the published weights carry beside for a layer that is not used, and that we do not have."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs for the sample grid.

    Attributes:
        value: of a conditioner, one row an image.
        shown: (B, C, H, W) in [-1, 1], of any size: images that belong beneath the samples, e.g. what was to be inpainted.
        words: B texts, the same for people; empty = there are none.
    """

    value: Any
    shown: Tensor | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConditionerConfig(Family, abc.ABC):
    """Base of all conditioners' configs.

    Attributes:
        drop: conditioning dropout probability, for classifier-free guidance. In [0, 1].
    """

    reads: ClassVar[str]
    """What its conditioner reads of a record: a name of `ldm.data.facts`."""
    free: ClassVar[tuple[str, ...]] = ("drop",)
    """Keys that fine-tuning may change, since no weight depends on them; `*` stands for any name."""
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise UserError(f"drop must be a share from 0 to 1, got {self.drop}")

    @property
    def pretrained(self) -> str | None:
        """The pretrained network that `build` loads, by name or folder; None = it loads none."""
        return None

    @property
    def is_open(self) -> bool:
        """True if some fields are inferred from the training data; see `fitted`."""
        return False

    def fitted(self, facts: DataFacts) -> ConditionerConfig:
        """The same, with open fields inferred from the training data.

        Raises:
            UserError: the data has not what this conditioner reads.
        """
        if self.reads not in facts.has:
            found = ", ".join(sorted(facts.has - {PIXELS})) or "images only"
            raise UserError(f"conditioner {self.kind} needs {self.reads}, and the training data has none (it has {found})")
        return self

    def beside(self, folder: Path) -> ConditionerConfig:
        """The same, where what it names by a path was moved along with a checkpoint's folder."""
        return self

    @abc.abstractmethod
    def build(self, *, context_width: int | None, latent_channels: int) -> Conditioner[Any]:
        """A new conditioner.

        Args:
            context_width: width of the tokens that the network attends to; None = it has no cross-attention.
            latent_channels: channels of a latent.

        Raises:
            UserError: it gives tokens and the network attends to none; a pretrained part is not available.
        """


def check_names(kind: str, names: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Refuses data whose classes have other names than the model's, where both have some: their numbers mean something else.

    Classes that were only numbered may be fewer: held-out maps may lack the last ones.

    Raises:
        UserError: names the first class that differs.
    """
    if len(found) <= len(names) and all(name == f"class {number}" for number, name in enumerate(names)) and names[: len(found)] == found:
        return
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
        empty: the weights to be trained are on the meta device until `load_strictly` puts a checkpoint's in their place.
    """

    def built(config: ConditionerConfig) -> Conditioner[Any]:
        if not empty or config.pretrained is not None:
            return config.build(context_width=context_width, latent_channels=latent_channels)
        with torch.device("meta"):
            part = config.build(context_width=context_width, latent_channels=latent_channels)
        part.here = torch.zeros(())  # not in a checkpoint
        return part

    return Conditioners({name: built(config) for name, config in configs.items()})


class Conditioners(nn.Module):
    """All of a model's conditioners by name; their conditions stand side by side."""

    def __init__(self, parts: Mapping[str, Conditioner[Any]]) -> None:
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

    def __iter__(self) -> Iterator[Conditioner[Any]]:
        return iter(self.parts.values())  # type: ignore[arg-type]

    def items(self) -> Iterator[tuple[str, Conditioner[Any]]]:
        """(name, conditioner), in the order in which their conditions stand side by side."""
        return iter(self.parts.items())  # type: ignore[arg-type]

    @property
    def names(self) -> tuple[str, ...]:
        """In that order."""
        return tuple(self.parts)

    @property
    def controls(self) -> dict[str, Control]:
        """What a user sets, by NAME, or by NAME.FIELD for conditioners of several fields."""
        return {f"{name}.{field}" if field else name: control for name, part in self.items() for field, control in part.controls.items()}

    def controlled_by(self, control: str) -> dict[str, Conditioner[Any]]:
        """Those that a user sets as a whole by a control of this kind, by name; see `Control.kind`."""
        return {name: part for name, part in self.items() if "" in part.controls and part.controls[""].kind == control}

    def attach(self, encode: Encode, image_channels: int, downsampling_factor: int) -> Conditioners:
        """Lends all of them the frozen first stage, see `Conditioner.attach`."""
        for part in self:
            part.attach(encode, image_channels, downsampling_factor)
        return self

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int], drops: Mapping[str, Tensor] | None = None) -> Condition:
        """The merged condition of all rows. See `Conditioner.forward`.

        Args:
            drops: by name, the rows, (B,) bool, whose condition is dropped; two conditioners that read the same are dropped apart.
        """
        merged = Condition()
        for name, part in self.items():
            null = part.null(inputs.count, latent_size)
            value = inputs.values.get(name)
            value = null if value is None else value
            if drops and drops[name].any():
                value = where(drops[name], null, value)
            merged = merged.beside(part(value, latent_size))
        return merged

    def draw_drops(self, streams: Streams) -> dict[str, Tensor]:
        """By name, which rows, (B,) bool, a training step drops: drawn by its name, so that 1 and N processes agree."""
        return {name: streams.uniform(f"drop/{name}") < part.drop for name, part in self.items()}

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
