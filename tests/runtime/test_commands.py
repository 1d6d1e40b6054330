"""Signals, instances and single tasks commanded through the engine: answers, idempotency, refusals, restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from knhk_workflow import (
    CallMeta,
    InvalidInput,
    NotFound,
    RequestMismatch,
    StateStore,
    TriggerDelivery,
    VirtualClock,
    WorkflowEngine,
    WrongState,
)
from tests.patterns.notation import Document, document
from tests.patterns.players import KeptStore

ONCE = CallMeta(request_id="m-1", method="TriggerCase")


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(":memory:"), clock=VirtualClock()) as engine:
        yield engine


def net(name: str, *lines: str) -> Document:
    return document(name, [f"net: {line}" for line in lines])


def waiting(mode: str) -> Document:
    """A signal that B waits for, and work after it."""
    return net(
        mode, "start -> A; A -> B; B -> C; C -> end; routing: B", f"B is {{trigger: {{name: paid, mode: {mode}}}}}"
    )


SUPPLIERS = net(
    "suppliers", "start -> Ask; Ask -> C; C -> end", "Ask is {instances: {min: 2, max: 4, create: dynamic}}"
)


async def data_of(engine: WorkflowEngine, case_id: str) -> object:
    return msgspec.json.decode((await engine.get_case(case_id)).data)


async def test_a_signal_is_taken_kept_or_lost(engine: WorkflowEngine) -> None:
    for mode, before in (("persistent", "kept"), ("transient", "lost")):
        await engine.register_workflow(waiting(mode))
        case = await engine.run_case(mode, case_id=mode)
        sent = await engine.trigger_case("paid", {"by": "early"}, case_id=mode)
        assert sent.deliveries == (TriggerDelivery(mode, before),)
        await engine.complete_work_item(case.work[0].item_id)
        if mode == "transient":
            [delivery] = (await engine.trigger_case("paid", {"by": "early"}, case_id=mode)).deliveries
            assert delivery == TriggerDelivery(mode, "taken", "B", 2)
        assert [item.task_id for item in (await engine.get_case(mode)).work] == ["C"]
        assert await data_of(engine, mode) == {"by": "early"}


async def test_a_business_key_reaches_every_open_case_once(engine: WorkflowEngine) -> None:
    await engine.register_workflow(waiting("persistent"))
    for number in range(3):
        await engine.run_case("persistent", case_id=f"c-{number}", business_key="order-7")
    await engine.run_case("persistent", case_id="other", business_key="order-8")
    await engine.cancel_case("c-2")
    first = await engine.trigger_case("paid", {"n": 1}, key="order-7", meta=ONCE)
    assert first.message_id == "m-1"
    assert sorted((each.case_id, each.outcome) for each in first.deliveries) == [("c-0", "kept"), ("c-1", "kept")]
    await engine.cancel_case("c-0")
    await engine.run_case("persistent", case_id="c-3", business_key="order-7")
    assert await engine.trigger_case("paid", {"n": 1}, key="order-7", meta=ONCE) == first
    history = await engine.get_case_history("c-1")
    assert [event.event_type for event in history.items].count("trigger_received") == 1
    with pytest.raises(RequestMismatch):
        await engine.trigger_case("paid", {"n": 2}, key="order-7", meta=ONCE)
    assert (await engine.trigger_case("paid", key="nobody")).deliveries == ()


async def test_what_a_signal_needs(engine: WorkflowEngine) -> None:
    for lives in (-1, 2**63):
        with pytest.raises(InvalidInput):
            await engine.trigger_case("paid", time_to_live=lives)
    with pytest.raises(InvalidInput):
        await engine.trigger_case("", case_id="c")
    with pytest.raises(NotFound):
        await engine.trigger_case("paid", case_id="c")
    await engine.register_workflow(waiting("persistent"))
    await engine.run_case("persistent", case_id="c")
    with pytest.raises(InvalidInput):
        await engine.trigger_case("paid", b"[1]", case_id="c")
    await engine.cancel_case("c")
    with pytest.raises(WrongState):
        await engine.trigger_case("paid", case_id="c")


async def test_kept_signals_survive_a_restart_in_order() -> None:
    store, clock = KeptStore(), VirtualClock()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await engine.register_workflow(waiting("persistent"))
        await engine.run_case("persistent", case_id="c")
        for n in (1, 2):
            await engine.trigger_case("paid", {"n": n}, case_id="c")
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        [item] = (await engine.get_case("c")).work
        await engine.complete_work_item(item.item_id)
        assert await data_of(engine, "c") == {"n": 1}


async def test_instances_are_added_until_they_are_closed(engine: WorkflowEngine) -> None:
    await engine.register_workflow(SUPPLIERS)
    await engine.run_case("suppliers", case_id="s")
    meta = CallMeta(request_id="a-1", method="AddInstance")
    added = await engine.add_instance("s", "Ask", {"name": "acme"}, meta=meta)
    assert (added.instance, added.created, added.done, added.open, added.accepts) == (3, 3, 0, 3, True)
    assert added.item_id == "1.3.1@s"
    assert msgspec.json.decode((await engine.get_work_item(added.item_id)).data) == {"item": {"name": "acme"}}
    assert await engine.add_instance("s", "Ask", {"name": "acme"}, meta=meta) == added
    await engine.add_instance("s", "Ask")
    with pytest.raises(WrongState, match="below its maximum of 4"):
        await engine.add_instance("s", "Ask")
    closed = await engine.close_instances("s", "Ask")
    assert (closed.accepts, closed.instance, closed.item_id) == (False, 0, "")
    assert await engine.close_instances("s", "Ask") == closed
    with pytest.raises(WrongState, match="closed"):
        await engine.add_instance("s", "Ask")


async def test_instances_are_completed_or_cancelled_together(engine: WorkflowEngine) -> None:
    await engine.register_workflow(SUPPLIERS)
    for case_id in ("done", "gone"):
        case = await engine.run_case("suppliers", case_id=case_id)
        await engine.complete_work_item(case.work[0].item_id)
        await engine.start_work_item(case.work[1].item_id)
    done = await engine.complete_instances("done", "Ask")
    assert (done.created, done.done, done.open, done.accepts) == (2, 2, 0, False)
    assert [item.task_id for item in (await engine.get_case("done")).work] == ["C"]
    gone = await engine.cancel_instances("gone", "Ask")
    assert (gone.done, gone.open, gone.accepts) == (1, 0, False)
    assert (await engine.get_case("gone")).work == ()
    with pytest.raises(WrongState):
        await engine.cancel_instances("gone", "Ask")


async def test_one_task_is_cancelled_and_must_be_named_when_there_are_several(engine: WorkflowEngine) -> None:
    await engine.register_workflow(
        net("twice", "start -> Open; Open -> A, B; A, B -> C; C -> end; routing: Open, A, B")
    )
    case = await engine.run_case("twice", case_id="t")
    activations = [int(item.item_id.partition(".")[0]) for item in case.work]
    with pytest.raises(WrongState, match=f"{activations[0]}, {activations[1]}"):
        await engine.cancel_task("t", "C")
    left = await engine.cancel_task("t", "C", activation=activations[0])
    assert [item.item_id for item in left.work] == [case.work[1].item_id]
    with pytest.raises(WrongState, match="neither"):
        await engine.cancel_task("t", "C", activation=activations[0])
    with pytest.raises(NotFound):
        await engine.cancel_task("t", "Nobody")
    with pytest.raises(WrongState, match="dynamic"):
        await engine.add_instance("t", "C")


async def test_signals_before_the_start_wait_for_it(engine: WorkflowEngine) -> None:
    lines = ("start -> A; A -> end; B -> (done); routing: B", "B is {trigger: {name: paid}}")
    await engine.register_workflow(net("source", *lines))
    await engine.create_case("source", case_id="s")
    for n in (1, 2):
        assert (await engine.trigger_case("paid", {"n": n}, case_id="s")).deliveries == (TriggerDelivery("s", "kept"),)
    await engine.start_case("s")
    assert await data_of(engine, "s") == {"n": 2}
    history = await engine.get_case_history("s")
    taken = [
        msgspec.json.decode(event.data)["trigger"] for event in history.items if event.event_type == "trigger_taken"
    ]
    assert taken == [1, 2]


async def test_a_signal_whose_data_cannot_be_taken_over_is_an_incident(engine: WorkflowEngine) -> None:
    lines = ("start -> B; B -> C; C -> end; routing: B", "B is {trigger: {name: paid}, out: {total: data.sum}}")
    await engine.register_workflow(net("mapped", *lines))
    await engine.run_case("mapped", case_id="m")
    await engine.trigger_case("paid", {"amount": 7}, case_id="m")
    [incident] = (await engine.get_case("m")).incidents
    assert incident.kind == "output_error"
    await engine.update_case_data("m", {"sum": 9})
    await engine.resolve_incident(incident.incident_id, "retry")
    assert await data_of(engine, "m") == {"sum": 9, "total": 9}
