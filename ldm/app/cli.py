"""The way in and out of every script: arguments in, one clear line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldm.app.commands import CALLER
from ldm.core.errors import UserError
from ldm.core.settings import DEVICES, check_device_name

LESS_MEMORY = (
    "in training raise train.accumulate or set train.precision=bf16, with which the same command goes on (a smaller train.batch_size needs "
    "another --run-dir); in sampling ask for fewer or smaller images, or --precision bf16."
)

NO_GPU = "is no flag here: this script needs no GPU"


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and whose help keeps the examples' line breaks. A shell is answered with completions.

    Args:
        description, examples: of the help.
        elsewhere: flags that people expect and that there are not, each with what to do instead.
    """

    def __init__(self, description: str, examples: str, elsewhere: Mapping[str, str] = {}) -> None:
        super().__init__(prog=CALLER.prog, description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._elsewhere = elsewhere
        self._completes = "_ARGCOMPLETE" in os.environ

    def add_device(self, default: str | None = "auto") -> None:
        """The flag `--device`; a name that is none is refused before torch is loaded. None = a config has the default."""
        known = "the same as train.device=" if default is None else "default: %(default)s"
        self.add_argument("--device", type=_device_name, default=default, help=f"{DEVICES}; auto is CUDA, else mps, else cpu ({known})")

    def format_help(self) -> str:
        return CALLER.worded(super().format_help())

    def parse_known_args(self, args: Sequence[str], namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As argparse does, with the home folder in place of `~/`, which no shell expands in `--out=~/x`."""
        if self._completes:
            import argcomplete  # only here: no command needs it

            self._completes = False  # it parses by this very method
            argcomplete.autocomplete(self)
        home = str(Path.home())
        for word in args:
            if re.fullmatch(r"--[\w-]+=--", word):  # of which older releases of argparse make an empty list
                self.error(f"argument {word[:-3]}: -- is no value")
            if (flag := word.partition("=")[0]) in self._elsewhere:
                self.error(f"{flag} {self._elsewhere[flag]}")
        expanded = [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + home, word) for word in args]
        return super().parse_known_args(expanded, namespace)

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")


def _device_name(text: str) -> str:
    try:
        check_device_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls main with the command line and exits: 0 done, 2 the user's mistake, 130 interrupted, 141 its output closed.

    Anything that is neither is our own bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what no terminal can show
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output has enough of it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes at the exit
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = line_for(error)
        if line is None:
            raise
        _refuse(line)
    sys.exit(0)


def line_for(error: Exception) -> str | None:
    """What is said of an error that is the user's to mend; None of one that is our own bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {LESS_MEMORY}"
    if isinstance(error, OSError):
        return _line_for_system(error)
    return _line_for_torch(error) if isinstance(error, RuntimeError) else None


def _line_for_system(error: OSError) -> str | None:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"disk full while writing {name or 'a file'}: what was saved before is intact. Free some space and run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"not allowed to open or write {name}: choose another path or change its permissions."
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return f"{name}: {error.strerror}; check that path."
    return None


def _line_for_torch(error: RuntimeError) -> str | None:
    from torch import OutOfMemoryError  # only here: `--help` and a mistyped flag do without torch, which takes seconds to load

    first_line = str(error).partition("\n")[0]
    if isinstance(error, OutOfMemoryError) or "allocate memory" in first_line or "Storage size calculation overflowed" in first_line:
        return f"out of memory ({first_line}): {LESS_MEMORY}"
    if first_line.startswith("DataLoader worker"):
        return (
            f"a process that reads data has ended ({first_line}); mostly the system killed it for want of memory: lower data.workers. "
            "What was saved is intact: the same command goes on from it."
        )
    return None


def _refuse(text: str) -> NoReturn:
    print(f"error: {' '.join(CALLER.worded(text).split())}", file=sys.stderr)
    sys.exit(2)
