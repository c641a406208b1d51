"""One thing that is done to the toolkit, and how it fared."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Literal

import torch

from ldm.app.cli import line_for, run

Outcome = Literal["right", "reported", "silent", "traceback", "crash", "hang"]
GOOD = ("right", "reported")
FORKS = multiprocessing.get_context("fork")
MEMORY = 12 << 30  # bytes that a trial may take


@dataclass(frozen=True)
class Trial:
    """
    Attributes:
        name: what is done, for a reader.
        check: does it; gives "right" if all is as if nothing had happened, "reported" if it was refused or counted in so many words, else
            what went wrong without a word. An error of which a script would say a line means reported, any other is a traceback.
    """

    name: str
    check: Callable[[], str]


@dataclass(frozen=True)
class Row:
    """The outcomes of some trials.

    Attributes:
        what: was done.
        counts: by outcome.
        bad: (trial, outcome, what was seen) of those that fared badly.
        seconds: that all took.
    """

    what: str
    counts: Counter[str]
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0


def judged(what: str, trials: Sequence[Trial], limit: float) -> Row:
    """Each trial in a forked process; one that takes longer than `limit` seconds hangs."""
    started, row, done = time.monotonic(), Row(what, Counter()), 0
    while done < len(trials):
        for trial, (outcome, seen) in zip(trials[done:], _outcomes(trials[done:], limit), strict=False):
            done += 1
            row.counts[outcome] += 1
            if outcome not in GOOD:
                row.bad.append((trial.name, outcome, seen))
                print(f"{what}: {trial.name}: {outcome}: {seen}", flush=True)
        print(f"{what}: {done} of {len(trials)}", flush=True)
    return Row(what, row.counts, row.bad, time.monotonic() - started)


def _outcomes(trials: Sequence[Trial], limit: float) -> Iterator[tuple[str, str]]:
    """Of as many of them, from the first on, as one process lives through; the last of these may be a crash or a hang."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_try_all, args=(trials, sender))
    process.start()
    sender.close()
    try:
        for _ in trials:
            if not receiver.poll(limit):
                yield "hang", f"more than {limit:g} s"
                return
            yield receiver.recv()
    except EOFError:
        yield "crash", "the process died"
    finally:
        _kill(process)


def _try_all(trials: Sequence[Trial], sender: Connection) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for trial in trials:
        sender.send(_outcome(trial))


def _kill(process: ForkProcess) -> None:
    """It, and what it started."""
    if process.pid is not None and process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _outcome(trial: Trial) -> tuple[str, str]:
    try:
        found = trial.check()
        return (found, "") if found in GOOD else ("silent", found)
    except Traceback as error:
        return "traceback", str(error)
    except Hang as error:
        return "hang", str(error)
    except Exception as error:
        if line_for(error) is not None:
            return "reported", ""
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}, line {where.lineno})"


class Traceback(Exception):
    """A script ended with a traceback, or with an exit code that none has."""


class Hang(Exception):
    """A script did not end."""


Killer = Callable[[str, Path], None]
"""Is called with each change on the disk before it is made: its kind, and the path."""


def script(
    main: Callable[[Sequence[str]], None], words: Sequence[str], log: Path, *, limit: float = 120.0, before_change: Killer | None = None
) -> int:
    """Runs a script's command line in a forked process.

    Returns:
        Its exit code; that of a killed process is negative.

    Raises:
        Traceback: it ended with one, or with an error of more than one line.
        Hang: it did not end within `limit` seconds.
    """
    process = FORKS.Process(target=_run, args=(main, words, log, before_change))
    process.start()
    process.join(limit)
    if process.is_alive():
        _kill(process)
        raise Hang(f"{' '.join(words)[:200]}: more than {limit:g} s")
    code = process.exitcode
    assert code is not None
    if code >= 0:
        _check(code, log.read_text(errors="replace"), words)
    return code


def _run(main: Callable[[Sequence[str]], None], words: Sequence[str], log: Path, before_change: Killer | None) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = [main.__module__, *words]
    torch.set_num_threads(1)
    if before_change is not None:
        sys.addaudithook(lambda event, details: _tell(event, details, before_change))
    run(main)


def _check(code: int, said: str, words: Sequence[str]) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code not in (0, 2) or "Traceback (most recent call last)" in said or (code == 2 and len(errors) != 1):
        raise Traceback(f"exit code {code}: {' '.join(words)[:200]}: {said.strip()[-300:]}")


def _tell(event: str, details: tuple[object, ...], before_change: Killer) -> None:
    """Of the audit events, those that change something on the disk."""
    is_write = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
    if is_write or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.link"):
        try:
            path = Path(os.fsdecode(details[0]))  # type: ignore[arg-type]
        except TypeError:  # a file handle
            return
        before_change(event, path)
