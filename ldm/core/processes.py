"""Which process: known again by host, number and start, so that one that ended is known from another that has its number today."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass

import psutil

TOLERANCE = 0.5  # seconds; a start is measured in hundredths


@dataclass(frozen=True, kw_only=True)
class ProcessName:
    """
    Attributes:
        host: name of the machine.
        space: the numbers' namespace: containers of one machine each have their own. Empty where the system has none.
        pid: its number.
        started: seconds from the machine's start to its own, which no change of the clock moves.
    """

    host: str
    space: str
    pid: int
    started: float

    @staticmethod
    def of_this() -> ProcessName:
        return _named(os.getpid())

    def is_alive(self) -> bool | None:
        """Whether it still runs; None if it is of another machine or container, where that cannot be seen."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return None
        try:
            return abs(_started(self.pid) - self.started) < TOLERANCE
        except psutil.NoSuchProcess:
            return False


@functools.cache
def _named(pid: int) -> ProcessName:  # by number, since a fork has its parent's memory
    return ProcessName(host=socket.gethostname(), space=_space(), pid=pid, started=round(_started(pid), 2))


def _started(pid: int) -> float:
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:  # it has ended, and its parent has not yet asked how
        raise psutil.NoSuchProcess(pid)
    return float(process.create_time() - psutil.boot_time())


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not on Linux
        return ""
