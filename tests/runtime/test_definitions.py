"""Workflows: versions by content, pinned by cases, deleted only when nobody uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest

from knhk_workflow import (
    CallMeta,
    InvalidDocument,
    InvalidInput,
    NotFound,
    RequestMismatch,
    StateStore,
    WorkflowEngine,
    WrongState,
)
from knhk_workflow.runtime import definitions
from tests.inside import parts
from tests.runtime.place import LINE, ONE, KeptStore, Place, becomes, registered
from tests.store.faulty import FaultyStore


def edition(number: int) -> Mapping[str, object]:
    return {**ONE, "name": f"edition {number}"}


async def test_content_decides_the_version(place: Place) -> None:
    async with place.engine() as engine:
        first = await engine.register_workflow(edition(1))
        again = await engine.register_workflow(json.dumps(edition(1), indent=3).encode())
        second = await engine.register_workflow(edition(2))
        assert [view.version for view in (first, again, second)] == [1, 1, 2]
        assert [view.created for view in (first, again, second)] == [True, False, True]
        assert (first.digest == again.digest, first.digest == second.digest) == (True, False)
    async with place.engine() as engine:
        assert (await engine.register_workflow(edition(1))).version == 1
        assert (await engine.get_workflow("one")).version == 2
        assert (await engine.get_workflow("one", 1)).name == "edition 1"
        for version in (3, 2**40):
            with pytest.raises(NotFound):
                await engine.get_workflow("one", version)
        assert [(view.spec_id, view.version) for view in (await engine.list_workflows()).items] == [("one", 2)]


async def test_cases_stay_on_their_version(engine: WorkflowEngine) -> None:
    old = await engine.run_case("one", case_id="old")
    await engine.register_workflow({**LINE, "id": "one"})
    new = await engine.run_case("one", case_id="new")
    pinned = await engine.run_case("one", case_id="pinned", version=1)
    assert (old.spec_version, new.spec_version, pinned.spec_version) == (1, 2, 1)
    await engine.complete_work_item(old.work[0].item_id)
    await engine.complete_work_item(new.work[0].item_id)
    assert (await engine.get_case("old")).state == "completed"
    assert (await engine.get_case("new")).state == "running"


async def test_versions_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch, engine: WorkflowEngine) -> None:
    monkeypatch.setattr(definitions, "MODELS_MAX", 5)
    for number in range(12):
        await engine.register_workflow({**ONE, "id": "many", "name": str(number)})
        await engine.run_case("many", version=1)
    assert len(parts(engine).definitions._models) == 5
    assert ("default", "many", 1) in parts(engine).definitions._models, "the one that is in use stays"
    for number in range(1, 13):
        await engine.run_case("many", version=number)
    assert len(parts(engine).definitions._models) == 5


async def test_deleting_is_done_once_per_request(place: Place) -> None:
    asked = CallMeta(principal="me", method="delete_workflow", request_id="r1")
    async with place.engine() as engine:
        for number in (1, 2):
            await engine.register_workflow(edition(number))
        assert await engine.delete_workflow("one", 1) == (1,)
        assert await engine.delete_workflow("one", meta=asked) == (2,)
        await engine.register_workflow(edition(3))
        assert await engine.delete_workflow("one", meta=asked) == (2,), "what is new stays"
        with pytest.raises(RequestMismatch):
            await engine.delete_workflow("one", 3, meta=asked)
    async with place.engine() as engine:
        assert await engine.delete_workflow("one", meta=asked) == (2,)
        assert (await engine.get_workflow("one")).version == 3


async def test_deleting(place: Place) -> None:
    async with place.engine() as engine:
        for number in (1, 2, 3):
            await engine.register_workflow(edition(number))
        case = await engine.run_case("one", version=2)
        with pytest.raises(WrongState):
            await engine.delete_workflow("one", 2)
        with pytest.raises(WrongState):
            await engine.delete_workflow("one")
        await engine.delete_workflow("one", 3)
        assert (await engine.get_workflow("one")).version == 2
        with pytest.raises(NotFound):
            await engine.run_case("one", version=3)
        await engine.cancel_case(case.case_id)
        await engine.delete_workflow("one")
        for call in (
            engine.run_case("one"),
            engine.get_workflow("one"),
            engine.delete_workflow("one"),
            engine.delete_workflow("one", 1),
            engine.delete_workflow("absent"),
        ):
            with pytest.raises(NotFound):
                await call
        assert (await engine.list_workflows()).items == ()
    async with place.engine() as engine:
        assert (await engine.get_case(case.case_id)).spec_version == 2  # its history stays readable
        assert (await engine.register_workflow(edition(2))).version == 4
        assert (await engine.run_case("one")).spec_version == 4


async def test_many_register_the_same_and_others(engine: WorkflowEngine) -> None:
    views = await asyncio.gather(*(engine.register_workflow(edition(number % 20)) for number in range(30)))
    versions = {view.digest: view.version for view in views}
    assert sorted(versions.values()) == list(range(2, 22))
    assert (await engine.get_workflow("one")).version == 21
    assert (await engine.run_case("one")).spec_version == 21


async def test_a_registration_whose_caller_went_away_counts() -> None:
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await registered(engine, ONE)
        await engine.run_case("one")
        store.way.clear()
        before = len(store.commits)
        call = asyncio.create_task(engine.register_workflow(edition(2)))
        await becomes(lambda: len(store.commits) > before)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        store.way.set()

        async def counts() -> bool:
            return (await engine.get_workflow("one")).version == 2

        await becomes(counts)
        assert (await engine.run_case("one")).spec_version == 2


async def test_registering_and_deleting_at_once_loses_neither(engine: WorkflowEngine) -> None:
    for number in range(10):
        deleting = asyncio.create_task(engine.delete_workflow("one", number + 1))
        view = await engine.register_workflow(edition(number))
        await deleting
        assert (await engine.get_workflow("one")).version == view.version == number + 2


async def test_wrong_documents_say_everything_at_once(engine: WorkflowEngine) -> None:
    wrong = {"id": "w", "tasks": {"a": {"nett": "x"}, "b": {}}, "flows": [{"from": "start", "to": "absent"}]}
    with pytest.raises(InvalidDocument) as refused:
        await engine.register_workflow(wrong)
    assert len(refused.value.problems) >= 2
    assert all(problem.path for problem in refused.value.problems)
    found = await engine.validate_workflow(wrong)
    assert {problem.code for problem in refused.value.problems} <= {problem.code for problem in found.findings}
    with pytest.raises(NotFound):
        await engine.get_workflow("w")
    for text in (b"{", b"\xff", "[]", b'{"id": "w", "id": "v"}', b'{"id":' + b"[" * 5_000):
        with pytest.raises((InvalidDocument, InvalidInput)):
            await engine.register_workflow(text)
    with pytest.raises(InvalidInput):
        await engine.register_workflow(json.dumps(ONE), format="xml")


async def test_data_schema_is_checked_when_a_case_is_created(engine: WorkflowEngine) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    await engine.register_workflow({**ONE, "id": "strict", "data_schema": schema}, meta=CallMeta())
    assert (await engine.run_case("strict", {"n": 1})).state == "running"
    for data in ({}, {"n": "1"}, {"n": 1.5}):
        with pytest.raises(InvalidInput):
            await engine.run_case("strict", data)
