"""Command lines with something wrong in them: done, or refused in one line with exit code 2."""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from home import Home
from trial import Trial, script

from ldm.app.arguments import (
    convert,
    describe,
    evaluate,
    img2img,
    inpaint,
    prepare_data,
    sample,
    train_classifier,
    train_ldm,
    train_vae,
    txt2img,
    upscale,
)

Main = Callable[[Sequence[str]], None]
ODD = (
    *("", " ", "-1", "0", "1", "7", "nan", "inf", "1e400", str(2**70), "-1e9", "0.5", "x", "x" * 5000, "../../x", "\u0663"),
    *("\U0001f600", "a=b", "--", "none", "null", "[]", "{}", "1,2,3", "1,2", "\udcff", "~"),
    *("/dev/null", "/dev/zero", "/dev/null/x", "/proc/x", "README.md"),
)
ODD_YAML = (
    *("true", "[1]", "{a: 1}", "{kind: unet}", "{kind: nothing}", "[[]]", "!!python/object:os.system x", "*a", "&a 1", "${a}"),
    *("${oc.env:HOME}", "2020-99-99", "1_000", "0x10", ".nan", "1e-30", "[1, 2]", "[-1, 2, 3]", '"\\0"', *ODD[:20]),
)
MORE_KEYS = (
    *("seed", "init_from", "prompts", "lora", "nothing", "data.nothing", "data.workers", "data.levels", "data.background", "data.augment"),
    *("data.max_lost", "data.val", "train.precision", "train.accumulate", "train.keep_every", "train.ema_decay", "train.optimizer.betas"),
)


class _Begun(Exception):
    """A script has its parser, and begins to parse."""


def _arguments_of(main: Main) -> list[argparse.Action]:
    """All that a script takes."""
    found: list[argparse.Action] = []
    originals = {
        name: getattr(argparse.ArgumentParser, name) for name in ("add_argument", "parse_known_args", "parse_known_intermixed_args")
    }

    def add(self: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        found.append(originals["add_argument"](self, *names, **options))
        return found[-1]

    def begin(*_: Any) -> None:
        raise _Begun

    def restore() -> None:
        for name, original in originals.items():
            setattr(argparse.ArgumentParser, name, original)

    argparse.ArgumentParser.add_argument = add  # type: ignore[method-assign, assignment]
    argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_known_intermixed_args = begin  # type: ignore[method-assign, assignment]
    try:
        main([])
    except _Begun:
        return found
    finally:
        restore()
    raise AssertionError(f"{main.__module__} makes no parser")


@dataclass(frozen=True)
class _Line:
    """A script with a command line that works; what is wrong is added at its end, so that it replaces what was there."""

    main: Main
    words: tuple[str, ...]


def _sound_lines(home: Home) -> list[_Line]:
    model, vae, out = str(home.ldm_run / "checkpoint"), str(home.vae_run / "checkpoint"), "out"
    picture, mask = str(home.photos / "odd/2.png"), str(home.photos / "masks/odd/2.png")
    few = ("--model", model, "--steps", "1", "--num-images", "1", "--out", out)
    some = ("--data", str(home.photos), "--num-images", "2", "--out", out)
    return [
        _Line(sample.main, (*few, "--label", "odd")),
        _Line(txt2img.main, (*few, "--prompt", "a square")),
        _Line(img2img.main, (*few, "--image", picture, "--prompt", "a square")),
        _Line(inpaint.main, (*few, "--image", picture, "--mask", mask)),
        _Line(upscale.main, (*few, "--image", picture)),
        _Line(evaluate.main, ("vae", "--model", vae, *some)),
        _Line(describe.main, ("--config", str(home.ldm))),
        _Line(convert.main, ("export", vae, "--to", "compvis", "--out", "out.ckpt")),
        _Line(prepare_data.main, (str(home.photos), "--out", out)),
        _Line(train_vae.main, ("--config", str(home.vae), "--run-dir", "run", "train.steps=1")),
        _Line(train_ldm.main, ("--config", str(home.ldm), "--run-dir", "run", "train.steps=1")),
        _Line(train_classifier.main, ("--config", str(_classifier(home)), "--run-dir", "run", "train.steps=1")),
    ]


def _classifier(home: Home) -> Path:
    config = yaml.safe_load(home.ldm.read_text())
    network = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [], "heads": 2}
    kept = {key: config[key] for key in ("data", "first_stage", "process", "train")}
    path = home.folder / "classifier.yaml"
    path.write_text(yaml.safe_dump({"name": "small-classifier", "network": network, **kept}))
    return path


def command_lines(home: Home, number: int) -> list[Trial]:
    """Odd values of every flag of every script, and of every key of the training configs."""
    lines = _sound_lines(home)
    every = [one for line in lines for one in (*_flags(line), *_keys(line))]
    chosen = random.Random(0).sample(every, min(number, len(every)))
    return [_trial(home, main, words) for main, words in chosen]


def _flags(line: _Line) -> Iterator[tuple[Main, tuple[str, ...]]]:
    for action in _arguments_of(line.main):
        for value in ODD if action.dest != "help" else ():
            count = action.nargs if isinstance(action.nargs, int) else 1
            if not action.option_strings:
                yield line.main, (*line.words, value)
            elif count == 1:
                yield line.main, (*line.words, f"{action.option_strings[-1]}={value}")
            else:
                yield line.main, (*line.words, action.option_strings[-1], *[value] * count)


def _keys(line: _Line) -> Iterator[tuple[Main, tuple[str, ...]]]:
    if line.main not in (train_vae.main, train_ldm.main, train_classifier.main):
        return
    for key in (*_all_keys(yaml.safe_load(Path(line.words[1]).read_text())), *MORE_KEYS):
        for value in ODD_YAML:
            yield line.main, (*line.words, f"{key}={value}")


def _all_keys(tree: Any, path: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [path]
    return [key for name, value in tree.items() for key in _all_keys(value, f"{path}.{name}" if path else name)] + ([path] if path else [])


def _trial(home: Home, main: Main, words: tuple[str, ...]) -> Trial:
    def check() -> str:
        place = home.scratch / "line"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "README.md").write_text("mine")

        def inside(arguments: Sequence[str]) -> None:
            os.chdir(place)
            main(arguments)

        inside.__module__ = main.__module__
        code = script(inside, words, home.scratch / "line.log", limit=300)
        if (place / "README.md").read_text() != "mine":
            return "a file of the user's is gone"
        return "reported" if code else "right"

    return Trial(f"{main.__module__.rpartition('.')[2]} {' '.join(word[:60] for word in words[-2:])}", check)
