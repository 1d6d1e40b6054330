"""Signals, instances and single tasks: the same over both transports."""

from __future__ import annotations

import json
import time

import pytest

from tests.sidecar.behaviour.transports import Plain, Refused, Transport


def document(spec_id: str) -> Plain:
    return {
        "id": spec_id,
        "tasks": {
            "ask": {"required_roles": ["buyer"], "instances": {"min": 2, "max": 3, "create": "dynamic"}},
            "pay": {"trigger": {"name": "paid"}},
            "open": {},
        },
        "flows": [{"from": "start", "to": "open"}, {"from": "open", "to": "ask"}, {"from": "open", "to": "pay"}],
    }


@pytest.fixture
def case(transport: Transport, name: str) -> str:
    """A running case in which `ask` has two instances and `pay` waits for its signal."""
    transport.register(document(name))
    transport.run(name, {}, case_id=name)
    return name


def test_a_signal_is_taken_and_the_next_one_kept(transport: Transport, case: str) -> None:
    taken = transport.trigger("paid", {"amount": 7}, case_id=case)
    kept = transport.trigger("paid", {"amount": 8}, case_id=case)
    outcomes = [each["outcome"] for answer in (taken, kept) for each in _deliveries(answer)]
    assert outcomes == ["TRIGGER_OUTCOME_CONSUMED", "TRIGGER_OUTCOME_KEPT"]
    assert _deliveries(taken)[0]["task_id"] == "pay"
    assert transport.get(case)["data"] == {"amount": 7}
    assert transport.trigger("paid", {}, key="no-such-key")["deliveries"] == []


def listening(name: str) -> Plain:
    return {
        "id": name,
        "tasks": {"open": {"required_roles": ["clerk"]}, "pay": {"trigger": {"name": f"paid-{name}"}}},
        "flows": [{"from": "start", "to": "open"}, {"from": "open", "to": "pay"}, {"from": "pay", "to": "end"}],
    }


def test_a_signal_reaches_everybody_who_waits(transport: Transport, name: str) -> None:
    transport.register(listening(name))
    for number in range(3):
        transport.run(name, {}, case_id=f"{name}-{number}", key=f"{name}-key-{number % 2}")
    everybody = transport.trigger(f"paid-{name}", {"n": 1})
    assert everybody["message_id"]
    kept = "TRIGGER_OUTCOME_KEPT"
    assert {str(each["case_id"]): each["outcome"] for each in _deliveries(everybody)} == {
        f"{name}-{number}": kept for number in range(3)
    }
    some = transport.trigger(f"paid-{name}", {"n": 2}, key=f"{name}-key-0", seconds=60)
    assert sorted(str(each["case_id"]) for each in _deliveries(some)) == [f"{name}-0", f"{name}-2"]
    (dropped,) = _deliveries(transport.trigger(f"paid-{name}", {}, case_id=f"{name}-0", seconds=0))
    assert dropped["outcome"] == "TRIGGER_OUTCOME_DROPPED"


def test_a_signal_waits_for_its_case(transport: Transport, name: str) -> None:
    transport.register(listening(name))
    assert _deliveries(transport.trigger(f"paid-{name}", {"n": 1}, key=name, seconds=60)) == []
    transport.run(name, {}, case_id=name, key=name)
    event: Plain = {}
    for _ in range(1_000):
        (event,) = _events(transport.history(name, reverse=True, size=1))
        if event["event_type"] == "trigger_received":
            break
        time.sleep(0.05)
    assert event["event_type"] == "trigger_received"
    assert '"kept"' in json.dumps(event["data"])


def test_reasons_and_whole_data(transport: Transport, case: str) -> None:
    transport.move(case, "suspend", "audit")
    transport.move(case, "resume", "audit done")
    assert transport.update(case, {"only": 1}, replace=True)["data"] == {"only": 1}
    assert transport.cancel_task(case, "pay", "too late")["state"] == "CASE_STATE_RUNNING"
    said = json.dumps([event["data"] for event in _events(transport.history(case))])
    for words in ('"reason": "audit"', '"reason": "audit done"', '"detail": "too late"'):
        assert words in said
    found = transport.explain(case)
    assert found["marking"] == {"open->ask": 1}
    tasks = found["tasks"]
    assert isinstance(tasks, list)
    assert {task["task_id"]: task["completed_count"] for task in tasks} == {"ask": 0, "pay": 0, "open": 1}
    assert transport.incidents(case, resolved=True)["incidents"] == []


def test_instances_are_commanded(transport: Transport, case: str) -> None:
    added = transport.instances(case, "ask", "add")
    assert (added["created_count"], added["open_count"], added["accepts_instances"]) == (3, 3, True)
    with pytest.raises(Refused, match="WRONG_STATE"):
        transport.instances(case, "ask", "add")
    assert transport.instances(case, "ask", "close")["accepts_instances"] is False
    assert transport.instances(case, "ask", "complete")["open_count"] == 0
    with pytest.raises(Refused, match="WRONG_STATE"):
        transport.instances(case, "ask", "cancel")


def test_tasks_are_cancelled(transport: Transport, case: str) -> None:
    assert transport.instances(case, "ask", "cancel")["open_count"] == 0
    assert transport.cancel_task(case, "pay")["state"] == "CASE_STATE_COMPLETED"


def _events(answer: Plain) -> list[Plain]:
    found = answer["events"]
    assert isinstance(found, list)
    return found


def _deliveries(answer: Plain) -> list[Plain]:
    found = answer["deliveries"]
    assert isinstance(found, list)
    return found
