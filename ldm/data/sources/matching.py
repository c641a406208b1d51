"""Which picture a table's name means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ldm.data.text import one_form


class Names:
    """Pictures by all that they may be called."""

    def __init__(self, folder: Path, pictures: Iterable[PurePosixPath]) -> None:
        self._roots = tuple({one_form(str(root)) for root in (folder.absolute(), folder.resolve())})
        self._called: dict[tuple[str, str], list[PurePosixPath]] = {}
        for path in pictures:
            whole, bare = one_form(str(path)), one_form(path.name)
            calls = ("path", whole), ("stem", _stem(whole)), ("name", bare), ("name's stem", _stem(bare)), ("capitals", whole.casefold())
            for call in calls:
                self._called.setdefault(call, []).append(path)

    def exact(self, name: str, base: PurePosixPath) -> list[PurePosixPath]:
        """The picture whose path from `base` or from the top a name is."""
        return self._first((call for call in self._all_calls(name, base) if call[0] == "path"), base)

    def find(self, name: str, base: PurePosixPath) -> list[PurePosixPath]:
        """The pictures that a name in a table in folder `base` fits: one, or several, or none.

        The first of these that fits any: its path from `base` or from the top, as it is, without suffix, in other capitals; for a name
        without a folder, the files of that name anywhere below `base`, with or without suffix. Backslashes are read as slashes; an
        absolute path must lie in the folder.
        """
        return self._first(self._all_calls(name, base), base)

    def _first(self, calls: Iterable[tuple[str, str]], base: PurePosixPath) -> list[PurePosixPath]:
        for call in calls:
            found = [picture for picture in self._called.get(call, ()) if picture.parts[: len(base.parts)] == base.parts]
            if found:
                return found
        return []

    def _all_calls(self, name: str, base: PurePosixPath) -> Iterator[tuple[str, str]]:
        plain = one_form(name)
        for spelled in dict.fromkeys((plain, plain.replace("\\", "/"))):
            yield from self._calls(spelled, base)

    def _calls(self, name: str, base: PurePosixPath) -> Iterator[tuple[str, str]]:
        path = str(PurePosixPath(name))
        path = next((path[len(root) + 1 :] for root in self._roots if path.startswith(f"{root}/")), path)
        places = dict.fromkeys((str(base / path), path))
        yield from (("path", place) for place in places)
        if "/" not in path:
            yield "name", path
        yield from (("stem", place) for place in places)
        if "/" not in path:
            yield "name's stem", path
        yield from (("capitals", place.casefold()) for place in places)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
