"""What a GPU shows: the tests marked `gpu`, speed, and what `gpu_stages.py` measures. For GPUs that are rented for minutes, on machines
without a network.

    python benchmarks/gpu.py --stages tests,speed --minutes 8 --out gpu
    python benchmarks/gpu.py --stages profile,sd2,latency --minutes 9 --out gpu
    python benchmarks/gpu.py --stages train --data DIR --minutes 9 --out gpu    # a prepared set, carried there in parts of 50 MB
    python benchmarks/gpu.py --device cpu --minutes 30 --out rehearsal    # before renting: the same tests and cases on the CPU

Each stage runs in a process of its own and ends in its share of the minutes: it begins no new case in the last fifth, and is killed at the
end. After every case it writes OUT/STAGE.json and OUT/STAGE.md anew, so what was found stays whatever happens. Nothing is downloaded, no
checkpoint is read, and no pretrained network: the exit code is 1 if a test failed, 2 where there is no GPU.

The machine needs this tree, torch with CUDA, and what NEEDED lists. What it lacks is carried as wheels, pure Python all of them; diffusers,
if it is to be raced, and its own needs likewise:

    pip download --no-deps --dest wheels omegaconf webdataset braceexpand       # here, with a network
    pip install --no-index --no-deps --target carried wheels/*.whl              # there
    PYTHONPATH=carried python benchmarks/gpu.py --stages tests,speed --minutes 8 --out gpu
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.app.cli import Parser, run
from ldm.core.errors import UserError
from ldm.core.files import write_file

EXAMPLES = """examples:
  python benchmarks/gpu.py --minutes 8 --out gpu
  python benchmarks/gpu.py --stages speed --minutes 5 --out gpu
  python benchmarks/gpu.py --device cpu --minutes 30 --out rehearsal
"""

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "braceexpand", "einops", "filelock", "huggingface_hub", "matplotlib", "omegaconf", "peft", "pytest", "pytest_timeout", "safetensors",
    "tensorboard", "torchdiffeq", "torchvision", "tqdm", "transformers", "webdataset", "yaml",
)  # fmt: skip
ROOMS = ("tests/gpu", "tests/networks", "tests/conditioning", "tests/training")  # where tests for a GPU are
WITHOUT = "not bert_pretrained"  # whose weights may not be at hand
LAST_START = 0.8  # of a stage's time, after which it begins nothing new
ROUNDS = 7
OUT_OF_TIME = "no time was left"
FAILURES = ("failed", "error")

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One kind of measurement.

    Attributes:
        run: (device, time.monotonic() after which nothing new begins, what takes a row) in the stage's own process. A row has a `case`, an
            `outcome`, and what else there is to say of it.
        columns: of the table; keys of the rows.
    """

    run: Callable[[torch.device, float, Send], None]
    columns: tuple[str, ...]


@dataclass(kw_only=True)
class Report:
    """What is known of a stage so far."""

    stage: str
    machine: dict[str, str]
    columns: tuple[str, ...]
    seconds: float  # that it may take
    rows: list[dict[str, Any]] = field(default_factory=list)
    end: str = "still running"

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(row["outcome"] for row in self.rows)

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())) or "no case"
        return f"{self.stage}: {counts}; {self.end}"

    def write(self, out: Path) -> None:
        """OUT/STAGE.json and OUT/STAGE.md, where what failed stands first."""
        known = {"stage": self.stage, "machine": self.machine, "seconds": self.seconds, "end": self.end, "rows": self.rows}
        write_file(out / f"{self.stage}.json", json.dumps(known, indent=1))
        rows = sorted(self.rows, key=lambda row: row["outcome"] not in FAILURES)
        cells = [self.columns, ["---"] * len(self.columns), *([_cell(row.get(column, "")) for column in self.columns] for row in rows)]
        table = "".join(f"| {' | '.join(line)} |\n" for line in cells)
        where = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        write_file(out / f"{self.stage}.md", f"# {self.stage}\n\n{where}.\n\n{self.summary}.\n\n{table}")


