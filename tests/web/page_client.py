"""The page as a program sees it: requests over a socket, as a browser or an attacker would send them."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def plain(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """A tab that was let in by the token."""

    port: int
    token: str
    session: str = field(default_factory=lambda: secrets.token_hex(16))

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None, **query: Any
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            given = {"authorization": f"Bearer {self.token}", **({} if headers is None else headers)}
            connection.request(method, f"{quote(path, safe='/?=&%.~')}?{urlencode(query)}" if query else path, body, given)
            found = connection.getresponse()
            return Answer(found.status, dict(found.getheaders()), found.read())
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Answer:
        return self.ask("GET", path, **query)

    def post(self, path: str, body: bytes | str = b"", **query: Any) -> Answer:
        return self.ask("POST", path, body, **query)

    def order(self, **order: Any) -> Answer:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        return self.ask("POST", "/api/renders", json.dumps(order), headers, session=self.session)

    def events(self) -> Iterator[dict[str, Any]]:
        """Each render that changed, as it is then."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", f"/api/events?session={self.session}", headers={"authorization": f"Bearer {self.token}"})
            found = connection.getresponse()
            assert found.status == 200, found.read()
            while line := found.readline():
                if line.startswith(b"data: "):
                    yield from json.loads(line[6:])
        finally:
            connection.close()

    def wait(self, id_: str, *states: str) -> dict[str, Any]:
        """The render once it is in one of these states, by default once it has ended."""
        wanted = states or ("done", "failed", "cancelled")
        started = time.monotonic()
        for render in self.events():
            if render["id"] == id_ and render["state"] in wanted:
                return render
            assert time.monotonic() - started < 60
        raise AssertionError("the stream ended")
