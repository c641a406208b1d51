"""What a run has learned, as tensors by name: weights, averages, and what the optimizers remember of each weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.core.distributed import World
from ldm.training.ema import Ema
from ldm.training.parallel import SharedGradients, like
from ldm.training.state import SavedState


class Learned:
    """
    Args:
        trained: modules by name.
        averaged: averages by the same names.
        shared: parameters of the trained modules, by the group's name.
        optimizers: of what this process has of them.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Module],
        averaged: Mapping[str, Ema[Any]],
        shared: Mapping[str, SharedGradients],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self.modules = {f"trained/{name}": module for name, module in trained.items()}
        self.modules |= {f"averaged/{name}": average.module for name, average in averaged.items()}
        self.shared, self.optimizers = shared, optimizers

    def tensors(self) -> dict[str, Tensor]:
        """All of them; writing to those of modules changes the modules."""
        remembered = {
            f"{name}/{part}": like(value, weight)
            for name, optimizer, weight, here in self._weights()
            for part, value in optimizer.state.get(here, {}).items()
        }
        return self._of_modules() | remembered

    def texts(self) -> dict[str, str]:
        """What modules have in their state dicts beside tensors."""
        states = {f"{name}/{key}": value for name, module in self.modules.items() for key, value in module.state_dict().items()}
        return {name: value for name, value in states.items() if not isinstance(value, Tensor)}

    def restore(self, saved: SavedState, world: World) -> None:
        """
        Raises:
            UserError: the state is of other modules.
        """
        if saved.held is not None:
            saved = saved.renamed(self._by_number())
        tensors = self._of_modules()
        weights = {name: (optimizer, weight, here) for name, optimizer, weight, here in self._weights()}
        for name, (size, dtype) in saved.layout.items():
            of, _, part = name.rpartition("/")
            if of not in weights or size not in (weights[of][1].shape, torch.Size()):
                continue
            optimizer, weight, here = weights[of]
            is_alike = size == weight.shape  # in the order of its dimensions, too
            value = torch.zeros_like(here, dtype=dtype) if is_alike else torch.zeros(size, dtype=dtype, device=here.device)
            optimizer.state[here][part] = value
            tensors[name] = like(value, weight) if is_alike else value
        saved.read(tensors, world)
        for name, module in self.modules.items():
            texts = {key.removeprefix(f"{name}/"): text for key, text in saved.progress.texts.items() if key.startswith(f"{name}/")}
            module.load_state_dict(module.state_dict() | texts)

    def _of_modules(self) -> dict[str, Tensor]:
        states = {f"{name}/{key}": value for name, module in self.modules.items() for key, value in module.state_dict().items()}
        return {name: value for name, value in states.items() if isinstance(value, Tensor)}

    def _by_number(self) -> dict[str, str]:
        """The names of what optimizers remember of each weight, by those of its number in its group."""
        found: dict[str, str] = {}
        count: Counter[str] = Counter()
        for name, *_ in self._weights():
            group = "/".join(name.split("/")[:2])
            found[f"{group}/{count[group]}"] = name
            count[group] += 1
        return found

    def _weights(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter, nn.Parameter]]:
        """Each parameter that is trained, and what the optimizer has of it, with the name under which what it remembers of it is saved."""
        names = {weight: f"{name}/{key}" for name, module in self.modules.items() for key, weight in module.named_parameters()}
        for name, group in self.shared.items():
            for weight, here in zip(group.weights, group.own, strict=True):
                yield f"optimizers/{name}/{names[weight]}", self.optimizers[name], weight, here