def main(arguments: Sequence[str]) -> None:
    """Runs the stages one after the other."""
    flags = Parser("What a GPU shows: the tests marked `gpu`, speed, gaps, throughput, latency, training.", EXAMPLES)
    flags.add_argument("--stages", default="tests,speed", help=f"any of {', '.join(STAGES)}, with commas (default: %(default)s)")
    flags.add_argument("--data", type=Path, help="a prepared set for the stage `train`, whose runs come to lie in DIR-runs")
    flags.add_argument("--minutes", type=float, default=8.0, help="for all stages together (default: %(default)s)")
    flags.add_argument("--out", type=Path, required=True, help="folder for the results")
    flags.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu = a rehearsal (default: %(default)s)")
    options = flags.parse_args(arguments)
    names = [name for name in options.stages.split(",") if name]
    if not names or not set(names) <= set(STAGES):
        raise UserError(f"--stages takes {', '.join(STAGES)}, with commas between them; got {options.stages!r}")
    if not options.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {options.minutes:g}")
    if ("train" in names) != (options.data is not None):
        raise UserError("--data DIR, a prepared set, and the stage train go together: give both or neither")
    if options.data is not None and not (options.data / "index.json").is_file():
        raise UserError(f"--data {options.data}: it has no index.json; scripts/prepare_data.py makes such a set")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here that torch can use; --device cpu rehearses the stages on the CPU")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"this machine lacks {', '.join(missing)}: the top of benchmarks/gpu.py says how to carry them")

    end, device = time.monotonic() + 60 * options.minutes, torch.device(options.device)
    reports = []
    for number, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - number)  # what one stage leaves, the next ones have
        stage = STAGES[name]
        if name == "train":
            stage = replace(stage, run=partial(_run, "run_train", options.data.resolve()))
        report = Report(stage=name, machine=machine(device), columns=stage.columns, seconds=share)
        run_stage(stage, report, device, options.out)
        reports.append(report)
        print(report.summary, flush=True)
    print(f"results: {options.out.resolve()}")
    if any(report.outcomes[outcome] for report in reports for outcome in FAILURES):
        sys.exit(1)


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cpu":
        return {"device": f"{platform.machine()} CPU", **found}
    properties = torch.cuda.get_device_properties(device)
    memory, capability = f"{properties.total_memory / 2**30:.0f} GiB", f"{properties.major}.{properties.minor}"
    versions = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {"device": properties.name, "memory": memory, "capability": capability, **found, **versions}


def run_stage(stage: Suite, report: Report, device: torch.device, out: Path, now: Callable[[], float] = time.monotonic) -> None:
    """Runs a stage in a process of its own, for `report.seconds` at most; the report and its files grow row by row."""
    start = now()
    context = multiprocessing.get_context("spawn")  # a fork could not use the GPU
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(stage.run, device, start + LAST_START * report.seconds, sender))
    process.start()
    sender.close()  # the other end is the process's alone: when it closes, there is no more to come
    report.write(out)
    report.end = f"killed after {report.seconds:.0f} s"
    while (left := start + report.seconds - now()) > 0:
        if not receiver.poll(min(left, 1.0)):
            continue
        try:
            report.rows.append(receiver.recv())
        except EOFError:
            process.join()
            report.end = f"ended by itself after {now() - start:.0f} s"
            if process.exitcode:
                said = f"its process ended with exit code {process.exitcode}"
                report.rows.append({"case": report.stage, "outcome": "error", "said": said})
            break
        report.write(out)
    _kill_group(process.pid)
    process.join()
    report.write(out)


def _kill_group(leader: int | None) -> None:
    """A stage's process and all that it started."""
    assert leader is not None
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # none of them is there any more


