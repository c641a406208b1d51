"""A page with tiny models, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from page_client import Client

from ldm.web.arguments import parse
from ldm.web.server import Opened, opened


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
