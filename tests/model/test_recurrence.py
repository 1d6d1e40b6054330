"""Recurrences: cron lines in a time zone and repeating intervals, forward and backward alike."""

from __future__ import annotations

import bisect
import random

import pytest

from knhk_workflow.model.fields import moment
from knhk_workflow.model.recurrence import Recurrence, RecurrenceInvalid, recurrence

NS = 1_000_000_000


def at(text: str) -> int:
    found = moment(text)
    assert found is not None
    return found


def series(rule: Recurrence, start: str, end: str) -> list[int]:
    """The occurrences behind a time, up to the first one behind another."""
    found: list[int] = []
    following = rule.after(at(start), at(start))
    while following is not None:
        found.append(following)
        if following > at(end):
            break
        following = rule.after(following, at(start))
    return found


@pytest.mark.parametrize(
    ("line", "zone", "first", "then"),
    [
        ("0 9 * * MON-FRI", "", "2026-01-02T10:00:00Z", ["2026-01-05T09:00:00Z", "2026-01-06T09:00:00Z"]),
        ("0 9 * * *", "America/New_York", "2026-01-01T00:00:00Z", ["2026-01-01T14:00:00Z"]),
        ("0 0 L * *", "", "2028-02-01T00:00:00Z", ["2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"]),
        # the hour from two to three is left out on March 29th, and comes twice on October 25th
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]),
        ("R/PT90S", "", "2026-01-01T00:00:00Z", ["2026-01-01T00:01:30Z", "2026-01-01T00:03:00Z"]),
        ("R2/P1D", "", "2026-01-01T00:00:00Z", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", None]),
        ("R/2030-01-01T00:00:00+01:00/P1W", "", "2026-01-01T00:00:00Z", ["2029-12-31T23:00:00Z"]),
    ],
)
def test_what_comes_next(line: str, zone: str, first: str, then: list[str | None]) -> None:
    rule = recurrence(line, zone)
    now: int | None = at(first)
    for expected in then:
        assert now is not None
        now = rule.after(now, at(first))
        assert now == (None if expected is None else at(expected))


@pytest.mark.parametrize(
    ("line", "zone"),
    [
        ("30 2 * * *", "Europe/Berlin"),
        ("*/20 * * * *", "Europe/London"),
        ("0 */5 * * *", "America/New_York"),
        ("15 1,2,3 * * *", "Australia/Lord_Howe"),
        ("0 12 29 2 *", ""),
        ("R/PT5H", ""),
        ("R40/PT17M", ""),
        ("R/2026-05-01T00:00:00Z/P1D", ""),
    ],
)
def test_before_and_after_agree(line: str, zone: str) -> None:
    rule, chance, begin = recurrence(line, zone), random.Random(line), "2026-03-20T12:00:00Z"
    found = series(rule, begin, "2026-11-08T00:00:00Z")
    assert found == sorted(set(found))
    for _ in range(200):
        near = chance.choice(found) + chance.choice((-1, 0, 1, -NS, NS, chance.randrange(3_600 * NS)))
        place = bisect.bisect_right(found, near)
        if 0 < place < len(found):
            assert (rule.before(near, at(begin)), rule.after(near, at(begin))) == (found[place - 1], found[place])


@pytest.mark.parametrize(
    ("text", "zone", "key"),
    [
        ("", "", "every"),
        ("61 * * * *", "", "every"),
        ("* * * * * *", "", "every"),
        ("0 0 30 2 *", "", "every"),
        ("@daily", "", "every"),
        ("R/P1M", "", "every"),
        ("R/PT0.5S", "", "every"),
        ("R0/PT1S", "", "every"),
        ("R/tomorrow/P1D", "", "every"),
        ("R", "", "every"),
        ("* " * 200, "", "every"),
        ("R/PT1S", "Europe/Berlin", "time_zone"),
        ("0 0 * * *", "Mars/Base", "time_zone"),
        ("0 0 * * *", "../../etc/passwd", "time_zone"),
    ],
)
def test_what_is_none(text: str, zone: str, key: str) -> None:
    with pytest.raises(RecurrenceInvalid) as refused:
        recurrence(text, zone)
    assert refused.value.key == key
    assert refused.value.hint


def test_the_end_of_the_calendar() -> None:
    assert recurrence("0 0 1 1 *").after(at("9999-12-31T00:00:00Z"), 0) is None