def _in_process(work: Callable[[torch.device, float, Send], None], device: torch.device, deadline: float, sender: Connection) -> None:
    os.setsid()  # so that what it starts can be killed with it
    os.environ |= {"LDM_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    work(device, deadline, sender.send)


def run_tests(device: torch.device, deadline: float, send: Send) -> None:
    """pytest over ROOMS: on a GPU the tests marked for it, on the CPU their twins."""
    marked, named = ("gpu", WITHOUT) if device.type == "cuda" else ("not gpu and not slow", f"cpu and {WITHOUT}")
    how = ["-q", "--tb=short", "--continue-on-collection-errors"]
    code = pytest.main([*ROOMS, "-m", marked, "-k", named, *how], plugins=[Recorder(deadline, send)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(code)


class Recorder:
    """A plugin of pytest: a row a test, as soon as it has ended. Slow tests come last, and none begins after the deadline."""

    def __init__(self, deadline: float, send: Send) -> None:
        self.deadline, self.send = deadline, send

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.deadline:
            pytest.skip(OUT_OF_TIME)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.send({"case": report.nodeid, "outcome": "error", "seconds": 0.0, "said": report.longreprtext[-2000:]})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome: str = report.outcome
        said = report.longreprtext[-4000:]
        if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
            said = report.longrepr[2].removeprefix("Skipped: ")
            outcome = "not run" if said == OUT_OF_TIME else outcome
        elif report.when != "call":
            outcome = "error"  # before or after the test itself
        kernels = {name: names for name, names in report.user_properties if isinstance(names, list)}
        row = {"case": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2), "said": said, **kernels}
        self.send(row | {"kernels": "; ".join(sorted({_short(name) for names in kernels.values() for name in names}))})


def _short(kernel: str) -> str:
    """A kernel's name without its namespaces, types and arguments."""
    return re.sub(r"[<(].*", "", kernel.removeprefix("void ")).rpartition("::")[2][:48]


def run_speed(device: torch.device, deadline: float, send: Send) -> None:
    """The cases of benchmarks/speed.py as they are, then through torch.compile."""
    import speed

    for compiled in (False, True):
        left = speed.all_cases()
        rows = speed.measured(left, device, ROUNDS, compiled=compiled)
        while left and time.monotonic() < deadline:
            row = next(rows)
            left = left[1:]
            _, ours, theirs, _ = row.cells()
            outcome = "measured" if row.ours else "error"
            send({"outcome": outcome, "ours, ms": ours, "diffusers, ms": theirs, "peer": speed.peer(), **row.as_json()})
        for case in left:
            send({"case": f"{case}, compiled" if compiled else case, "outcome": "not run"})


def _run(name: str, *given: Any) -> None:
    """A stage of `gpu_stages`, which is loaded where it runs."""
    getattr(importlib.import_module("gpu_stages"), name)(*given)


def _cell(value: Any) -> str:
    """For a table: on one line, of a long text the end."""
    if isinstance(value, float):
        return f"{value:.2f}"
    text = "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= 160 else f"… {text[-158:]}"


STAGES = {
    "tests": Suite(run=run_tests, columns=("outcome", "case", "seconds", "said", "kernels")),
    "speed": Suite(run=run_speed, columns=("case", "outcome", "ours, ms", "diffusers, ms", "ratio")),
    "profile": Suite(run=partial(_run, "run_profile"), columns=("case", "outcome", "step, ms", "gaps, %", "longest", "said")),
    "sd2": Suite(
        run=partial(_run, "run_sd2"),
        columns=("case", "outcome", "images/s", "TFLOP/s", "of the product, %", "of the specified, %", "said"),
    ),
    "latency": Suite(run=partial(_run, "run_latency"), columns=("case", "outcome", "seconds", "images/s", "said")),
    "train": Suite(run=partial(_run, "run_train"), columns=("case", "outcome", "images/s", "said")),
}

if __name__ == "__main__":
    run(main)
