"""`--help` and a mistyped flag: answered by every script before anything heavy is loaded, and complete all the same."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from ldm.app import cli
from ldm.app.arguments import prepare_data
from ldm.core.errors import UserError
from ldm.diffusion.grid import Grid
from ldm.samplers.sampler import Sampler

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if '__name__ == "__main__"' in path.read_text())
# Runs a script as the command line does; its last line of output is the exit code and what of the heavy libraries was loaded.
WATCHED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    print()
    print(left.code, *sorted({"PIL", "numpy", "torch", "torchvision", "transformers"} & sys.modules.keys()))
"""


def called(script: str, flag: str, root: Path = ROOT) -> tuple[str, str, str]:
    """What a script of a checkout prints, what it complains of, and the last line; see above."""
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "1000"}
    command = [sys.executable, "-c", WATCHED, f"scripts/{script}", flag]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    printed, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return printed.rstrip("\n"), done.stderr, last


def offered(flag: str, text: str) -> list[str]:
    """The kinds that the help of a flag begins with."""
    found = re.search(rf"^ *{flag} [A-Z]+ +(?:[^,;]*: )?(.*?);", text, re.MULTILINE)
    assert found, text
    return found[1].split(", ")


def test_there_are_scripts():
    assert len(SCRIPTS) > 10


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script: str) -> None:
    printed, complaint, last = called(script, "--help")
    assert (last, complaint) == ("0", "")
    assert printed.startswith(f"usage: {script}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_flag_loads_nothing_heavy(script: str) -> None:
    printed, complaint, last = called(script, "--no-such-flag")
    assert (last, printed) == ("2", "")
    assert re.fullmatch(rf"error: [^\n]+; see {script} --help\n", complaint)


def test_help_lists_every_sampler_and_grid() -> None:
    printed, *_ = called("txt2img.py", "--help")
    assert offered("--sampler", printed) == list(Sampler.kinds())
    assert offered("--grid", printed) == list(Grid.kinds())


def test_help_lists_a_sampler_that_is_one_new_file(tmp_path: Path) -> None:
    """The one of CONTRIBUTING's recipe 1, put where the recipe says."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text().split("## Recipe 1")[1]
    place, source = re.search(r"One file, `(.*?)`:\n\n```python\n(.*?)```", recipe, re.DOTALL).groups()
    for folder in ("ldm", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "builtin"))
    (tmp_path / place).write_text(source)
    printed, _, last = called("txt2img.py", "--help", tmp_path)
    assert offered("--sampler", printed) == sorted([*Sampler.kinds(), "adams_bashforth"])
    assert last == "0"


def test_torch_out_of_memory_is_one_line_and_other_faults_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """`ldm.app.cli` does not load torch before a script has loaded it."""

    def out_of_memory(_: Sequence[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")

    def fault(_: Sequence[str]) -> None:
        raise RuntimeError("ours")

    with pytest.raises(SystemExit, match="2"):
        cli.run(out_of_memory)
    assert re.fullmatch(r"error: out of memory \(CUDA out of memory[^\n]+ 2 GiB\.\)[^\n]+\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="ours"):
        cli.run(fault)


def _killed_reader() -> None:
    class Data(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            os.kill(os.getpid(), signal.SIGKILL)
            return index

    list(torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context="fork"))


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "a data worker that was killed": (_killed_reader, "a process that reads data has ended .*lower data.workers.*the same command goes on"),
    "no memory for a tensor": (lambda: torch.empty(2**60, dtype=torch.uint8), "out of memory .*train.accumulate"),
    "no memory in Python": (lambda: bytearray(2**60), "out of memory: .*train.accumulate"),
    "a limit of file size": (lambda: (_ for _ in ()).throw(OSError(errno.EFBIG, "File too large", "x")), "disk full while writing x"),
}


@pytest.mark.parametrize("fault, said", FAULTS.values(), ids=FAULTS)
def test_what_the_machine_lacks_is_one_line(fault: Callable[[], object], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda _: fault() and None)
    assert re.fullmatch(f"error: {said}[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("size", ["inf", "nan", "1e400"])
def test_a_size_of_shards_is_a_number(size: str) -> None:
    with pytest.raises(UserError, match="--shard-size must be a number of MiB"):
        prepare_data.main(["photos", "--out", "set", "--shard-size", size])


@pytest.mark.parametrize(
    "script, flag, said",
    [
        ("train_vae.py", "--resume", "--resume is no flag: the same command again resumes"),
        ("describe.py", "--device=cuda", "--device is no flag here: this script needs no GPU"),
    ],
)
def test_a_flag_that_people_expect_is_answered_with_what_to_do(script: str, flag: str, said: str) -> None:
    printed, complaint, last = called(script, flag)
    assert (last, printed) == ("2", "") and said in complaint
