"""One step's gradients over several processes, by DistributedDataParallel, of which neither networks nor losses know.

A task computes a loss with the weights of one group (`SharedGradients`), any way it likes, and calls backward. The gradients of those
weights are then averaged over the processes, in buckets, while the backward pass still goes on. Every loss is a sum over this process's
samples divided by the global batch, and is taken times the number of processes, so the average is the gradient of the global batch, also
where shares are unequal. What `torch.autograd.grad` finds stays this process's own.

A condition that is dropped from all samples of a process leaves weights without a gradient there. So each backward pass looks for weights
that are not in use; for that, torch keeps the buckets that it began with, and a resumed run adds up in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ldm.training.distributed import World

T = TypeVar("T")


class SharedGradients:
    """Of some weights, which all processes have alike.

    Args:
        weights: of one optimizer.
        world: the processes.
    """

    def __init__(self, weights: Sequence[nn.Parameter], world: World) -> None:
        self._parallel = (
            DistributedDataParallel(_Work(weights), broadcast_buffers=False, init_sync=False, find_unused_parameters=True)
            if world.size > 1
            else None
        )

    def forward(self, work: Callable[[], T], *, is_last: bool) -> T:
        """What `work` gives: tensors, or a tuple, mapping or dataclass of them. A backward pass through them, once, gives these weights
        their gradients.

        Args:
            work: computes with the weights.
            is_last: of this step's calls whose backward pass adds up in the same gradients. The others' stay this process's own until then.
        """
        if self._parallel is None:
            return work()
        with nullcontext() if is_last else self._parallel.no_sync(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")  # it is not so in every step
            found: T = self._parallel(work)
        return found


class _Work(nn.Module):
    """Weights, and whatever is computed with them."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
