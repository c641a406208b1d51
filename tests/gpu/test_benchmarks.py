"""benchmarks/gpu.py and speed.py: that a stage ends in its time and keeps what it found, and that both sides of a race are of one kind."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_stages  # noqa: E402
import speed  # noqa: E402

from ldm.core.errors import UserError  # noqa: E402
from ldm.first_stage.autoencoder import KLAutoencoderConfig  # noqa: E402
from ldm.networks.unet import UNetConfig  # noqa: E402

CPU = torch.device("cpu")
TINY = speed.Scale(
    unet=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(1, 2), head_width=16, context_width=24),
    batch=2,
    side=8,
    autoencoder=KLAutoencoderConfig(channels=64, multipliers=(1, 2), blocks=1, latent_channels=4),
    image_batch=1,
    image_side=16,
)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/gpu.py", "--minutes", "1", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no GPU here that torch can use; --device cpu rehearses the stages on the CPU\n"
    assert done.stdout == "" and not (tmp_path / "out").exists()


def found_two_then_hung(device: torch.device, deadline: float, send: gpu.Send) -> None:
    """A stage that starts a process and waits for it too long."""
    child = subprocess.Popen(["sleep", "600"])
    for number in (1, 2):
        send({"case": f"{number}, beside {child.pid}", "outcome": "measured"})
    child.wait()


def died(device: torch.device, deadline: float, send: gpu.Send) -> None:
    send({"case": "one", "outcome": "measured"})
    os._exit(7)


def report_of(stage: str) -> gpu.Report:
    return gpu.Report(stage=stage, machine=gpu.machine(CPU), columns=("case", "outcome", "said"), seconds=1000.0)


def test_a_stage_is_killed_at_its_end_and_what_it_found_stays(tmp_path: Path) -> None:
    report = report_of("hung")

    def now() -> float:
        """The end comes once two rows are there."""
        return time.monotonic() + (2000.0 if len(report.rows) == 2 else 0.0)

    gpu.run_stage(gpu.Suite(run=found_two_then_hung, columns=report.columns), report, CPU, tmp_path, now)
    assert json.loads((tmp_path / "hung.json").read_text())["rows"] == report.rows
    assert report.summary == "hung: 2 measured; killed after 1000 s"
    assert f"| {report.rows[1]['case']} | measured |  |\n" in (tmp_path / "hung.md").read_text()
    assert not is_running(int(report.rows[0]["case"].split()[-1]))


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has asked about since it ended is none."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_stage_that_dies_is_an_error_and_keeps_what_it_found(tmp_path: Path) -> None:
    report = report_of("died")
    gpu.run_stage(gpu.Suite(run=died, columns=report.columns), report, CPU, tmp_path)
    assert report.outcomes == {"measured": 1, "error": 1}
    assert report.rows[1]["said"] == "its process ended with exit code 7"
    assert report.end.startswith("ended by itself")
    assert "| died | error | its process ended with exit code 7 |" in (tmp_path / "died.md").read_text()


TESTS = """
import pytest
@pytest.mark.slow
def test_slow(): pass
def test_good(record_property): record_property("kernels, torch.float16", ["void ns::flash_fwd_kernel<ns::Traits<64>, false>(Params)"])
def test_bad(): assert 1 == 2
@pytest.mark.skip(reason="not here")
def test_skipped(): pass
@pytest.fixture
def broken(): raise ValueError("no such thing")
def test_broken(broken): pass
"""


def recorded(folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """What the plugin says of TESTS, in order; nothing begins after so many seconds."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: last\n")
    rows: list[dict[str, Any]] = []
    without = [word for name in ("cacheprovider", "timeout", "faulthandler") for word in ("-p", f"no:{name}")]  # the outer run has these
    alone = [*without, "-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--import-mode", "importlib"]
    pytest.main([*alone, "-q", str(folder)], plugins=[gpu.Recorder(time.monotonic() + seconds, rows.append)])
    return {row["case"].rpartition("::")[2]: row for row in rows}


