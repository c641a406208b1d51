"""Every command in a page that people read: its script exists, takes its flags, and its config takes its keys."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import types
from collections.abc import Iterator
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

import pytest

from ldm.app.commands import COMMANDS
from ldm.app.train_classifier import TrainClassifier
from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.config.loader import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "checkpoints/emoji/README.md")]
PAGES += sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
PROGRAMS = ("python", "torchrun", "make", "ldm")
SCHEMAS = {"train_vae": TrainVAE, "train_ldm": TrainLDM, "train_classifier": TrainClassifier}


def blocks(page: str) -> Iterator[str]:
    """What stands in fences of no language or of a shell, and indented lines that begin as a command does."""
    for language, block in re.findall(r"^ *```(\S*)\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE):
        if language in ("", "sh"):
            yield block
    yield from (found.strip() for found in re.findall(r"^((?: {4}|\t)(?:python|torchrun) (?:.*\\\n)*.*)$", page, re.MULTILINE))


def commands(page: str) -> Iterator[list[str]]:
    """Words of each, without comments, variables before it, and what follows a pipe or redirection."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.strip().removeprefix("$ ").removeprefix("time "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # a part of a program in quotes
                continue
            for is_sign, group in groupby(words, lambda word: set(word) <= set("();<>|&")):
                command = list(dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), group))
                if command and not is_sign and command[0] in PROGRAMS:
                    yield command


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """A script's name and what it is given."""
    if words[0] == "ldm" and len(words) > 1 and words[1] in COMMANDS:
        return COMMANDS[words[1]].script, words[2:]
    if words[0] not in ("python", "torchrun"):
        return None
    place = next((i for i, word in enumerate(words) if re.fullmatch(r"scripts/\w+\.py", word)), None)
    return None if place is None else (Path(words[place]).stem, words[place + 1 :])


FOUND = [(page, words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]


def named(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else " ".join(map(str, value))[:90]  # type: ignore[call-overload]


@pytest.mark.parametrize(("page", "words"), [one for one in FOUND if script_of(one[1])], ids=named)
def test_a_documented_command_is_taken(page: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = script_of(words)
    assert found is not None
    name, given = found
    assert (ROOT / "scripts" / f"{name}.py").is_file()
    if not (ROOT / "ldm/app/arguments" / f"{name}.py").is_file():
        return  # it has a command line of its own
    taken: list[Any] = []
    with monkeypatch.context() as patched:
        patched.chdir(ROOT)
        for module in (name, "drawn_set"):
            stand_in = types.ModuleType(f"ldm.app.{module}")
            stand_in.main = stand_in.draw_set = taken.append  # type: ignore[attr-defined]
            patched.setitem(sys.modules, f"ldm.app.{module}", stand_in)
            patched.setattr(importlib.import_module("ldm.app"), module, stand_in, raising=False)
        importlib.import_module(f"ldm.app.arguments.{name}").main(given)
    (options,) = taken
    if name in SCHEMAS and (ROOT / options.config).is_file() and not any("init_from" in word for word in given):
        load(ROOT / options.config, SCHEMAS[name], options.overrides)


@pytest.mark.parametrize(("page", "words"), [one for one in FOUND if not script_of(one[1])], ids=named)
def test_a_documented_program_is_there(page: Path, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets or "=" in word for word in words[1:]), words
    elif words[0] == "python":
        paths = [word for word in words if re.match(r"(benchmarks|tests|checkpoints)/", word) and word.endswith(".py")]
        assert all((ROOT / path).is_file() for path in paths), words


def test_pages_have_commands() -> None:
    assert len(FOUND) > 100
