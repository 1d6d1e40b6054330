"""Signals, instances and single tasks: the same over both transports."""

from __future__ import annotations

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
    with pytest.raises(Refused, match="UNIMPLEMENTED"):
        transport.trigger("paid", {})


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


def _deliveries(answer: Plain) -> list[Plain]:
    found = answer["deliveries"]
    assert isinstance(found, list)
    return found
