"""Two machines: two torchruns, which share the run's folder and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import ROOT, arguments, finish, metrics, start

STEPS = 3


@pytest.mark.timeout(600)
def test_two_torchruns_train_one_model(squares: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Of weights that are shared out, with caches of their own; the numbers are those of one process."""
    changes = [f"train.steps={STEPS}", "train.batch_size=5", "denoiser.dropout=0", f"first_stage.checkpoint={tiny('class')}"]
    log = tmp_path / "alone.log"
    alone = start("train_ldm", arguments("ldm", tmp_path / "alone", squares, *changes), log)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test"]
    script = [str(ROOT / "scripts/train_ldm.py"), *arguments("ldm", tmp_path / "two", squares, *changes, "train.parallel=fsdp")]
    nodes = []
    for node in range(2):
        environment = {**os.environ, "LDM_CACHE": str(tmp_path / f"cache-{node}"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with open(tmp_path / f"{node}.log", "w") as file:
            nodes.append(
                subprocess.Popen([*torchrun, f"--rdzv_endpoint=127.0.0.1:{port}", *script], env=environment, stdout=file, stderr=file)
            )
    finish(alone, log)
    for node, process in enumerate(nodes):
        assert process.wait(300) == 0, (tmp_path / f"{node}.log").read_text()[-2000:]
    for one, other in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "two"), strict=True):
        del one["samples_per_second"], other["samples_per_second"]
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    said = ["done: checkpoint in" in (tmp_path / f"{node}.log").read_text() for node in range(2)]
    assert sorted(said) == [False, True]
