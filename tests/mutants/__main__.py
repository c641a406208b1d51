"""Breaks the code on purpose, one change at a time in a scratch copy, and names each change that no test notices."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

from mutants import ROOT, Mutant, breakages, random_mutants

LIMIT = 1800.0  # seconds a mutant
TEST_LIMIT = 300  # seconds a test: a loop without end is noticed, a busy machine is none
LOADED_ONCE = ("pytest", "torch", "torchvision.transforms.v2", "torchmetrics", "transformers", "peft", "lpips", "omegaconf", "webdataset")


class Scratch:
    """A copy of the tree, without what git ignores; the only thing that is ever changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.with_suffix(".log")
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)

    def start(self, tests: Sequence[str]) -> ForkProcess:
        """Runs tests here until one fails."""
        process = multiprocessing.get_context("fork").Process(target=self._run, args=(tests,))
        process.start()
        return process

    def _run(self, tests: Sequence[str]) -> None:
        """In a forked process, which has the large libraries at once, and of ldm nothing yet."""
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(self.path)
        sys.path[0] = os.environ["PYTHONPATH"] = str(self.path)
        import pytest

        import ldm

        assert Path(ldm.__file__).is_relative_to(self.path)
        arguments = ["-x", "-q", "--tb=no", "--no-showlocals", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is loaded once
        arguments += ["-o", f"timeout={TEST_LIMIT}", f"--basetemp={self.path.with_suffix('.tmp')}"]
        os._exit(pytest.main([*arguments, *tests]))

    def noticed_by(self) -> str:
        """The test that failed, or the last line where none came to run."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.split(" ")[1] for line in lines if line.startswith(("FAILED ", "ERROR "))), lines[-1] if lines else "a crash")


def kill(process: ForkProcess) -> None:
    """It, and what it started."""
    if process.is_alive() and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


@dataclass(frozen=True)
class Running:
    mutant: Mutant
    scratch: Scratch
    original: bytes  # of the changed file
    process: ForkProcess
    started: float


def check_unbroken(scratch: Scratch, tests: Sequence[str]) -> None:
    """A test that fails anyway notices nothing."""
    print(f"without any change: {len(tests)} tests or files of tests", flush=True)
    process = scratch.start(tests)
    try:
        process.join()
    finally:
        kill(process)
    if process.exitcode:
        sys.exit(f"error: {scratch.noticed_by()} fails without any change:\n{scratch.log.read_text(errors='replace')[-2000:]}")


def run(mutants: Sequence[Mutant], scratches: Sequence[Scratch], results: Path) -> None:
    """Each mutant against its tests; a line of results each."""
    waiting, free, running = deque(mutants), list(scratches), list[Running]()
    done = 0
    try:
        while waiting or running:
            while waiting and free:
                mutant, scratch = waiting.popleft(), free.pop()
                original = (scratch.path / mutant.file).read_bytes()
                (scratch.path / mutant.file).write_bytes(mutant.source)
                running.append(Running(mutant, scratch, original, scratch.start(mutant.tests), time.monotonic()))
            time.sleep(0.2)
            for one in list(running):
                seconds, is_late = time.monotonic() - one.started, False
                if one.process.is_alive():
                    is_late = seconds > LIMIT
                    if not is_late:
                        continue
                kill(one.process)
                noticed = "time limit" if is_late else one.scratch.noticed_by() if one.process.exitcode else ""
                line = {"name": one.mutant.name, "digest": one.mutant.digest, "noticed_by": noticed, "seconds": round(seconds, 1)}
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                done += 1
                verdict = f"noticed by {noticed}" if noticed else "survived, as it may" if one.mutant.reason else "SURVIVED"
                print(f"[{done}/{len(mutants)}] {seconds:4.0f} s  {one.mutant.name}: {verdict}", flush=True)
                (one.scratch.path / one.mutant.file).write_bytes(one.original)
                running.remove(one)
                free.append(one.scratch)
    finally:
        for one in running:
            kill(one.process)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose promise, file or test contains it, e.g. ldm/samplers")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs" / "mutants.jsonl", help="what is noticed there is not run again")
    how = parser.parse_args()

    everything = [breakage.mutant() for breakage in breakages()] + list(random_mutants())
    mutants = [one for one in everything if any(how.only in text for text in (one.name, one.file, *one.tests))]
    how.results.parent.mkdir(parents=True, exist_ok=True)
    how.results.touch()

    def noticed() -> set[tuple[str, str]]:
        found = map(json.loads, how.results.read_text().splitlines())
        return {(one["name"], one["digest"]) for one in found if one["noticed_by"]}

    waiting = [one for one in mutants if (one.name, one.digest) not in noticed()]
    if waiting:
        # Bytecode is known by its source's second and size, and two mutants may share both.
        os.environ |= {"LDM_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // how.jobs))
        for library in LOADED_ONCE:
            importlib.import_module(library)
        with tempfile.TemporaryDirectory() as folder:
            scratches = [Scratch(Path(folder) / str(job)) for job in range(min(how.jobs, len(waiting)))]
            check_unbroken(scratches[0], sorted({test for one in waiting for test in one.tests}))
            run(waiting, scratches, how.results)

    survivors = [one for one in mutants if (one.name, one.digest) not in noticed()]
    meaningful = [one for one in survivors if not one.reason]
    for one in meaningful:
        print(f"survived: {one.name}\n    {one.file}: {one.what}\n    {' '.join(one.tests)}")
    counts = f"{len(mutants) - len(survivors)} noticed, {len(survivors) - len(meaningful)} survived as they may, {len(meaningful)} survived"
    print(f"{len(mutants)} mutants: {counts}; {how.results}")
    return 1 if meaningful else 0


if __name__ == "__main__":
    sys.exit(main())
