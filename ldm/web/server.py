"""`scripts/app.py`: the page, served until it is interrupted."""

from __future__ import annotations

import argparse
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ldm.app.sampling_run import check_folder
from ldm.core.device import find_device
from ldm.core.errors import UserError
from ldm.web.application import application
from ldm.web.guard import Doorkeeper
from ldm.web.page import Page

MOST_CONNECTIONS = 160
IDLE_SECONDS = 10  # after which a connection without a request is closed


def serve(options: argparse.Namespace) -> None:
    """Prints the address and answers requests.

    Raises:
        UserError: see `opened`.
    """
    with opened(options) as page:
        print(page.line, flush=True)
        page.run()


@dataclass(frozen=True)
class Opened:
    """A page that listens.

    Attributes:
        server: whose `should_exit` ends it.
        listener: its socket.
        doorkeeper: who is let in.
        line: for who started it: where it is.
    """

    server: uvicorn.Server
    listener: socket.socket
    doorkeeper: Doorkeeper
    line: str

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def run(self) -> None:
        """Answers requests until it is ended."""
        self.server.run(sockets=[self.listener])


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Opened]:
    """The page of the flags of `arguments`, which listens and does not answer yet.

    Raises:
        UserError: no model; a port that is taken; a device that is not there; a folder that cannot be written.
    """
    check_folder(options.out)
    options.device = str(find_device(options.device))
    doorkeeper = Doorkeeper(token=secrets.token_urlsafe(24), password=options.password, names=frozenset(options.name))
    with _listening(options.host, options.port) as listener, tempfile.TemporaryDirectory(prefix="ldm-page-") as uploads:
        page = Page.of(options, Path(uploads))
        if not page.models.names() and not options.runs.is_dir() and not options.allow_training:
            places = ", ".join(map(str, options.models))
            raise UserError(f"there is no model in {places} and no folder {options.runs}: name folders with --models or --runs")
        config = uvicorn.Config(
            application(page, doorkeeper),
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,  # it would show the token
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=32 << 10,
        )
        yield Opened(uvicorn.Server(config), listener, doorkeeper, _where(options, doorkeeper, listener.getsockname()[1]))


def _where(options: argparse.Namespace, doorkeeper: Doorkeeper, port: int) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    if doorkeeper.password is not None:
        return f"the page is at http://{host}:{port}/ and asks for the password; Ctrl-C ends it"
    return f"open http://{host}:{port}/?token={doorkeeper.token}\n(from this machine only; Ctrl-C ends it)"


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): give --port another number, or 0 for a free one") from error
    return listener
