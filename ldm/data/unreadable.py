"""An account of what could not be read."""

from __future__ import annotations

from collections.abc import Mapping

from ldm.core.errors import UserError


class UnreadableReport:
    """Records and whole shards that could not be read, by key, with the reason, which begins with the file or key.

    Attributes:
        total: records in all; of a stream, as many as those of its shards that were seen make likely.
        most: share that may be unreadable.
    """

    def __init__(self, total: int, most: float) -> None:
        self.total, self.most = total, most
        self.records: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Of records that are lost."""
        return sum(self._counts.values())

    def add(self, key: str, reason: str, count: int = 1) -> None:
        """One more.

        Args:
            key: of a record or a shard.
            reason: for people.
            count: of its records.

        Raises:
            UserError: more than the stated share is unreadable.
        """
        self.records[key], self._counts[key] = reason, count
        if self.count > self.most * self.total:
            raise UserError(
                f"{self.count} of {self.total} records cannot be read, more than data.max_lost={self.most} allows; "
                f"the last: {reason}. Fix or remove them (scripts/prepare_data.py does), or raise data.max_lost in a config."
            )

    def add_all(self, records: Mapping[str, str]) -> None:
        """Those that are not counted yet, by key with the reason; see `add`."""
        for key, reason in records.items():
            if key not in self.records:
                self.add(key, reason)

    def forget(self, key: str) -> None:
        """What could be read after all."""
        self.records.pop(key, None)
        self._counts.pop(key, None)

    def line(self) -> str:
        """All of them in one line; empty if there are none."""
        if not self.records:
            return ""
        shown = "; ".join(list(self.records.values())[:10])
        more = f"; and {len(self.records) - 10} more" if len(self.records) > 10 else ""
        return f"{self.count} of {self.total} records could not be read: {shown}{more}"
