"""What changed, to each tab that listens: the newest state, never a backlog, so a slow browser holds nothing in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

MOST_LISTENERS = 64
HEARTBEAT = 15.0  # seconds, after which a line is sent in any case: so a listener that has gone is noticed


@dataclass(eq=False)
class _Listener:
    session: str
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Events:
    """Listeners of one event loop. `changed` may be called from any thread, before there is a loop too."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Takes the loop that runs now."""
        self._loop = asyncio.get_running_loop()

    def changed(self, session: str | None) -> None:
        """Wakes a session's listeners; None = all."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, session)

    @property
    def is_full(self) -> bool:
        return len(self._listeners) >= MOST_LISTENERS

    async def listen(self, session: str, state: Callable[[], list[dict[str, Any]]]) -> AsyncIterator[str]:
        """Server-sent events: at first all renders, then those that changed."""
        listener = _Listener(session)
        self._listeners.add(listener)
        known: dict[str, tuple[int, int]] = {}
        try:
            while True:
                listener.woken.clear()
                rows = state()
                news = [row for row in rows if known.get(row["id"]) != (row["version"], row["place"])]
                known = {row["id"]: (row["version"], row["place"]) for row in rows}
                yield f"data: {json.dumps(news)}\n\n" if news else ": still here\n\n"
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        await listener.woken.wait()
                except TimeoutError:
                    continue
        finally:
            self._listeners.discard(listener)

    def _wake(self, session: str | None) -> None:
        for listener in self._listeners:
            if session is None or listener.session == session:
                listener.woken.set()
