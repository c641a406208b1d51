"""One step's gradients over several processes, of which neither networks nor losses know.

A task computes a loss with the weights of one group (`SharedGradients`), any way it likes, and calls backward. The gradients of those
weights are then averaged over the processes while the backward pass still goes on. Every loss is a sum over this process's samples divided
by the global batch, and is taken times the number of processes, so the average is the gradient of the global batch, also where shares are
unequal. What `torch.autograd.grad` finds stays this process's own.

`ddp` (DistributedDataParallel): each process has all weights. A condition that is dropped from all samples of a process leaves weights
without a gradient there. So each backward pass looks for weights that are not in use; for that, torch keeps the buckets that it began with,
and a resumed run adds up in the same order.

`fsdp` (FSDP2, Zhao et al. 2023): of a module's blocks each process has a part of every weight, with the part's gradient, moments and
average. A block's weights are put together where it is computed and forgotten thereafter. What is in no block stays whole, as in `ddp`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ldm.core.distributed import LONGEST_WAIT, World

T = TypeVar("T")


def share_out(module: nn.Module, average: nn.Module, world: World) -> None:
    """Leaves of the blocks of a module and of its average, which is never sent backward, only this process's part, on its device."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(module):
        fully_shard(block.to(memory_format=torch.contiguous_format), mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params={weight for weight in module.parameters() if not isinstance(weight, DTensor)})
    module.to(world.device)
    for name, weight in module.named_parameters():
        if isinstance(weight, DTensor):
            _replace(average, name, _part(average.get_parameter(name), weight))
    average.to(world.device)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are computed as a whole, one by one: members of lists, and sequences with a forward of their own."""
    for child in module.children():
        if _is_plain_list(module) or (isinstance(child, nn.Sequential) and type(child).forward is not nn.Sequential.forward):
            yield child
        else:
            yield from blocks_of(child)


def _is_plain_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and type(module).forward is nn.ModuleList.forward


def own(tensor: Tensor) -> Tensor:
    """What of a tensor this process has; writing to it changes the tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def like(part: Tensor, weight: Tensor) -> Tensor:
    """A tensor of which this process has a part, as it has of the weight; itself if it has all of the weight, or if it is no such part."""
    if not isinstance(weight, DTensor) or part.shape != own(weight).shape:
        return part
    return DTensor.from_local(part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride())


def write(whole: Tensor, to: Tensor) -> None:
    """Copies a tensor that all processes have alike into one of which each may have a part."""
    own(to).copy_(own(_part(whole, to)) if isinstance(to, DTensor) else whole)


def gathered(state: dict[str, Any], world: World) -> dict[str, Any]:
    """A module's state with whole tensors, on the CPU where they were parts; all processes call it, and the first has it all."""
    found = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            value = value.full_tensor().cpu() if world.is_first else value.full_tensor().new_empty(0)
        found[name] = value
    return found


@contextmanager
def whole(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it each process has all weights of modules that are not sent backward, to use without the others. All processes enter it."""
    with ExitStack() as held:
        for module in modules:
            for name, weight in list(module.named_parameters()):
                if isinstance(weight, DTensor):
                    held.callback(_replace, module, name, weight)
                    _replace(module, name, weight.full_tensor())
        yield


def _replace(module: nn.Module, name: str, weight: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False))


def _part(whole: Tensor, weight: DTensor) -> Tensor:
    """Of a tensor that all processes have alike, what this process has of the weight."""
    return distribute_tensor(whole.detach().to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


class SharedGradients:
    """The weights of one optimizer.

    Args:
        weights: which all processes have alike, or each a part of them.
        world: the processes.

    Attributes:
        own: what the optimizer changes: the weights, or of those that are shared out, this process's part.
    """

    def __init__(self, weights: Sequence[nn.Parameter], world: World) -> None:
        self.weights, self.world = weights, world
        self.own = [nn.Parameter(own(weight)) if isinstance(weight, DTensor) else weight for weight in weights]
        here = [weight for weight in weights if not isinstance(weight, DTensor)]
        self._is_sharded = len(here) < len(weights)
        # Blocks and what is beside them send their messages in an order that may differ between processes.
        channel = dist.new_group(timeout=LONGEST_WAIT) if self._is_sharded else None
        self._parallel = (
            DistributedDataParallel(_Work(here), process_group=channel, init_sync=False, find_unused_parameters=True)
            if world.size > 1 and here
            else None
        )

    def forward(self, work: Callable[[], T], *, is_last: bool) -> T:
        """What `work` gives: tensors, or a tuple, mapping or dataclass of them. A backward pass through them, once, gives these weights
        their gradients.

        Args:
            work: computes with the weights.
            is_last: of this step's calls whose backward pass adds up in the same gradients. The others' stay this process's own until
                then, but of blocks that are shared out, whose whole gradients there is no room for.
        """
        if self._parallel is None:
            return work()
        with nullcontext() if is_last else self._parallel.no_sync(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")  # it is not so in every step
            found: T = self._parallel(work)
        return found

    def clear(self) -> None:
        """Forgets all gradients."""
        for weight, part in zip(self.weights, self.own, strict=True):
            weight.grad = part.grad = None

    def with_gradients(self) -> list[nn.Parameter]:
        """Those of `own` that have one, after the step's last backward pass."""
        for weight, part in zip(self.weights, self.own, strict=True):
            if part is not weight and weight.grad is not None:
                part.grad = own(weight.grad)
        return [part for part in self.own if part.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Of all weights, over all processes, (); after `with_gradients`."""
        here = [w.grad for w, part in zip(self.weights, self.own, strict=True) if part is w and w.grad is not None]
        norm: Tensor = nn.utils.get_total_norm(here)
        if not self._is_sharded:
            return norm
        parts = [part.grad for w, part in zip(self.weights, self.own, strict=True) if part is not w and part.grad is not None]
        square = nn.utils.get_total_norm(parts).square()
        dist.all_reduce(square)
        return (square + norm.to(square.device).square()).sqrt()


class _Work(nn.Module):
    """Weights, and whatever is computed with them."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