def test_every_test_is_a_row_and_slow_ones_come_last(tmp_path: Path) -> None:
    rows = recorded(tmp_path, 60)
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_broken": "error",
        "test_slow": "passed",
    }
    assert list(rows)[-1] == "test_slow"
    assert "assert 1 == 2" in rows["test_bad"]["said"] and "no such thing" in rows["test_broken"]["said"]
    assert rows["test_skipped"]["said"] == "not here"
    assert rows["test_good"]["kernels"] == "flash_fwd_kernel"


def test_no_test_begins_when_the_time_is_over(tmp_path: Path) -> None:
    rows = recorded(tmp_path, -1)
    assert {row["outcome"] for name, row in rows.items() if name != "test_skipped"} == {"not run"}


def test_cases_of_speed_that_do_not_begin_are_named() -> None:
    rows: list[dict[str, Any]] = []
    gpu.run_speed(CPU, time.monotonic(), rows.append)
    assert rows[:1] == [{"case": "UNet forward fp32", "outcome": "not run"}]
    assert [row["case"] for row in rows] == [*speed.all_cases(), *(f"{case}, compiled" for case in speed.all_cases())]


def test_every_test_for_a_gpu_is_where_it_looks() -> None:
    """Those that ask for the fixture `device`, or are marked by hand."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        tests = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        asks = any(argument.arg == "device" for test in tests for argument in test.args.args)
        if path != Path(__file__) and (asks or "mark.gpu" in text):
            assert any(path.is_relative_to(ROOT / room) for room in gpu.ROOMS), path


@pytest.fixture
def tiny_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.SCALES, "cpu", TINY)


@pytest.mark.parity
@pytest.mark.parametrize("make", [speed.unets, speed.autoencoders])
def test_both_sides_are_of_one_architecture(make: Any) -> None:
    pytest.importorskip("diffusers")
    pair = make(TINY, CPU)
    ours, theirs = (sorted(tuple(p.shape) for p in side.parameters()) for side in (pair.ours, pair.theirs))
    assert [torch.Size(shape).numel() for shape in ours] == [torch.Size(shape).numel() for shape in theirs]
    for our_call, their_call in pair.calls.values():
        with torch.no_grad():
            assert our_call(pair.ours).shape == their_call(pair.theirs).shape


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # of diffusers' own
def test_every_case_is_measured_on_both_sides(tiny_race: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    speed.main(["--rounds", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["case"] for row in rows] == speed.all_cases()
    assert all(len(row["ours_ms"]) == len(row["theirs_ms"]) == 2 and min(row["ours_ms"]) > 0 and row["ratio"] > 0 for row in rows)


def test_without_diffusers_ours_is_measured_alone(
    tiny_race: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name, *more: None if name == "diffusers" else found(name, *more))
    speed.main(["--rounds", "1", "--only", "bf16"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("diffusers is not installed: ours alone")
    assert [line.split("  ")[0] for line in said[1:]] == [case for case in speed.all_cases() if "bf16" in case]


def test_a_case_that_cannot_run_does_not_stop_the_others(tiny_race: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = speed.timed

    def scarce(case: str, *others: Any, **more: Any) -> speed.Row:
        if "forward" in case:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
        return plain(case, *others, **more)

    monkeypatch.setattr(speed, "timed", scarce)
    rows = list(speed.measured(["UNet forward fp32", "UNet training step fp32"], CPU, 1))
    assert [row.cells()[:2] for row in rows][0] == ("UNet forward fp32", "OutOfMemoryError: CUDA out of memory.")
    assert rows[1].ours


def test_the_measured_unet_is_the_published_one() -> None:
    with torch.device("meta"):
        network = gpu_stages.model_of(torch.device("cuda")).unet.build(4, 4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 865_910_724


def test_gaps_are_what_no_kernel_covers() -> None:
    assert gpu_stages._covered([(3, 5), (0, 2), (1, 2), (4, 7), (4, 4)]) == 6


@pytest.mark.parametrize("words", [("--stages", "train"), ("--data", "somewhere"), ("--stages", "train", "--data", "nowhere")])
def test_the_stage_that_trains_needs_a_prepared_set(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        gpu.main([*words, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
