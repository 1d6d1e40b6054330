"""What becomes of the occurrences of a schedule: decided here, from its record alone; done by `schedules.py`.

An occurrence starts at most one case, for its case id says which occurrence it is: `nightly-20300101T020000Z`. What is
decided stands in the record before anything is done, so that it is done whatever happens in between.

Missed are occurrences that came while nothing ran here: `catch_up` says which of them are made up for (`latest`, `all`,
`none`), and none that is older than the window. One that is handled a little late is not missed.

    overlap            when a case that the schedule has started is still open, the next one
    skip               is not started
    buffer_one         waits for its end; while one waits, others are skipped
    buffer_all         waits for its end, all in order
    allow              is started beside it
    cancel_other       waits until it is cancelled, with all that is undone then; a newer one takes its place
    terminate_other    is started once it is told to end, without waiting for what is undone then
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.errors import InvalidInput
from knhk_workflow.model.recurrence import Recurrence, RecurrenceInvalid, recurrence
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.records import ScheduledStart, ScheduleRecord, ScheduleRun, ScheduleSpec

OVERLAPS: Final = ("skip", "buffer_one", "buffer_all", "allow", "cancel_other", "terminate_other")
CATCH_UPS: Final = ("latest", "all", "none")
WAITING_MAX: Final = 1_000  # starts that wait for an earlier case: the record holds them all
RUNNING_MAX: Final = 100  # cases that are looked at before the next one is started
RECENT_MAX: Final = 20  # outcomes kept in the record; all are counted, and cases have their history
LATE_NS: Final = 60 * NS_PER_S  # a start later than this was missed; a restart of the daemon takes a few seconds
MISSED_COUNTED: Final = 200  # missed occurrences that are counted one by one, 0.1 ms each; the rest is "and more"
TIMES_SHOWN: Final = 5

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Rule(NamedTuple):
    """When the occurrences of a schedule are."""

    recurrence: Recurrence
    not_before: int
    not_after: int

    def after(self, since: int, anchor: int) -> int:
        """The first occurrence later than `since`; 0 when there is none."""
        found = self.recurrence.after(max(since, self.not_before - 1), anchor)
        return found if found is not None and (not self.not_after or found <= self.not_after) else 0

    def latest(self, until: int, anchor: int) -> int:
        """The last occurrence not later than `until`; 0 when there is none."""
        found = self.recurrence.before(min(until, self.not_after or until), anchor)
        return found if found is not None and found >= self.not_before else 0


def rule_of(spec: ScheduleSpec) -> Rule:
    """Raises InvalidInput for what is no recurrence."""
    try:
        return Rule(recurrence(spec.every, spec.time_zone), spec.not_before, spec.not_after)
    except RecurrenceInvalid as invalid:
        raise InvalidInput.field(invalid.key, invalid.problem, invalid.hint) from invalid


def next_times(record: ScheduleRecord, most: int) -> tuple[int, ...]:
    """The next few occurrences, as things stand; none while it is paused."""
    if record.paused or not record.next:
        return ()
    rule, found = rule_of(record.spec), [record.next]
    while len(found) < most:
        following = rule.after(found[-1], record.anchor)
        if not following:
            break
        found.append(following)
    return tuple(found)


def planned(record: ScheduleRecord, now: int) -> ScheduleRecord:
    """The record with the first occurrence from now on; an interval that began in the future begins now."""
    anchor = min(record.anchor, now)
    return msgspec.structs.replace(record, anchor=anchor, next=rule_of(record.spec).after(now, anchor))


def chosen_of(record: ScheduleRecord, now: int) -> int:
    """Which of the occurrences that are due is to have a case; 0 = none, they were missed."""
    rule, anchor, first = rule_of(record.spec), record.anchor, record.next
    oldest = now - max(record.spec.catch_up_window, LATE_NS)
    chosen = first
    if first < oldest or record.spec.catch_up != "all":
        chosen = rule.latest(now, anchor) if record.spec.catch_up != "all" else rule.after(oldest - 1, anchor)
        late = record.spec.catch_up == "none" and now - chosen > LATE_NS
        if late or chosen < oldest or not first <= chosen <= now:
            chosen = 0
    return chosen


def occurred(
    record: ScheduleRecord, schedule_id: str, chosen: int, now: int, *, open_: bool, had: bool
) -> ScheduleRecord:
    """The record once the occurrence that is due, or those that were missed, have been decided on. `open_`: whether a
    case that the schedule has started is still open. `had`: the `chosen` one has had its case before the calendar was
    set back; nothing follows from it, least of all that its own case has to give way to it."""
    rule, anchor, first = rule_of(record.spec), record.anchor, record.next
    if chosen != first:
        record = _missed(record, rule, first, chosen or now + 1, now)
    record = msgspec.structs.replace(record, next=rule.after(chosen or now, anchor))
    if not chosen or had:
        return record
    return admitted(record, start_at(record.spec, schedule_id, chosen), now, open_=open_)


def start_at(spec: ScheduleSpec, schedule_id: str, at: int, overlap: str = "") -> ScheduledStart:
    """The case that belongs to an occurrence."""
    return ScheduledStart(at, f"{schedule_id}-{stamp(at)}", overlap or spec.overlap)


def between(record: ScheduleRecord, start: int, end: int, most: int) -> list[int]:
    """The occurrences from `start` up to, but not at, `end`: as many as asked for and one more, if there are."""
    rule = rule_of(record.spec)
    found: list[int] = []
    at = rule.after(start - 1, record.anchor)
    while at and at < end and len(found) <= most:
        found.append(at)
        at = rule.after(at, record.anchor)
    return found


def admitted(record: ScheduleRecord, start: ScheduledStart, now: int, *, open_: bool) -> ScheduleRecord:
    """The record with one more case to start, now or later, or to skip, as the overlap policy says."""
    policy = start.overlap
    replace = msgspec.structs.replace
    if policy == "allow" or not (open_ or record.starting or record.waiting):
        return replace(record, starting=(*record.starting, start))
    if policy in ("cancel_other", "terminate_other"):
        record = _skipped(record, record.waiting, now, "a newer one has taken its place")
        if policy == "terminate_other":
            return replace(record, waiting=(), starting=(*record.starting, start))
        return replace(record, waiting=(start,))
    if policy == "buffer_one" and not record.waiting:
        return replace(record, waiting=(start,))
    if policy == "buffer_all" and len(record.waiting) < WAITING_MAX:
        return replace(record, waiting=(*record.waiting, start))
    why = "an earlier case is still open" if policy == "skip" else "enough others wait for the case that is open"
    return _skipped(record, (start,), now, why)


def carried_out(record: ScheduleRecord, runs: Iterable[ScheduleRun]) -> ScheduleRecord:
    """The record once starts have been carried out."""
    done = {run.case_id for run in runs}
    began = [run.case_id for run in runs if run.outcome == "started"]
    running = [case_id for case_id in record.running if case_id not in done]
    return _noted(
        msgspec.structs.replace(
            record,
            starting=tuple(start for start in record.starting if start.case_id not in done),
            running=tuple([*running, *began][-RUNNING_MAX:]),
            started=record.started + len(began),
            failed=record.failed + len(done) - len(began),
        ),
        runs,
    )


def text_of(at: int) -> str:
    """RFC 3339 in UTC, to the second."""
    return f"{_EPOCH + dt.timedelta(seconds=at // NS_PER_S):%Y-%m-%dT%H:%M:%SZ}"


def stamp(at: int) -> str:
    """The same without what ids had better not hold."""
    return f"{_EPOCH + dt.timedelta(seconds=at // NS_PER_S):%Y%m%dT%H%M%SZ}"


def _missed(record: ScheduleRecord, rule: Rule, first: int, end: int, now: int) -> ScheduleRecord:
    count, at, last = 0, first, first
    while at and at < end and count < MISSED_COUNTED:
        count, last = count + 1, at
        at = rule.after(at, record.anchor)
    if not count:
        return record
    more = " and more" if count == MISSED_COUNTED and rule.after(last, record.anchor) < end else ""
    what = f"{count} occurrences up to {text_of(last)}{more} were missed" if count > 1 else "it was missed"
    run = ScheduleRun(first, "missed", now, message=what)
    return _noted(msgspec.structs.replace(record, missed=record.missed + count), (run,))


def _skipped(record: ScheduleRecord, starts: tuple[ScheduledStart, ...], now: int, why: str) -> ScheduleRecord:
    runs = [ScheduleRun(start.at, "skipped", now, start.case_id, why) for start in starts]
    return _noted(msgspec.structs.replace(record, skipped=record.skipped + len(runs)), runs)


def _noted(record: ScheduleRecord, runs: Iterable[ScheduleRun]) -> ScheduleRecord:
    return msgspec.structs.replace(record, recent=(*record.recent, *runs)[-RECENT_MAX:])
