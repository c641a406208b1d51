"""An account of what could not be read."""

from __future__ import annotations

from ldm.core.errors import UserError

ENOUGH = 100  # records of a stream before its share of unreadable records means anything


class UnreadableReport:
    """Records (or tails of shards) that could not be read, by key, with the reason, which begins with the file or key.

    Attributes:
        total: records in all; for a stream, those read so far.
        most: share that may be unreadable.
    """

    def __init__(self, total: int, most: float) -> None:
        self.total, self.most = total, most
        self.records: dict[str, str] = {}

    def add(self, key: str, reason: str) -> None:
        """One more.

        Raises:
            UserError: more than the stated share is unreadable.
        """
        self.records[key] = reason
        if len(self.records) > self.most * self.total:
            raise UserError(
                f"{len(self.records)} of {self.total} records cannot be read, more than data.max_lost={self.most} allows; "
                f"the last: {reason}. Fix or remove them (scripts/prepare_data.py does), or raise data.max_lost in a config."
            )

    def line(self) -> str:
        """All of them in one line; empty if there are none."""
        if not self.records:
            return ""
        shown = "; ".join(list(self.records.values())[:10])
        more = f"; and {len(self.records) - 10} more" if len(self.records) > 10 else ""
        return f"{len(self.records)} of {self.total} records could not be read: {shown}{more}"
