"""Recurrences: moments that come again and again, as a cron line or an ISO 8601 repeating interval.

    0 9 * * MON-FRI                      five cron fields, told in a time zone
    R/PT15M    R3/PT1H    R/2030-01-01T00:00:00Z/P1D

A cron line means local time, as Debian's cron does where clocks change: what falls into the hour that is left out comes
right after it, what falls into the hour that comes twice comes once, and a line with `*` or `*/n` as its minute or hour
follows real time. An interval is a fixed length (a day has 24 hours, whatever clocks do); years and months are for
cron. Its occurrences lie at the given start and at multiples of the length after it; without a start they are counted
from the moment at which it begins to count, which is not one itself. `R3` has three of them, `R` no end.

Moments are nanoseconds since the epoch. Occurrences lie on whole seconds.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from knhk_workflow.model.fields import duration, moment
from knhk_workflow.model.units import NS_PER_S

INTERVAL_MIN_S: Final = 1  # more often is a loop, not a calendar
TEXT_MAX: Final = 200  # a cron line of every minute, written out, has 150
COUNT_MAX: Final = 1_000_000_000

_REPEATING: Final = re.compile(r"R(\d{0,9})/(?:([^/]+)/)?(P[^/]+)")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}")
_LAST: Final = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)  # beyond it the calendar ends, and so does every recurrence


class RecurrenceInvalid(ValueError):
    """What is wrong with a recurrence, and what mends it. `key`: every or time_zone."""

    def __init__(self, problem: str, hint: str, key: str = "every") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.key = key


@dataclass(frozen=True, slots=True)
class Recurrence:
    """When something happens again. Made by `recurrence`."""

    cron: str = ""
    zone: dt.tzinfo = dt.UTC
    length: int = 0
    """Nanoseconds between occurrences of an interval."""
    start: int | None = None
    count: int = 0
    """How many occurrences an interval has; 0 = no end."""

    def after(self, since: int, anchor: int) -> int | None:
        """The first occurrence later than `since`; None after the last. `anchor`: when an interval without a start
        began to count."""
        if self.cron:
            return self._cron(since, reverse=False)
        index = max(self.index(since, anchor) + 1, self._first)
        return None if self.count and index - self._first >= self.count else self._at(index, anchor)

    def before(self, until: int, anchor: int) -> int | None:
        """The last occurrence not later than `until`; None when there was none."""
        if self.cron:
            return self._cron_before(until)
        index = self.index(until, anchor)
        if self.count:
            index = min(index, self._first + self.count - 1)
        return None if index < self._first else self._at(index, anchor)

    def index(self, at: int, anchor: int) -> int:
        """How many whole lengths lie between where an interval begins and `at`."""
        return (at - self._origin(anchor)) // self.length

    @property
    def _first(self) -> int:
        return 1 if self.start is None else 0

    def _origin(self, anchor: int) -> int:
        return -(-anchor // NS_PER_S) * NS_PER_S if self.start is None else self.start

    def _at(self, index: int, anchor: int) -> int:
        return self._origin(anchor) + index * self.length

    def _cron_before(self, until: int) -> int | None:
        """Going back is not always going forth the other way round where clocks change: what lies ahead decides."""
        found = self._cron(until, reverse=True)
        while found is not None:
            last = None
            ahead = self.after(found - 1, 0)
            while ahead is not None and ahead <= until:
                last, ahead = ahead, self.after(ahead, 0)
            if last is not None:
                return last
            found = self._cron(found - 1, reverse=True)
        return None

    def _cron(self, at: int, *, reverse: bool) -> int | None:
        seconds = max(at // NS_PER_S, 0) + (1 if reverse else 0)  # a last occurrence may be `at` itself
        limit = seconds * NS_PER_S
        begin = _EPOCH + dt.timedelta(seconds=min(seconds, (_LAST - _EPOCH).days * 86_400))
        off = begin + _MARGIN if reverse else begin - _MARGIN
        if off.astimezone(self.zone).utcoffset() == begin.astimezone(self.zone).utcoffset():
            off = begin  # no change of clocks near here
        try:
            # A local time that comes twice is told once, so near a change the search begins off and passes the rest.
            for found in CronSim(self.cron, off.astimezone(self.zone), reverse=reverse):
                moment_ns = round((found.astimezone(dt.UTC) - _EPOCH).total_seconds()) * NS_PER_S
                if (moment_ns < limit) if reverse else (moment_ns > limit):
                    return moment_ns
        except (OverflowError, ValueError):
            return None  # beyond the calendar
        return None


_MARGIN: Final = dt.timedelta(hours=3)  # more than any zone's clock is ever set back


def recurrence(text: str, time_zone: str = "") -> Recurrence:
    """A recurrence. Raises RecurrenceInvalid."""
    text = text.strip()
    if not text or len(text) > TEXT_MAX:
        raise RecurrenceInvalid(
            "must be a cron line or a repeating interval", 'for example "0 9 * * MON-FRI" or R/PT15M'
        )
    repeating = _REPEATING.fullmatch(text)
    if repeating is not None or text[0] == "R":
        if time_zone:
            raise RecurrenceInvalid(
                "an interval is the same everywhere, it takes no time zone",
                "leave the time zone out, or use a cron line",
                "time_zone",
            )
        return _interval(repeating)
    zone = _zone(time_zone)
    if len(text.split()) != 5:
        raise RecurrenceInvalid(
            f"{text!r} is neither five cron fields nor a repeating interval",
            'minute, hour, day of month, month, day of week: "0 9 * * MON-FRI"; or R/PT15M',
        )
    found = Recurrence(cron=text, zone=zone)
    try:
        CronSim(text, _EPOCH)
    except CronSimError as error:
        raise RecurrenceInvalid(
            f"{text!r} is no cron line: {str(error).lower()}", 'for example "30 6 1 * *"'
        ) from error
    if found.after(0, 0) is None:
        raise RecurrenceInvalid(f"{text!r} never comes", "choose a day that exists")
    return found


def _interval(repeating: re.Match[str] | None) -> Recurrence:
    seconds = duration(repeating[3]) if repeating is not None else None
    if repeating is None or seconds is None:
        raise RecurrenceInvalid(
            "is no repeating interval of weeks, days, hours, minutes and seconds",
            "for example R/PT15M, R3/P1D or R/2030-01-01T00:00:00Z/P1W; for months and years use a cron line",
        )
    if seconds < INTERVAL_MIN_S or seconds != int(seconds):
        raise RecurrenceInvalid("comes at whole seconds, at least one apart", "for example R/PT1S")
    count = int(repeating[1]) if repeating[1] else 0
    if repeating[1] and not 0 < count <= COUNT_MAX:
        raise RecurrenceInvalid("comes never", "write R/... for no end, or R3/... for three times")
    start = None
    if repeating[2] is not None:
        start = moment(repeating[2])
        if start is None or start < 0 or start % NS_PER_S:
            raise RecurrenceInvalid(
                f"{repeating[2]!r} is no time with its offset, on a whole second",
                "for example R/2030-01-01T00:00:00Z/P1D",
            )
    return Recurrence(length=int(seconds) * NS_PER_S, start=start, count=count)


def _zone(name: str) -> dt.tzinfo:
    if name in ("", "UTC"):
        return dt.UTC
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    raise RecurrenceInvalid(f"{name!r} is no time zone", "an IANA name, for example Europe/Berlin", "time_zone")
