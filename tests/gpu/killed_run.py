"""A worker process: python killed_run.py FOLDER TASK DEVICE PRECISION STEP trains a tiny task and kills itself before a step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))

from tasks import TASKS, train_config  # noqa: E402

from ldm.core.distributed import World  # noqa: E402
from ldm.core.precision import whole_float32  # noqa: E402
from ldm.training.engine import fit  # noqa: E402
from ldm.training.run_folder import RunFolder  # noqa: E402

STEPS, EVERY = 12, 4  # past the tenth, after which speed and memory are said


def train(folder: Path, which: str, device: torch.device, precision: str, killed_at: int | None = None) -> None:
    """From the folder's newest state, or from the start, to the last step; killed before it makes step `killed_at`."""
    world = World(0, 1, device)
    config = train_config(steps=STEPS, checkpoint_every=EVERY, precision=precision)
    task = TASKS[which](world, config)
    batches = task.batches

    def until_killed(first_step: int) -> Iterator[Any]:
        for step, batch in enumerate(batches(first_step), first_step):
            if step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    task.batches = until_killed
    assert fit(task, config, RunFolder(folder, True), 0, world)


def main() -> None:
    folder, which, device, precision, killed_at = sys.argv[1:]
    torch.use_deterministic_algorithms(True)
    with whole_float32():  # as in the test
        train(Path(folder), which, torch.device(device), precision, int(killed_at))


if __name__ == "__main__":
    main()
