"""Messages: to a business key, to everybody who waits, to somebody who is not there yet; across kills and restarts."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from knhk_workflow import (
    CallMeta,
    EngineLimits,
    LimitExceeded,
    MessageView,
    StateStore,
    StoreUnavailable,
    VirtualClock,
    WorkflowEngine,
)
from knhk_workflow.runtime import messages
from knhk_workflow.store import Keyspace
from knhk_workflow.store.leveldb import LevelDBStore
from tests.inside import listening, parts
from tests.patterns.notation import Document, document
from tests.patterns.players import KeptStore
from tests.runtime.message_sender import KEY, REQUEST
from tests.runtime.place import store_of
from tests.store.faulty import Fault, FaultyStore

HOUR = 3_600


def waiting(mode: str) -> Document:
    """A signal that B waits for once A is done, and work after it."""
    lines = ["net: start -> A; A -> B; B -> C; C -> end; routing: B", f"B is {{trigger: {{name: paid, mode: {mode}}}}}"]
    return document(mode, [lines[0], f"net: {lines[1]}"])


DEAF = document("deaf", ["net: start -> A; A -> end"])


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def engine(clock: VirtualClock) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(":memory:"), clock=clock) as engine:
        for each in (waiting("persistent"), waiting("transient"), DEAF):
            await engine.register_workflow(each)
        yield engine


async def received(engine: WorkflowEngine, case_id: str) -> list[str]:
    """The outcomes of all signals that a case has got."""
    page = await engine.get_case_history(case_id, page_size=1_000)
    return [
        outcome
        for event in page.items
        if event.event_type == "trigger_received"
        for outcome in ("taken", "kept", "lost")
        if f'"outcome":"{outcome}"'.encode() in event.data
    ]


async def stored(engine: WorkflowEngine) -> int:
    return len(await store_of(engine).scan(*parts(engine).keyspace.messages(0), limit=100))


def outcomes(sent: MessageView) -> dict[str, str]:
    return {each.case_id: each.outcome for each in sent.deliveries}


async def test_a_message_to_all_reaches_the_cases_whose_workflow_waits_for_it(engine: WorkflowEngine) -> None:
    for spec in ("persistent", "transient", "deaf"):
        for number in range(2):
            case = await engine.run_case(spec, case_id=f"{spec}-{number}", business_key=f"key-{number}")
            if number:
                await engine.complete_work_item(case.work[0].item_id)
    await engine.run_case("persistent", case_id="ended")
    await engine.cancel_case("ended")
    foreign = CallMeta(tenant="other")
    await engine.register_workflow(waiting("persistent"), meta=foreign)
    await engine.run_case("persistent", case_id="foreign", meta=foreign)

    sent = await engine.trigger_case("paid", {"n": 1})
    assert outcomes(sent) == {
        "persistent-0": "kept",
        "persistent-1": "taken",
        "transient-0": "lost",
        "transient-1": "taken",
    }
    assert sent.message_id
    assert not sent.waits_until
    assert await received(engine, "deaf-0") == []
    assert await stored(engine) == 0


async def test_a_message_that_nobody_hears_waits_for_the_first_who_does(
    engine: WorkflowEngine, clock: VirtualClock
) -> None:
    await engine.run_case("deaf", case_id="deaf", business_key="order-1")
    sent = await engine.trigger_case("paid", {"n": 1}, key="order-1")
    assert outcomes(sent) == {"deaf": "lost"}
    assert sent.waits_until == clock.now() + messages.TIME_TO_LIVE
    for name, spec, key in (
        ("elsewhere", "persistent", "order-2"),
        ("transient", "transient", "order-1"),
        ("first", "persistent", "order-1"),
        ("second", "persistent", "order-1"),
    ):
        await engine.run_case(spec, case_id=name, business_key=key)
        await parts(engine).messages.flush()
    found = [await received(engine, name) for name in ("elsewhere", "transient", "first", "second")]
    assert found == [[], [], ["kept"], []]
    assert await stored(engine) == 0


async def test_messages_that_wait_come_in_their_order(engine: WorkflowEngine, clock: VirtualClock) -> None:
    for number in (1, 2, 3):
        await engine.trigger_case("paid", {"n": number}, key="order-1" if number < 3 else "")
        clock.advance(1)
    await engine.create_case("persistent", case_id="c", business_key="order-1")
    await parts(engine).messages.flush()
    assert await received(engine, "c") == ["kept"] * 3
    [item] = (await engine.start_case("c")).work
    await engine.complete_work_item(item.item_id)
    assert (await engine.get_case("c")).data == b'{"n":1}'


async def test_no_time_to_live_is_no_waiting(engine: WorkflowEngine) -> None:
    assert not (await engine.trigger_case("paid", key="order-1", time_to_live=0)).waits_until
    assert await stored(engine) == 0
    await engine.run_case("persistent", case_id="c", business_key="order-1")
    assert outcomes(await engine.trigger_case("paid", key="order-1", time_to_live=0)) == {"c": "lost"}
    assert outcomes(await engine.trigger_case("paid", case_id="c", time_to_live=0)) == {"c": "lost"}


async def test_what_has_expired_is_not_delivered_and_swept(engine: WorkflowEngine, clock: VirtualClock) -> None:
    await engine.trigger_case("paid", key="order-1", time_to_live=HOUR * 10**9)
    await engine.trigger_case("paid", key="order-2", time_to_live=3 * HOUR * 10**9)
    clock.advance(HOUR)
    await engine.run_case("persistent", case_id="c", business_key="order-1")
    await parts(engine).messages.flush()
    assert await received(engine, "c") == []
    assert await stored(engine) == 2
    await parts(engine).messages.sweep()
    assert await stored(engine) == 1
    await engine.run_case("persistent", case_id="d", business_key="order-2")
    await parts(engine).messages.flush()
    assert await received(engine, "d") == ["kept"]


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_kept_signal_lives_as_long_as_it_was_told(
    engine: WorkflowEngine, clock: VirtualClock, key: str
) -> None:
    case = await engine.run_case("persistent", case_id="c", business_key="k")
    case_id = "" if key else "c"
    await engine.trigger_case("paid", {"n": 1}, time_to_live=HOUR * 10**9, key=key, case_id=case_id)
    clock.advance(HOUR / 2)
    await engine.trigger_case("paid", {"n": 2}, time_to_live=HOUR * 10**9, key=key, case_id=case_id)
    assert "2 signal(s) are kept" in (await engine.explain_case("c")).sentence
    clock.advance(HOUR / 2)
    assert "1 signal(s) are kept" in (await engine.explain_case("c")).sentence
    await engine.complete_work_item(case.work[0].item_id)
    assert (await engine.get_case("c")).data == b'{"n":2}'
    page = await engine.get_case_history("c")
    assert [event.event_type for event in page.items].count("trigger_expired") == 1


async def test_waiting_messages_survive_a_restart(clock: VirtualClock) -> None:
    store = KeptStore()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        await engine.register_workflow(waiting("persistent"))
        first = await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        assert await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST) == first
        await engine.run_case("persistent", case_id="c", business_key=KEY)
        await parts(engine).messages.flush()
        assert await received(engine, "c") == ["kept"]


async def test_the_same_message_many_times_at_once_is_delivered_once(engine: WorkflowEngine) -> None:
    for number in range(20):
        await engine.run_case("persistent", case_id=f"c-{number}", business_key=KEY)
    sent = await asyncio.gather(*(engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST) for _ in range(10)))
    assert all(each == sent[0] for each in sent)
    assert len(sent[0].deliveries) == 20
    assert [await received(engine, f"c-{number}") for number in range(20)] == [["kept"]] * 20


async def test_a_case_and_its_message_find_each_other_whoever_is_first(engine: WorkflowEngine) -> None:
    rng = random.Random(7)

    async def soon(work: Awaitable[object]) -> None:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        await work

    pairs = range(100)
    await asyncio.gather(
        *(soon(engine.run_case("persistent", case_id=f"c-{n}", business_key=f"k-{n}")) for n in pairs),
        *(soon(engine.trigger_case("paid", {"n": n}, key=f"k-{n}")) for n in pairs),
    )
    await parts(engine).messages.flush()
    assert [await received(engine, f"c-{n}") for n in pairs] == [["kept"]] * 100
    assert await stored(engine) == 0


async def test_a_caller_that_leaves_changes_nothing(engine: WorkflowEngine) -> None:
    for number in range(5):
        await engine.run_case("persistent", case_id=f"c-{number}", business_key=KEY)
    calling = asyncio.create_task(engine.trigger_case("paid", key=KEY))
    for _ in range(8):
        await asyncio.sleep(0)
    assert parts(engine).messages._going
    calling.cancel()
    await asyncio.wait([calling])
    await parts(engine).messages.flush()
    assert [await received(engine, f"c-{number}") for number in range(5)] == [["kept"]] * 5


@pytest.mark.parametrize("seed", range(6))
async def test_a_store_that_fails_in_between_delays_and_doubles_nothing(seed: int) -> None:
    rng = random.Random(seed)
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await engine.register_workflow(waiting("persistent"))
        for number in range(5):
            await engine.run_case("persistent", case_id=f"c-{number}", business_key=KEY)
        # The message itself is written; what follows is refused, lost, or written without anybody being told.
        store.faults = [Fault.NOTHING, *rng.choices([Fault.REFUSED, Fault.LOST, Fault.APPLIED, Fault.NOTHING], k=4)]
        sent = await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)
        assert outcomes(sent) == {f"c-{number}": "kept" for number in range(5)}
        assert [await received(engine, f"c-{number}") for number in range(5)] == [["kept"]] * 5
        assert await stored(engine) == 0
        assert await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST) == sent


async def test_a_message_that_cannot_be_written_is_not_sent() -> None:
    store = FaultyStore(KeptStore())
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await engine.register_workflow(waiting("persistent"))
        await engine.run_case("persistent", case_id="c", business_key=KEY)
        store.faults = [Fault.REFUSED]
        with pytest.raises(StoreUnavailable):
            await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)
        assert await received(engine, "c") == []
        assert outcomes(await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)) == {"c": "kept"}


async def test_too_many_cases_are_refused_before_any_gets_it() -> None:
    limits = EngineLimits(message_cases=3)
    async with WorkflowEngine(StateStore(":memory:"), limits=limits) as engine:
        await engine.register_workflow(waiting("persistent"))
        for number in range(4):
            await engine.run_case("persistent", case_id=f"c-{number}", business_key=KEY)
        with pytest.raises(LimitExceeded):
            await engine.trigger_case("paid", key=KEY)
        assert [await received(engine, f"c-{number}") for number in range(4)] == [[]] * 4


@pytest.mark.parametrize("commits", [0, 1])
async def test_kill_minus_nine_between_the_message_and_its_deliveries(tmp_path: Path, commits: int) -> None:
    """0: the message alone was durable. 1: some deliveries too, and nobody has heard the answer."""
    directory = str(tmp_path / "store")
    cases = [f"c-{number}" for number in range(300)]
    async with WorkflowEngine(StateStore(directory)) as engine:
        await engine.register_workflow(waiting("persistent"))
        for case_id in cases:
            await engine.run_case("persistent", case_id=case_id, business_key=KEY)
    sender = [sys.executable, "-m", "tests.runtime.message_sender", directory, str(commits)]
    killed = await asyncio.to_thread(subprocess.run, sender, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    store = await LevelDBStore.open(directory)
    assert await store.scan(*Keyspace(store.shards).messages(0), limit=1), "the message was durable"
    await store.close()
    async with WorkflowEngine(StateStore(directory)) as engine:
        sent = await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)
        assert outcomes(sent) == dict.fromkeys(cases, "kept")
        assert [await received(engine, case_id) for case_id in cases] == [["kept"]] * len(cases)
        await parts(engine).messages.flush()
        assert await stored(engine) == 0


class PausingStore(KeptStore):
    """A store whose reads wait while `go` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()
        self.waiting = asyncio.Event()

    async def get(self, key: bytes) -> bytes | None:
        if not self.go.is_set():
            self.waiting.set()
        await self.go.wait()
        return await super().get(key)


