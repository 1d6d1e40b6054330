"""Create, run, work, history, errors and idempotency."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sidecar.behaviour.transports import Plain, Refused, Transport


def document(spec_id: str) -> Plain:
    return {
        "id": spec_id,
        "tasks": {"write": {"required_roles": ["author"]}, "check": {}, "review": {"required_roles": ["editor"]}},
        "flows": [
            {"from": "start", "to": "write"},
            {"from": "write", "to": "check"},
            {"from": "check", "to": "review", "when": "data.pages > 1"},
            {"from": "check", "to": "end", "default": True},
            {"from": "review", "to": "end"},
        ],
    }


def parts(answer: Plain, name: str) -> list[Plain]:
    found = answer[name]
    assert isinstance(found, list)
    return found


def part(answer: Plain, name: str) -> Plain:
    found = answer[name]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def spec(transport: Transport, name: str) -> str:
    """A registered workflow."""
    assert transport.register(document(name))["version"] == 1
    return name


def test_registering_the_same_again_is_the_same_version(transport: Transport, spec: str) -> None:
    again = transport.register(document(spec))
    assert (again["version"], again["created"]) == (1, False)
    changed = transport.register({**document(spec), "name": "changed"})
    assert (changed["version"], changed["created"]) == (2, True)


def test_a_case_from_creation_to_its_end(transport: Transport, spec: str, name: str) -> None:
    created = transport.create(spec, {"pages": 3}, case_id=name)
    assert (created["state"], created["sequence"], created["data"]) == ("CASE_STATE_CREATED", 1, {"pages": 3})
    rest = transport.execute(name)
    assert part(rest, "case")["state"] == "CASE_STATE_RUNNING"
    (write,) = parts(rest, "open_work_items")
    done = transport.complete(str(write["item_id"]), {"title": "On rain"})
    assert done["case_state"] == "CASE_STATE_RUNNING"
    (review,) = parts(transport.items(name), "items")
    assert (review["task_id"], review["roles"]) == ("review", ["editor"])
    assert transport.complete(str(review["item_id"]), {})["case_state"] == "CASE_STATE_COMPLETED"
    ended = transport.get(name)
    assert ended["state"] == "CASE_STATE_COMPLETED"
    assert ended["data"] == {"pages": 3, "title": "On rain"}
    with pytest.raises(Refused) as refused:
        transport.execute(name)
    assert refused.value.reason == "WRONG_STATE"


def test_a_guard_decides(transport: Transport, spec: str, name: str) -> None:
    answer = transport.run(spec, {"pages": 1}, case_id=name)
    (write,) = parts(answer, "open_work_items")
    assert transport.complete(str(write["item_id"]), {})["case_state"] == "CASE_STATE_COMPLETED"


def test_history_is_complete_dense_and_paged(transport: Transport, spec: str, name: str) -> None:
    transport.run(spec, {"pages": 2}, case_id=name)
    transport.move(name, "cancel")
    whole = transport.history(name)
    events = parts(whole, "events")
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["event_type"] == "case_created"
    assert part(events[-1], "data")["state"] == "cancelled"
    paged: list[Plain] = []
    after = 0
    while True:
        page = transport.history(name, after=after, size=3)
        paged += parts(page, "events")
        after = int(str(page["next_after_sequence"]))
        if not after:
            break
    assert paged == events
    assert parts(transport.history(name, reverse=True, size=2), "events") == events[:-3:-1]


def test_the_moves_between_states(transport: Transport, spec: str, name: str) -> None:
    transport.create(spec, {}, case_id=name)
    for move, state in (("start", "RUNNING"), ("suspend", "SUSPENDED"), ("resume", "RUNNING"), ("cancel", "CANCELLED")):
        assert transport.move(name, move)["state"] == f"CASE_STATE_{state}"
    for move in ("start", "suspend", "resume"):
        with pytest.raises(Refused) as refused:
            transport.move(name, move)
        assert refused.value.reason == "WRONG_STATE"


def test_data_is_updated_only_from_what_was_seen(transport: Transport, spec: str, name: str) -> None:
    seen = int(str(transport.create(spec, {"pages": 1, "a": 1}, case_id=name)["sequence"]))
    changed = transport.update(name, {"pages": 5}, expected_sequence=seen)
    assert changed["data"] == {"pages": 5, "a": 1}
    with pytest.raises(Refused) as refused:
        transport.update(name, {"pages": 6}, expected_sequence=seen)
    assert refused.value.reason in ("STALE", "WRONG_STATE")
    assert transport.get(name)["data"] == {"pages": 5, "a": 1}


def test_a_repeated_request_has_one_effect(transport: Transport, spec: str, name: str) -> None:
    first = transport.create(spec, {"pages": 1}, request_id=f"{name}-create")
    assert transport.create(spec, {"pages": 1}, request_id=f"{name}-create") == first
    with pytest.raises(Refused) as refused:
        transport.create(spec, {"pages": 2}, request_id=f"{name}-create")
    assert refused.value.reason == "REQUEST_ID_REUSED"
    run = transport.run(spec, {"pages": 2}, request_id=f"{name}-run")
    again = transport.run(spec, {"pages": 2}, request_id=f"{name}-run")
    assert part(again, "case")["case_id"] == part(run, "case")["case_id"]
    (item,) = parts(run, "open_work_items")
    transport.complete(str(item["item_id"]), {"n": 1}, request_id=f"{name}-complete")
    transport.complete(str(item["item_id"]), {"n": 1}, request_id=f"{name}-complete")
    events = parts(transport.history(str(part(run, "case")["case_id"])), "events")
    assert [event["event_type"] for event in events].count("item_completed") == 1


def test_lists_are_paged_to_their_end(transport: Transport, spec: str, name: str) -> None:
    for number in range(5):
        transport.create(spec, {}, case_id=f"{name}-{number}")
    found: list[str] = []
    token = ""
    while True:
        page = transport.cases(spec, size=2, token=token)
        found += [str(each["case_id"]) for each in parts(page, "cases")]
        token = str(page["next_page_token"])
        if not token:
            break
    assert found == [f"{name}-{number}" for number in range(5)]


def test_explain_names_what_a_case_waits_for(transport: Transport, spec: str, name: str) -> None:
    transport.run(spec, {"pages": 2}, case_id=name)
    tasks = {task["task_id"]: task for task in parts(transport.explain(name), "tasks")}
    assert tasks["write"]["status"] == "TASK_STATUS_ENABLED"
    assert "author" in str(tasks["write"]["sentence"])
    assert tasks["review"]["status"] in ("TASK_STATUS_IDLE", "TASK_STATUS_WAITING")


def test_patterns_run(transport: Transport) -> None:
    answer = transport.pattern(2, {"colour": "red"})
    assert (answer["success"], answer["next_state"], answer["terminates"]) == (True, "completed", True)
    assert answer["variables"] == {"colour": "red"}


@pytest.mark.parametrize("number", [0, 44])
def test_there_are_43_patterns(transport: Transport, number: int) -> None:
    with pytest.raises(Refused) as refused:
        transport.pattern(number, {})
    assert refused.value.reason in ("INVALID_ARGUMENT", "NOT_FOUND")


def test_errors_have_one_reason(transport: Transport, spec: str, name: str) -> None:
    transport.create(spec, {}, case_id=name)
    attempts: tuple[tuple[str, Callable[[], Plain]], ...] = (
        ("NOT_FOUND", lambda: transport.get("nobody")),
        ("NOT_FOUND", lambda: transport.create("nothing", {})),
        ("NOT_FOUND", lambda: transport.complete("1.1.1@nobody", {})),
        ("ALREADY_EXISTS", lambda: transport.create(spec, {}, case_id=name)),
        ("WRONG_STATE", lambda: transport.move(name, "resume")),
        ("INVALID_ARGUMENT", lambda: transport.create("", {})),
        ("INVALID_ARGUMENT", lambda: transport.create(spec, {}, request_id="x" * 129)),
        ("INVALID_DOCUMENT", lambda: transport.register({"id": "bad", "flows": [{"from": "start", "to": "x"}]})),
    )
    for reason, attempt in attempts:
        with pytest.raises(Refused) as refused:
            attempt()
        assert refused.value.reason == reason, refused.value


def test_both_transports_tell_the_same(both: tuple[Transport, Transport]) -> None:
    over_grpc, over_rest = both
    over_grpc.register(document("same"))
    over_grpc.run("same", {"pages": 2, "deep": {"list": [1, 2.5, None, "é", {"a": True}]}}, case_id="same")
    for ask in ("get", "history", "explain", "items"):
        assert getattr(over_grpc, ask)("same") == getattr(over_rest, ask)("same"), ask
    with pytest.raises(Refused) as left:
        over_grpc.get("nobody")
    with pytest.raises(Refused) as right:
        over_rest.get("nobody")
    assert str(left.value) == str(right.value)
