"""What is broken on purpose: promises with the test that holds each, and random changes with the reason why a survivor means nothing."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from random_changes import chosen

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SEED, NUMBER = 0, 200  # of the random changes
# Of each room that is changed at random, where the tests lie that are to notice.
ROOMS = {
    "diffusion": ("diffusion", "guidance", "samplers/test_sampler_parity.py"),
    "samplers": ("samplers", "diffusion"),
    "training": ("training", "app/test_run_folder.py"),
    "data": ("data", "training", "app/test_run_folder.py"),
    "losses": ("losses", "training"),
}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """
    Attributes:
        name: the broken promise, or a random change's name.
        file: that is changed, from the root of the tree.
        what: the change, for a reader.
        source: of the changed file.
        tests: that must notice: paths or pytest's names of tests.
        reason: why nobody need notice; "" = somebody must.
    """

    name: str
    file: str
    what: str
    source: bytes
    tests: tuple[str, ...]
    reason: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.source + " ".join(self.tests).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Breakage:
    """A promise broken: `text`, found exactly once in `file`, becomes `becomes`, and `test` must fail."""

    promise: str
    file: str
    text: str
    becomes: str
    test: str

    @property
    def room(self) -> str:
        return self.file.split("/")[1]

    def mutant(self) -> Mutant:
        source = (ROOT / self.file).read_text()
        found = source.count(self.text)
        if found != 1:
            raise ValueError(f"{self.promise!r}: its text must be found once in {self.file}, and is found {found} times: {self.text!r}")
        return Mutant(
            name=self.promise,
            file=self.file,
            what=f"{self.text!r} -> {self.becomes!r}",
            source=source.replace(self.text, self.becomes).encode(),
            tests=(self.test,),
        )


def breakages() -> list[Breakage]:
    return [Breakage(**entry) for entry in tomllib.loads((HERE / "breakages.toml").read_text())["breakage"]]


def reasons() -> dict[str, dict[str, str]]:
    """By the name of a random change: `change`, what it was when it was looked at, and `reason`."""
    return tomllib.loads((HERE / "equivalent.toml").read_text())


def tests_of(file: str) -> tuple[str, ...]:
    """The test files of a source file's rooms, the likeliest to notice first: the one of its name, then those that import it."""
    module = file.removesuffix(".py").replace("/", ".")
    places = [ROOT / "tests" / place for place in ROOMS[file.split("/")[1]]]
    found = [path for place in places for path in (sorted(place.rglob("test_*.py")) if place.is_dir() else [place])]
    found.sort(key=lambda path: (path.stem != f"test_{Path(file).stem}", f"from {module} import" not in path.read_text()))
    return tuple(str(path.relative_to(ROOT)) for path in found)


def random_mutants() -> Iterator[Mutant]:
    known = reasons()
    for change in chosen(ROOT, tuple(ROOMS), NUMBER, SEED):
        yield Mutant(
            name=change.name,
            file=change.file,
            what=change.what,
            source=change.applied((ROOT / change.file).read_bytes()),
            tests=tests_of(change.file),
            reason=known.get(change.name, {}).get("reason", ""),
        )
