"""Bytes, changed."""

from __future__ import annotations

import random
from collections.abc import Callable


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit of it changed."""
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def mangled(content: bytes, draw: random.Random) -> bytes:
    """Changed in one of the ways in which files go wrong."""
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice((1, 2, 4, 16, 256)))
    ways: list[Callable[[], bytes]] = [
        lambda: flipped(content, draw),
        lambda: content[:start],
        lambda: content[:start] + bytes(stop - start) + content[stop:],
        lambda: content[:start] + b"\xff" * (stop - start) + content[stop:],
        lambda: content[:start] + draw.randbytes(stop - start) + content[stop:],
        lambda: content[:start] + content[stop:],
        lambda: content[:start] + content[start:stop] * 3 + content[stop:],
    ]
    early = draw.random() < 0.5 and len(content) > 64  # headers are where a reader is hurt
    return mangled(content[:64], draw) + content[64:] if early else draw.choice(ways)()
