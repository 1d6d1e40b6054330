"""The tables of the core are complete: an applier for every event, a decision for every command, a name for both."""

from __future__ import annotations

import typing

import msgspec
import pytest

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import APPLY, replay
from knhk_workflow.core.case import Case
from knhk_workflow.core.decide import DECIDE, create, decide
from knhk_workflow.core.joins import JOINS
from knhk_workflow.model.spec import Join
from knhk_workflow.runtime.history import EVENT_TYPES
from tests.core.cases import WORK, Document, Played, path

EVENTS: tuple[type[e.Event], ...] = typing.get_args(e.EventType)
COMMANDS: tuple[type[c.Command], ...] = tuple(c.Command.__subclasses__())


def test_every_event_has_an_applier_and_a_name() -> None:
    assert set(APPLY) == set(EVENTS) == set(e.Event.__subclasses__())
    assert set(EVENT_TYPES) == set(EVENTS)
    assert len(set(EVENT_TYPES.values())) == len(EVENTS)


def test_every_command_has_a_decision() -> None:
    assert set(COMMANDS) == set(c.Command.__subclasses__())
    assert set(DECIDE) == set(COMMANDS) - {c.CreateCase}  # creating is where a case comes from, see `create`


def test_tags_are_unique_and_never_change() -> None:
    tags = {kind.__name__: kind.__struct_config__.tag for kind in EVENTS}
    assert tags == {
        "CaseCreated": 1,
        "StateChanged": 2,
        "NetStarted": 3,
        "NetCompleted": 4,
        "NetCancelled": 5,
        "TaskEnabled": 6,
        "TaskStarted": 7,
        "TaskCompleted": 8,
        "TaskCancelled": 9,
        "ItemOffered": 10,
        "ItemAllocated": 11,
        "ItemReleased": 12,
        "ItemStarted": 13,
        "ItemCompleted": 14,
        "ItemFailed": 15,
        "ItemSkipped": 16,
        "ItemWithdrawn": 17,
        "ItemTerminated": 18,
        "DataUpdated": 19,
        "IncidentRaised": 20,
        "IncidentResolved": 21,
        "SettlePaused": 22,
        "SettleResumed": 23,
        "TokensRemoved": 24,
        "TaskReleased": 25,
        "InstanceAdded": 26,
        "InstancesClosed": 27,
        "ItemForceCompleted": 28,
        "JoinMoved": 29,
        "BranchesExpected": 30,
        "ExpectationMet": 31,
        "DeadPathMoved": 32,
        "TriggerReceived": 33,
        "TriggerTaken": 34,
        "LockTaken": 35,
        "LockReleased": 36,
        "LockAwaited": 37,
        "NetReset": 38,
        "TimerArmed": 39,
        "TimerFired": 40,
        "TimerDisarmed": 41,
        "TriggerExpired": 50,
        "CompletionRemembered": 51,
        "CompletionsForgotten": 52,
        "RollbackBegun": 53,
        "CompensationBegun": 54,
        "ConnectorCalled": 60,
        "ConnectorBegun": 61,
        "ConnectorCompleted": 62,
        "ConnectorFailed": 63,
        "ConnectorDiscarded": 64,
        "ItemReturned": 70,
    }
    assert len({kind.__struct_config__.tag for kind in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_reads_what_an_older_version_wrote(kind: type[e.Event]) -> None:
    """Fields are only appended, with defaults: the required ones alone make an event."""
    required = [field for field in msgspec.structs.fields(kind) if field.required]
    fields = msgspec.structs.fields(kind)
    assert fields[: len(required)] == tuple(required)
    samples: dict[object, object] = {int: 1, str: "x", bytes: b"x", bool: True}
    values = [samples.get(field.type, ()) for field in required]
    encoded = msgspec.msgpack.encode([kind.__struct_config__.tag, *values])
    assert isinstance(msgspec.msgpack.decode(encoded, type=e.EventType), kind)


def test_an_event_decodes_into_what_was_encoded() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")}, {"n": 1})
    played.complete("A", {"m": 2})
    encoded = msgspec.msgpack.encode(played.history)
    assert msgspec.msgpack.decode(encoded, type=list[e.EventType]) == played.history


def test_the_same_case_command_and_time_give_the_same_events() -> None:
    document: Document = {
        "tasks": {"A": WORK, "B": WORK},
        "flows": [*path("start", "A", "end"), *path("A", "B", "end")],
    }
    one, other = Played(document), Played(document)
    assert one.complete("A") == other.complete("A")
    assert one.history == other.history


def test_time_never_runs_backwards_within_a_case() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")})
    step = decide(played.case, played.model, c.SuspendCase(), 5)
    assert step.now == played.case.updated_at == 1_000


def test_a_history_begins_with_its_creation() -> None:
    with pytest.raises(ValueError, match="begins with case_created"):
        replay(None, 1, [e.StateChanged("created", "running")])
    with pytest.raises(ValueError, match="no events"):
        replay(None, 1, [])
    played = Played({"tasks": {}, "flows": []})
    with pytest.raises(ValueError, match="created twice"):
        replay(played.case, 1, [played.history[0]])


def test_a_missing_token_stops_the_step() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")})
    with pytest.raises(AssertionError, match="no token in 'end'"):
        replay(played.case, 1, [e.TaskStarted(1, "A", 1, ("end",))])


def test_joins_know_their_kinds() -> None:
    assert {"and", Join().kind} <= set(JOINS)


def test_creating_alone_starts_nothing() -> None:
    played = Played({"tasks": {"A": WORK}, "flows": path("start", "A", "end")}, start=False)
    assert played.case.state == "created"
    assert [type(event) for event in played.history] == [e.CaseCreated]
    command = c.CreateCase("default", "case", "test", 1, b"", b"")
    created: Case = create(played.model, command, 7).case
    assert (created.created_at, created.sequence, created.tokens()) == (7, 1, 0)


def test_an_empty_net_completes_when_started() -> None:
    assert Played({"tasks": {}, "flows": []}).case.state == "completed"
