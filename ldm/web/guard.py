"""Who may ask, how much and how slowly: checked before any route sees a request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldm.web.login import login_page

MAX_BODY = 256 << 10  # bytes of a request that is no upload
BODY_SECONDS = 10.0  # until all of it is there
UPLOADS = "/api/uploads"  # whose routes count for themselves, see `ldm.web.uploads`
FAILURES, FAILURE_SECONDS = 10, 60.0  # wrong passwords in so long a time, from all sides; then none is read for a while
OPEN = ("/static/",)  # the same in every checkout: nothing to hide

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Refused(Exception):
    """A request that is not answered, with the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def refused(refusal: Refused) -> Response:
    """Its answer. The connection is closed: what is still being sent is not read."""
    return JSONResponse({"error": str(refusal)}, status_code=refusal.status, headers={"connection": "close"})


@dataclass
class Doorkeeper:
    """Tokens and names.

    Attributes:
        token: in the printed address.
        password: asked for in place of the token; None = the token lets in.
        names: host names under which the page is reached, besides IP addresses and localhost. Other names are refused: a page elsewhere may
            have its own name point here (DNS rebinding).
    """

    token: str
    password: str | None = None
    names: frozenset[str] = frozenset()
    _failed: deque[float] = field(default_factory=deque)

    @property
    def cookie(self) -> str:
        """What a browser that was let in shows."""
        return hmac.new(self.token.encode(), b"cookie", hashlib.sha256).hexdigest()

    def check_host(self, host: str) -> None:
        """
        Raises:
            Refused: a name that is not of this page.
        """
        try:
            parts = urlsplit(f"//{host}")
            name = "" if parts.port == 0 else parts.hostname or ""  # `port` is an error for what is no number
        except ValueError:
            name = ""
        if name != "localhost" and name not in self.names and not _is_address(name):
            raise Refused(421, "this page is not reached under that name: start it with --name NAME")

    def check_origin(self, method: str, origin: str | None, host: str) -> None:
        """
        Raises:
            Refused: a request that changes something comes from another site's page.
        """
        if method not in ("GET", "HEAD") and origin is not None and origin.partition("//")[2] != host:
            raise Refused(403, "this request comes from another site's page")

    def knows(self, request: Request) -> bool:
        """Whether a request shows the cookie, or the token or password as a bearer."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_right(bearer):
            return True
        try:
            cookies = SimpleCookie(request.headers.get("cookie", ""))
        except CookieError:
            return False
        shown = cookies.get(_cookie_name(request))
        return shown is not None and _same(shown.value, self.cookie)

    def is_right(self, given: str) -> bool:
        """Whether the token, or the password if there is one, is right. A token is too long to be guessed; of passwords few may be tried.

        Raises:
            Refused: too many passwords were wrong lately.
        """
        if self.password is None:
            return _same(given, self.token)
        now = time.monotonic()
        while self._failed and now - self._failed[0] > FAILURE_SECONDS:
            self._failed.popleft()
        if len(self._failed) >= FAILURES:
            raise Refused(429, "too many wrong passwords: wait a minute")
        if _same(given, self.password):
            return True
        self._failed.append(now)
        return False

    def let_in(self, request: Request) -> Response:
        """The page itself, with the cookie."""
        response = RedirectResponse("/", status_code=303)
        is_secure = request.url.scheme == "https"
        response.set_cookie(_cookie_name(request), self.cookie, httponly=True, samesite="strict", secure=is_secure)
        return response


class Guard:
    """The outermost layer of the page's application."""

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper) -> None:
        self.app, self.doorkeeper = app, doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            answer = await self._answer(Request(scope), receive)
        except Refused as refusal:
            answer = refused(refusal)
        if isinstance(answer, Response):
            await answer(scope, receive, _with_headers(send))
        else:
            await self.app(scope, answer, _with_headers(send))

    async def _answer(self, request: Request, receive: Receive) -> Response | Receive:
        """An answer of its own; or what the routes are to receive.

        Raises:
            Refused: they are not to see the request.
        """
        door, path = self.doorkeeper, str(request.scope["path"])
        host = request.headers.get("host", "")
        door.check_host(host)
        door.check_origin(request.method, request.headers.get("origin"), host)
        if "\0" in path:
            raise Refused(400, "no address has a zero byte")
        if path.startswith(UPLOADS):
            body = receive
        else:
            body = _replayed(await read_body(receive, MAX_BODY, BODY_SECONDS), receive)
        if path.startswith(OPEN) or door.knows(request):
            return body
        if path == "/login" and request.method == "POST" and door.password is not None:
            return await self._log_in(Request(request.scope, body))
        if path == "/" and request.method == "GET":
            if door.password is not None:
                return login_page()
            token = request.query_params.get("token")
            if token is not None and door.is_right(token):
                return door.let_in(request)
        raise Refused(401, "open the address that scripts/app.py printed, with its token")

    async def _log_in(self, request: Request) -> Response:
        given = parse_qs((await request.body()).decode(errors="replace")).get("password", [""])[0]
        if not self.doorkeeper.is_right(given):
            await asyncio.sleep(1)
            return login_page("That is not the password.")
        return self.doorkeeper.let_in(request)


async def read_body(receive: Receive, most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is longer than that many bytes, not there after so many seconds, or cut off.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "the request ended before its body")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise Refused(413, f"at most {most:,} bytes can be sent here")
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, f"the request took longer than {seconds:g} seconds") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what else the server says: that the client has gone."""
    waiting: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        for message in waiting:
            return message
        return await receive()

    return again


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            if b"cache-control" not in given:
                extra.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return wrapped


def _cookie_name(request: Request) -> str:
    """One a port: cookies of localhost are shared by all ports."""
    return f"ldm-{request.url.port or 80}"


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), right.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
