"""Sensitive data of a case are given to whoever works with it, and to nobody who is told about it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from knhk_workflow import (
    InvalidInput,
    ScheduleSpec,
    SigningKey,
    StateStore,
    WorkflowEngine,
    key_fingerprint,
    prove_export,
)
from knhk_workflow.model.veil import MASK

SECRET = "4111-2222-3333"
DOCUMENT: dict[str, object] = {
    "id": "payment",
    "sensitive": ["card"],
    "data_schema": {"properties": {"amount": {"type": "number"}, "card": {"maxLength": 20}}},
    "tasks": {
        "check": {"required_roles": ["clerk"], "in": {"holder": "data.card"}, "out": {"seen": "data.holder"}},
        "route": {"split": "xor", "join": "xor"},
        "good": {"required_roles": ["clerk"]},
        "bad": {"required_roles": ["clerk"]},
    },
    "flows": [
        {"from": "start", "to": "check"},
        {"from": "check", "to": "route"},
        {"from": "route", "to": "good", "when": "data.known[data.card]"},
        {"from": "route", "to": "bad", "default": True},
        {"from": "good", "to": "end"},
        {"from": "bad", "to": "end"},
    ],
}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as opened:
        await opened.register_workflow(DOCUMENT)
        yield opened


async def told(engine: WorkflowEngine, case_id: str) -> str:
    """Everything that is told about a case."""
    parts: list[object] = [
        await engine.get_case_history(case_id),
        await engine.get_case_history(case_id, reverse=True),
        await engine.explain_case(case_id),
        await engine.list_cases(),
        await engine.list_work_items(),
        await engine.list_incidents(case_id=case_id),
        await engine.export_case(case_id),
    ]
    watched = engine.watch_cases(resume_token=await engine.watch_token(from_start=True))
    parts += [(await anext(watched))[0] for _ in range((await engine.get_case(case_id)).sequence)]
    return "\n".join(map(repr, parts))


async def test_work_is_given_the_data_and_everybody_else_is_not(engine: WorkflowEngine) -> None:
    case = await engine.run_case("payment", {"card": SECRET, "amount": 5, "known": {SECRET: True}}, case_id="c")
    assert case.sensitive == ("card", "holder", "seen")
    assert json.loads(case.data)["card"] == SECRET, "whoever works with the case is given its data"
    item = await engine.get_work_item(case.work[0].item_id)
    assert json.loads(item.data)["holder"] == SECRET
    assert item.sensitive == case.sensitive
    await engine.complete_work_item(item.item_id, {"card": SECRET + "9", "note": "fine"})
    history = await engine.get_case_history("c")
    created = json.loads(history.items[0].data)["data"]
    assert (created["card"], created["amount"]) == (MASK, 5)
    text = await told(engine, "c")
    assert '"card":"***"' in text.replace(" ", "")


async def test_messages_of_incidents_do_not_say_it(engine: WorkflowEngine) -> None:
    case = await engine.run_case("payment", {"card": SECRET, "known": {}}, case_id="c")
    await engine.complete_work_item(case.work[0].item_id, {"card": SECRET})
    (incident,) = (await engine.list_incidents(case_id="c")).items
    assert incident.kind == "guard_error"
    assert MASK in incident.message
    explained = await engine.explain_case("c")
    guards = [guard for task in explained.tasks for guard in task.guards]
    assert any(guard.values.get("data.card") == f'"{MASK}"' for guard in guards)
    text = await told(engine, "c")
    assert SECRET not in text


async def test_reports_of_failed_work_do_not_say_it(engine: WorkflowEngine) -> None:
    case = await engine.run_case("payment", {"card": SECRET}, case_id="c")
    await engine.fail_work_item(case.work[0].item_id, "declined", f"card {SECRET} was declined", data={"card": SECRET})
    assert SECRET not in await told(engine, "c")
    await engine.cancel_case("c", f"the card {SECRET} is stolen")
    assert SECRET not in await told(engine, "c")
    assert (await engine.get_case("c")).reason == f"the card {MASK} is stolen"


async def test_refusals_do_not_say_it(engine: WorkflowEngine) -> None:
    with pytest.raises(InvalidInput) as caught:
        await engine.run_case("payment", {"card": SECRET * 3, "amount": "much"})
    assert SECRET not in repr((caught.value.args, caught.value.problems, caught.value.details))
    assert {problem.path for problem in caught.value.problems} == {"data.card", "data.amount"}


async def test_a_masked_export_is_signed_and_proven_as_far_as_it_goes(engine: WorkflowEngine) -> None:
    key = SigningKey.generate()
    engine.sign_with(key)
    case = await engine.run_case("payment", {"card": SECRET, "amount": 5}, case_id="c")
    await engine.complete_work_item(case.work[0].item_id, {"amount": 6})
    exported = await engine.export_case("c")
    assert SECRET.encode() not in exported
    document = json.loads(exported)
    assert (document["salt"], document["case"]["state_hash"]) == ("", "")
    proof = prove_export(exported, key.public)
    assert (proof.problem, proof.withheld, proof.signed_by) == ("", True, key_fingerprint(key.public))
    assert (proof.records, proof.tied, proof.events) == (2, 2, document["case"]["sequence"])
    for spoil in (_less, _other_content, _other_data, _other_state):
        document = json.loads(exported)
        spoil(document)
        assert prove_export(json.dumps(document).encode(), key.public).problem, spoil.__name__


def _less(document: Any) -> None:
    del document["records"][0]["events"][1]


def _other_content(document: Any) -> None:
    document["records"][0]["events"][0]["data"]["data"]["amount"] = 500


def _other_data(document: Any) -> None:
    document["case"]["data"]["amount"] = 500


def _other_state(document: Any) -> None:
    document["case"]["state"] = "completed"


async def test_lists_of_schedules_do_not_say_it(engine: WorkflowEngine) -> None:
    data = json.dumps({"card": SECRET, "amount": 5}).encode()
    made = await engine.create_schedule("daily", ScheduleSpec("payment", "0 9 * * *", data=data), paused=True)
    assert json.loads(made.spec.data) == json.loads(data), "who made it is told what it made"
    (listed,) = (await engine.list_schedules()).items
    assert json.loads(listed.spec.data) == {"card": MASK, "amount": 5}


async def test_an_output_that_cannot_be_mapped_is_not_quoted(engine: WorkflowEngine) -> None:
    """It is no data of the case yet, and never will be."""
    task = {"required_roles": ["clerk"], "out": {"limit": "data.limits[data.card]"}}
    document = {
        "id": "ask",
        "sensitive": ["card"],
        "tasks": {"ask": task},
        "flows": [{"from": "start", "to": "ask"}, {"from": "ask", "to": "end"}],
    }
    await engine.register_workflow(document)
    case = await engine.run_case("ask", {"limits": {}}, case_id="a")
    await engine.complete_work_item(case.work[0].item_id, {"card": SECRET})
    text = await told(engine, "a")
    assert "output_error" in text
    assert SECRET not in text