async def test_a_message_that_comes_while_the_engine_closes_is_refused_and_keeps_nobody_waiting() -> None:
    store = PausingStore()
    engine = await WorkflowEngine(StateStore.over(store)).open()
    await engine.register_workflow(waiting("persistent"))
    await engine.run_case("persistent")
    store.go.clear()
    sending = asyncio.create_task(engine.trigger_case("paid"))
    await store.waiting.wait()
    closing = asyncio.create_task(engine.close())
    store.go.set()
    async with asyncio.timeout(60):  # only so that waiting for ever is a failure
        with pytest.raises(StoreUnavailable, match="the engine is closed"):
            await sending
        await closing


async def test_what_is_damaged_is_passed_over(clock: VirtualClock) -> None:
    """A case, a workflow and a message that cannot be read keep no message from the others."""
    store, said = KeptStore(), listening()

    async def damage(key: bytes) -> None:
        value = await store.get(key)
        assert value is not None
        await store.commit([(key, value[:-1] + bytes([value[-1] ^ 1]))], (), True)

    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        for each in (waiting("persistent"), waiting("transient"), DEAF):
            await engine.register_workflow(each)
        for spec, name in (("persistent", "sick"), ("persistent", "well"), ("deaf", "deaf")):
            await engine.run_case(spec, case_id=name, business_key="order")
        await damage(parts(engine).keyspace.case_head("default", "sick"))
        await damage(parts(engine).keyspace.definition("default", "deaf", 1))
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        assert outcomes(await engine.trigger_case("paid")) == {"well": "kept"}
        assert outcomes(await engine.trigger_case("paid", key="order")) == {"well": "kept"}
        assert said == [
            "workflow 'deaf@1' of tenant 'default' cannot be read and is passed over",
            "case 'sick' of tenant 'default' cannot be read and is passed over",
        ]
        said.clear()
        for _ in range(3):
            await engine.trigger_case("paid", key="later")
        rows = await store.scan(*parts(engine).keyspace.messages(0), limit=100)
        assert len(rows) == 3
        await damage(rows[0][0])
        await engine.run_case("persistent", case_id="late", business_key="later")
        await parts(engine).messages.flush()
        assert await received(engine, "late") == ["kept", "kept"]
        assert said == ["a message that waits for case 'late' of tenant 'default' cannot be read and is passed over"]
        for _ in range(2):
            await engine.trigger_case("paid", key="later still")
        said.clear()
    async with WorkflowEngine(StateStore.over(store), clock=clock) as engine:
        assert said == ["a message of tenant 'default' cannot be read and is passed over"]
        await engine.run_case("persistent", case_id="last", business_key="later still")
        await parts(engine).messages.flush()
        assert await received(engine, "last") == ["kept", "kept"]
        assert any(rows[0][0].hex() in each.message for each in (await engine.verify_store()).findings)
