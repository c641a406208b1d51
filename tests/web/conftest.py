"""A page with tiny models, in a thread of the test's own process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from page_client import Client
from PIL import Image

from ldm.web.arguments import parse
from ldm.web.runs import Runs
from ldm.web.server import Opened, opened

CONFIG = """
name: tiny-pixels
data: {train: squares, val: null, size: 8}
first_stage: {kind: identity}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2, vector_width: null}
process: {kind: discrete_vp, spacing: cosine}
prediction: v
weighting: min_snr
conditioning: {}
sampling: {sampler: ddim, steps: 2, guidance: 1}
train: {steps: 100000, batch_size: 4, checkpoint_every: 100000, sample_every: 100000, log_every: 5}
"""


@contextmanager
def running(*arguments: str) -> Iterator[tuple[Opened, Client]]:
    """A page of these flags that answers, and a client that it lets in."""
    with opened(parse(["--port", "0", "--device", "cpu", *arguments])) as page:
        thread = threading.Thread(target=page.run)
        thread.start()
        try:
            yield page, Client(page.port, page.doorkeeper.password or page.doorkeeper.token)
        finally:
            page.server.should_exit = True
            thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Opened, Client]]]:
    """`start("--models", folder)`: pages that end with the test."""
    with ExitStack() as pages:
        yield lambda *arguments: pages.enter_context(running(*map(str, arguments)))


@pytest.fixture(scope="module")
def shared(tiny: Callable[..., Path], module_folder: Path) -> Iterator[tuple[Path, Client]]:
    """A page for the tests of a file, with models of all conditions; and its --out."""
    models = [tiny("text", "class", "mask", "map"), tiny("boxes"), tiny("small"), tiny(first_stage="identity")]
    out = module_folder / "out"
    with running("--models", *map(str, models), "--runs", str(module_folder / "runs"), "--out", str(out)) as (_, client):
        yield out, client


@pytest.fixture
def trainer(start, tmp_path, monkeypatch):
    """A page that may train, in a folder with a config and pictures; runs that still go on at the end are stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    (tmp_path / "configs" / "pixel").mkdir(parents=True)
    (tmp_path / "configs" / "pixel" / "tiny.yaml").write_text(CONFIG)
    (tmp_path / "squares").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 99, 200)).save(tmp_path / "squares" / f"{number}.png")
    page, client = start("--allow-training", "--out", "outputs/app")
    yield page, client
    runs = Runs(Path("runs"))
    for run in runs.summaries():
        holder = runs.get(run["name"]).holder
        while holder is not None and holder.is_alive():
            os.kill(holder.pid, 9)
            time.sleep(0.1)
