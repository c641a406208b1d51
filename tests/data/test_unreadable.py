"""The account of records that cannot be read."""

from __future__ import annotations

import pytest

from ldm.core.errors import UserError
from ldm.data.unreadable import UnreadableReport


def test_as_many_as_stated_may_be_lost_and_one_more_ends_the_run() -> None:
    report = UnreadableReport(total=200, most=0.01)
    assert report.line() == ""
    report.add("a", "a: empty")
    report.add("a", "a: empty, seen again")
    report.add("b", "b: torn")
    with pytest.raises(UserError, match=r"3 of 200 records cannot be read, more than data.max_lost=0.01 allows; the last: c: gone"):
        report.add("c", "c: gone")


@pytest.mark.parametrize("lost, end", [(1, "0 (bad)"), (10, "9 (bad)"), (11, "9 (bad); and 1 more"), (30, "9 (bad); and 20 more")])
def test_the_first_ten_are_named(lost: int, end: str) -> None:
    report = UnreadableReport(total=30, most=1.0)
    for number in range(lost):
        report.add(str(number), f"{number} (bad)")
    assert report.line().startswith(f"{lost} of 30 records could not be read: 0 (bad)") and report.line().endswith(end)
    assert report.line().count("(bad)") == min(lost, 10)
