"""The user's mistakes: one clear line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix. Its text is one line: what was wrong, what is allowed, what to do."""


def described(value: object) -> str:
    """What somebody gave instead of what was wanted, in a few words: the type, and the value or its shape."""
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{name} {value!r:.60}" if shape is None else f"{name} of {getattr(value, 'dtype', '')} {tuple(shape)}"


def unknown(what: str, name: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a list. Its text gives the list and the nearest match."""
    known = sorted(allowed)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {str(name)!r}; allowed: {', '.join(known) or '(none)'}.{hint}")
