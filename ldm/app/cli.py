"""The way in and out of every script: arguments in, one clear line and exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ldm.core.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and whose help keeps the examples' line breaks."""

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse does, with the home folder in place of `~/`, which no shell expands in `--out=~/x`."""
        home = str(Path.home())
        return super().parse_args([re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + home, word) for word in args])

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls main with the command line and exits: 0 done, 2 the user's mistake, 130 interrupted, 141 its output closed.

    Anything that is neither is our own bug and keeps its traceback.
    """
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:  # whoever reads our output has enough of it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes at the exit
        sys.exit(141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _refuse(
                f"disk full while writing {error.filename or 'a file'}: what was saved before is intact. "
                "Free some space and run the same command again."
            )
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            _refuse(f"not allowed to open or write {error.filename}: choose another path or change its permissions.")
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            _refuse(f"{error.filename}: {error.strerror}; check that path.")
        raise
    except RuntimeError as error:
        from torch import OutOfMemoryError  # only here: `--help` and a mistyped flag do without torch, which takes seconds to load

        if not isinstance(error, OutOfMemoryError):
            raise
        _refuse(f"out of GPU memory ({str(error).splitlines()[0]}): lower the batch size or raise train.accumulate, or use bf16.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _refuse(text: str) -> NoReturn:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)
