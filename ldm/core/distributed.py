"""The processes of a `torchrun`, as one world."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldm.core.device import find_device
from ldm.core.errors import UserError

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=30)  # for another process; what takes longer is shared, or goes on in parts
GRACE = 30.0  # seconds in which a worker whose torchrun has ended may save its state; as many as torchrun itself gives


def rank_of_this() -> int:
    """This process's number among those of `torchrun`, also before it joins them."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: its number.
        size: of the world.
        device: on which it computes.
        host: the processes' group for what they tell each other without a GPU, which need not wait for it; None = there is one group for
            all.
    """

    rank: int
    size: int
    device: torch.device
    host: dist.ProcessGroup | None = None

    @staticmethod
    def join(device_name: str = "auto") -> World:
        """The world that `torchrun` describes, or a world of one.

        Args:
            device_name: see `find_device`. Of several processes each takes the GPU of its own number.

        Raises:
            UserError: a device that is not there, or that several processes cannot share.
        """
        size, local, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")), rank_of_this()
        device = _device_of(device_name, local) if size > 1 else find_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        if size == 1 or device.type != "cuda":
            return World(rank, size, device)
        host = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        assert isinstance(host, dist.ProcessGroup)
        return World(rank, size, device, host)

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def each(self, work: Callable[[], None]) -> None:
        """Has every process do something. One in which it fails says so; the others end without a word when they have done theirs."""
        try:
            work()
        except BaseException:
            self.any(True)
            raise
        if self.any(False):
            sys.exit(2)

    def on_first(self, work: Callable[[], None]) -> None:
        """Has the first process do something while the others wait; see `each`."""
        self.each(work if self.is_first else _nothing)

    def part(self, count: int) -> tuple[int, int]:
        """This rank's share [start, stop) of `count` samples; the first ranks get one more where it does not divide."""
        share, more = divmod(count, self.size)
        start = self.rank * share + min(self.rank, more)
        return start, start + share + (self.rank < more)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums tensors over all ranks, in place, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().float().reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, so that all act alike. The GPU's work in hand is not waited for."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(float(flag))
        dist.all_reduce(tensor, group=self.host)
        return tensor.item() > 0

    def of_all(self, value: T) -> list[T]:
        """The value of each rank, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.host)
        return values

    def in_turn(self, own: Iterable[T]) -> Iterator[T]:
        """One item of each process in turn, on all of them, until none has any: where process r makes the items r, r + size, ... of a row,
        the row in its order. Every process must go through it to the end; tensors in it lie on the CPU."""
        if self.size == 1:
            yield from own
            return
        items = iter(own)
        while found := [item for one in self.of_all(list(islice(items, 1))) for item in one]:
            yield from found

    def wait(self) -> None:
        """All ranks reach this line before any goes on."""
        if self.size > 1:
            dist.barrier()


ALONE = World(0, 1, torch.device("cpu"))  # one process, for what takes no device from it


def _nothing() -> None:
    pass


def _device_of(name: str, local: int) -> torch.device:
    """The device of one of several processes, by its number on this machine. They cannot add their gradients on Apple's GPU."""
    found = find_device(name)
    if found.type == "mps" and name == "auto":
        return torch.device("cpu")
    if found.type == "mps" or ":" in name:
        raise UserError(f"several processes cannot share device {name!r}: name cuda, of which each takes its own GPU, or cpu")
    return find_device(f"cuda:{local}") if found.type == "cuda" else found


def _end_with(parent: int) -> None:
    """Stops this process when its parent has ended: as by Ctrl-C, and if that takes too long at once. A torchrun that is killed cannot."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows SIGTERM kills already
