"""What run folders say; runs that are started, stopped and resumed from the page."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from ldm.core.processes import ProcessName
from ldm.training.lock import NAME as LOCK
from ldm.web.curves import MOST_BUCKETS, Curves
from ldm.web.runs import Runs


def write_run(folder: Path, steps: int = 10, done: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"denoiser: {{}}\ntrain: {{steps: {steps}, batch_size: 4}}\n")
    rows = [{"step": i, "loss": 1 / i, "learning_rate": 0.1, "samples_per_second": 8.0} for i in range(1, done + 1)]
    rows[-1]["val/loss"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def hold(folder: Path, **changes: object) -> None:
    name = asdict(ProcessName.of_this()) | changes
    (folder / LOCK).write_text(json.dumps(name | {"since": "now"}))


def test_the_state_is_told_by_the_lock_and_the_steps(tmp_path):
    write_run(tmp_path / "finished")
    write_run(tmp_path / "stopped", steps=20)
    hold(write_run(tmp_path / "training", steps=20))
    hold(write_run(tmp_path / "died", steps=20), started=1.0)
    hold(write_run(tmp_path / "elsewhere", steps=20), host="another")
    (tmp_path / "no-run").mkdir()
    found = {run["name"]: run for run in Runs(tmp_path).summaries()}
    assert {name: run["state"] for name, run in found.items()} == {name: name for name in found} and len(found) == 5
    assert found["training"]["seconds_left"] == 10 * 4 / 8 and found["training"]["memory"] > 1 << 20
    assert (found["stopped"]["step"], found["stopped"]["held_out_loss"]) == (10, 0.5)


def test_curves_are_read_as_they_grow_and_from_the_start_when_they_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curves = Curves(path)
    curves.read()
    assert curves.step == 0
    lines = [json.dumps({"step": i, "loss": float(i)}) + "\n" for i in range(1, 11)]
    path.write_text("".join(lines[:5]) + lines[5][:7])  # a line is being written
    curves.read()
    assert curves.step == 5
    path.write_text("".join(lines))
    curves.read()
    assert (curves.step, curves.latest("loss")) == (10, 10)
    path.write_text("".join(lines[:3]))  # a resumed run cuts what came after its state
    curves.read()
    assert (curves.step, len(curves.panels()[0]["series"][0]["points"])) == (3, 3)


def test_a_long_curve_keeps_its_mean_and_its_ends_in_few_points(tmp_path):
    draw = random.Random(0)
    values = [draw.random() for _ in range(30_000)] + [math.nan]
    values[12_345] = 7.0
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": value, "val/loss": value}) + "\n" for i, value in enumerate(values, 1)))
    curves = Curves(path)
    curves.read()
    (panel,) = curves.panels()
    assert panel["is_first"] and [series["name"] for series in panel["series"]] == ["loss", "val/loss"]
    points = panel["series"][0]["points"]
    assert MOST_BUCKETS / 2 <= len(points) < MOST_BUCKETS
    assert points[-1][0] == 30_000 and max(point[3] for point in points) == 7.0
    assert sum(point[1] for point in points[:-1]) / len(points[:-1]) == pytest.approx(0.5, abs=0.01)


def test_first_are_the_curves_that_one_looks_at_first_and_none_of_single_points(tmp_path):
    rows = [{"step": i, "zeta": 1.0, "gradient_norm/denoiser": 1.0, "loss": 1.0, "learning_rate": 1.0} for i in (1, 2)]
    rows[1] |= {"val/loss": 2.0, "once": 3.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = Curves(tmp_path / "metrics.jsonl")
    curves.read()
    assert [(panel["title"], panel["is_first"]) for panel in curves.panels()] == [
        ("loss", True),
        ("learning_rate", True),
        ("gradient_norm/denoiser", False),
        ("zeta", False),
    ]


def test_a_run_is_told_in_full(start, tiny, tmp_path):
    run = write_run(tmp_path / "runs" / "mine")
    (run / "report.txt").write_text("step 10: the KL is small: lower loss.kl_weight\n")
    (run / "samples").mkdir()
    Image.new("RGB", (8, 8), "red").save(run / "samples" / "step-00000010.png")
    (run / "samples" / "step-00000010.txt").write_text("a red square")
    evaluation = tmp_path / "evaluate-ldm"
    evaluation.mkdir()
    bar = {"line": "stage two adds most", "pictures_of_each": 9, "fid_real": 1.0, "fid_reconstructed": 2.0, "fid_generated": 5.0}
    of = {"model": {"checkpoint": str(run / "checkpoint")}, "attribution": bar}
    (evaluation / "evaluation.json").write_text(json.dumps(of))
    _, client = start("--models", tiny("class"), "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    found = client.get("/api/runs/mine").plain
    assert found["bar"] == bar and found["samples"] == [10] and found["report"] == ["step 10: the KL is small: lower loss.kl_weight"]
    assert client.get("/api/runs/mine/samples/10.png").headers["content-type"] == "image/png"
    assert client.get("/api/runs/mine/samples/10.txt").body == b"a red square"
    assert client.get("/api/runs/mine/samples/11.png").status == 404


@pytest.mark.parametrize("damage", ["config", "metrics", "lock", "report", "samples"])
def test_a_damaged_run_is_no_error_of_the_page(tmp_path, damage):
    run = write_run(tmp_path / "run")
    files = {"config": "config.yaml", "metrics": "metrics.jsonl", "lock": LOCK, "report": "report.txt"}
    if damage == "samples":
        (run / "samples").write_bytes(b"\xff")
    else:
        (run / files[damage]).write_bytes(b"\xff{[\0\n[1]\n{}")
    runs = Runs(tmp_path)
    assert [row["name"] for row in runs.summaries()] == ["run"]
    runs.details("run", tmp_path)


def test_without_the_flag_nothing_can_be_started_or_stopped(shared):
    _, client = shared
    for path in ("/api/runs", "/api/runs/x/stop", "/api/runs/x/resume"):
        body = json.dumps({"name": "x", "config": "ldm/emoji.yaml"})
        headers = {"authorization": f"Bearer {client.token}", "content-type": "application/json"}
        assert client.ask("POST", path, body, headers).status == 403


def tell(client, path: str, **content: object):
    headers = {"authorization": f"Bearer {client.token}", "content-type": "application/json"}
    return client.ask("POST", path, json.dumps(content), headers)


def until(client, name: str, state: str, step: int = 1) -> dict:
    for _ in range(600):
        found = [run for run in client.get("/api/runs").plain if run["name"] == name]
        if found and found[0]["state"] == state and found[0]["step"] >= step:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(client.get(f"/api/runs/{name}").body)


def test_a_run_is_started_stopped_and_resumed(trainer):
    _, client = trainer
    assert client.get("/api/configs").plain == ["pixel/tiny.yaml"]
    assert tell(client, "/api/runs", name="mine", config="pixel/tiny.yaml", overrides=["train.batch_size=2"]).status == 200
    until(client, "mine", "training", 5)
    assert "under way" in tell(client, "/api/runs", name="two", config="pixel/tiny.yaml").plain["error"]
    assert tell(client, "/api/runs/mine/stop").status == 200
    stopped = until(client, "mine", "stopped")
    assert tell(client, "/api/runs/mine/resume").status == 200
    until(client, "mine", "training", stopped["step"] + 1)
    assert "batch_size: 2" in client.get("/api/runs/mine").plain["config"]
    assert tell(client, "/api/runs/mine/stop").status == 200
    until(client, "mine", "stopped")
    assert "runs/mine/checkpoint" in client.get("/api/page").plain["models"]


@pytest.mark.parametrize(
    "new, said",
    [
        ({"overrides": ["train.stepps=3"]}, "train.stepps"),
        ({"overrides": ["train.steps=many"]}, "train.steps"),
        ({"overrides": ["--device=cuda"]}, "is no override"),
        ({"config": "../secret.yaml"}, "unknown config"),
        ({"config": "/etc/passwd"}, "unknown config"),
        ({"name": "../x"}, "a run's name"),
        ({"name": "-x"}, "a run's name"),
        ({"name": ".x"}, "a run's name"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_starts(trainer, new, said):
    _, client = trainer
    answer = tell(client, "/api/runs", **{"name": "x", "config": "pixel/tiny.yaml"} | new)
    assert answer.status == 400 and said in answer.plain["error"]
    assert not Path("runs").exists() and not Path("outputs/app/logs").exists()


def test_a_run_of_that_name_is_not_overwritten(trainer):
    _, client = trainer
    write_run(Path("runs/x"))
    assert "already" in tell(client, "/api/runs", name="x", config="pixel/tiny.yaml").plain["error"]
    shutil.rmtree("runs")
