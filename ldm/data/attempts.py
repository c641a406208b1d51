"""What comes over a network, asked for again when that fails."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

from ldm.core.errors import UserError

T = TypeVar("T")

WAITS = (1.0, 5.0, 25.0)  # seconds between the attempts
CURL = {
    "6": "no such host",
    "7": "no connection",
    "18": "the connection breaks off",
    "22": "the server refuses it, as with 404",
    "28": "no answer in time",
    "56": "the connection breaks off",
}  # what its exit codes mean


def attempted(url: str, get: Callable[[], T], folder: object) -> T:
    """What `get` gives, after another attempt after each of `WAITS` if it fails.

    Args:
        url: of what is wanted.
        get: gets it.
        folder: where it is written to.

    Raises:
        UserError: it failed every time, or cannot ever succeed.
        OSError: the disk is full.
    """
    for wait in (*WAITS, None):
        try:
            return get()
        except ImportError as error:
            raise UserError(f"{url}: {error}; pip install 'ldm[remote]' brings it") from None
        except Exception as error:  # of the network, of a command that is not ours, or of what came
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, error.strerror, f"a shard in {folder}") from None
            reason = _reason(error)
        if wait is not None:
            tqdm.write(f"{url}: {reason}; once more in {wait:g} s")
            time.sleep(wait)
    raise UserError(f"{url}: cannot be fetched, {len(WAITS) + 1} times ({reason})")


def _reason(error: Exception) -> str:
    """In few words; webdataset says of a command, as which it also runs curl, how it ended."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    ended = re.search(r": exit (\d+) \(read\)", str(error))
    if ended is None:
        return said
    return f"exit code {ended[1]}" + (f": {CURL[ended[1]]}" if "curl" in said and ended[1] in CURL else "")
