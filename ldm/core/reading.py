"""A user's file, read whole: a regular file only, of no more bytes than stated."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ldm.core.errors import UserError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # Windows has neither this nor pipes among its files


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file's bytes.

    A pipe has its reader wait for a writer, and a device such as /dev/zero has no end: both are refused. Links are followed.

    Args:
        path: of a regular file.
        most: bytes that it may have.

    Raises:
        UserError: no such file, not a regular one, larger than `most`, or not to be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | NO_WAIT)  # a pipe without a writer opens at once, and is refused below
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: cannot be read ({KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file)")
            if status.st_size > most:
                raise UserError(f"{path}: cannot be read ({status.st_size / 2**20:.0f} MiB, more than {most / 2**20:.0f} MiB)")
            with open(handle, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(handle)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"{str(path)!r}: cannot be read ({error})") from None
