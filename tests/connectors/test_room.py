"""Room for calls: a target that is down takes none from others; a connector that is replaced takes its calls along."""

from __future__ import annotations

import asyncio
import json

import pytest

from knhk_workflow import (
    Answer,
    BreakerRule,
    Call,
    CallFailed,
    ConnectorConfig,
    ConnectorDelivery,
    ConnectorSetup,
    InvalidInput,
    NotFound,
    PoolState,
    StateStore,
    StoreCorrupt,
    StoreUnavailable,
    Surroundings,
    WorkflowEngine,
)
from knhk_workflow.core import commands as c
from knhk_workflow.runtime import outbox
from knhk_workflow.store import Keyspace
from tests.connectors.calling import LOOPBACK, calls, data, engine, until_open
from tests.inside import listening, parts
from tests.runtime.mistakes import poison
from tests.runtime.place import Gate, KeptStore, damage


class Switch:
    """A connector with a target for each `to`; those in `down` fail. A fault of its own: `to` is `broken`."""

    timeout = 5.0
    max_concurrent = 2
    breaker = BreakerRule(failures=2, pause=0.05)
    declared: ConnectorDelivery = "keyed"

    def __init__(self) -> None:
        self.down = {"down"}
        self.made: list[str] = []
        self.answer = b'{"status": 1, "body": {"done": true}}'

    def target(self, request: bytes) -> str:
        to = str(json.loads(request)["to"])
        if to == "broken":
            raise ZeroDivisionError
        return to

    def delivery(self, request: bytes) -> ConnectorDelivery:
        return self.declared

    async def call(self, call: Call) -> Answer:
        to = self.target(call.request)
        self.made.append(to)
        if to == "cancelled":
            raise asyncio.CancelledError
        if to == "wrong":
            raise InvalidInput.field("x", "is wrong")
        if to == "full":
            raise CallFailed("told", "x", permanent=True, data=b'"' + b"x" * 3_000_000 + b'"')
        if to == "deep":
            raise CallFailed("told", "x", permanent=True, data=b'{"x":' + b"[" * 985 + b"]" * 985 + b"}")
        if to in self.down:
            raise CallFailed("told", "it is down")
        return Answer(self.answer, "1")

    async def verify(self, call: Call) -> Answer | None:
        return None

    async def probe(self) -> str:
        raise ZeroDivisionError

    def pool(self) -> PoolState:
        return PoolState(0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""


def switched(switch: Switch) -> ConnectorSetup:
    def make(config: bytes, surroundings: Surroundings) -> Switch:
        return switch

    return ConnectorSetup(configured=(ConnectorConfig("http", "switch", b"{}"),), kinds={"switch": make})


async def to(opened: WorkflowEngine, place: str, count: int) -> list[str]:
    return [(await opened.run_case("calls", {"place": place})).case_id for _ in range(count)]


ASK = {"request": {"to": "${data.place}"}, "retry": {"max_attempts": 60, "backoff": 0}}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox with room for forty."""
    for name, value in (("QUEUED_MAX", 40), ("WAITING_MAX", 16), ("LEFT_ALONE_MAX", 4)):
        monkeypatch.setattr(outbox, name, value)


@pytest.mark.usefixtures("little")
async def test_a_target_that_is_down_leaves_room_for_others() -> None:
    switch = Switch()
    switch.breaker = BreakerRule(failures=2, pause=600)
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls(ASK))
        await to(opened, "down", 100)
        async with asyncio.timeout(60):
            for case_id in await to(opened, "up", 60):
                assert data(await opened.wait_case(case_id))["done"]
        assert (await opened.list_connectors())[0].waiting <= 4


@pytest.mark.usefixtures("little")
async def test_calls_that_were_left_in_the_store_are_made_once_the_target_is_back() -> None:
    switch = Switch()
    async with engine(switched(switch)) as opened:
        # While the target is down, a call in each pause of the breaker uses up an attempt.
        await opened.register_workflow(calls({**ASK, "retry": {"max_attempts": 1_000, "backoff": 0}}))
        waiting = await to(opened, "down", 100)
        up = await to(opened, "up", 100)
        for case_id in waiting[5:10]:
            await opened.cancel_case(case_id)
        switch.down.clear()
        async with asyncio.timeout(60):
            for case_id in (*waiting[:5], *waiting[10:], *up):
                assert data(await opened.wait_case(case_id))["done"]
        assert (await opened.verify_store()).intact


class Counting(KeptStore):
    """Memory that counts the rows of calls that are read."""

    read = 0

    async def scan(self, start: bytes, end: bytes, *, limit: int, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """As the store below, counted."""
        found = await super().scan(start, end, limit=limit, reverse=reverse)
        first, last = Keyspace(self.shards).effects(0)
        self.read += sum(first <= key < last for key, _ in found)
        return found


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("count", [100, 400])
async def test_rows_are_read_as_often_as_there_are_calls(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that takes its calls from the store in portions goes on where it stopped."""
    monkeypatch.setattr(outbox, "PAGE", 8)
    switch, store = Switch(), Counting()
    switch.down.clear()
    async with WorkflowEngine(StateStore.over(store)) as opened:
        await opened.register_workflow(calls(ASK))
        cases = await to(opened, "up", count)
    store.read = 0
    async with WorkflowEngine(StateStore.over(store), connectors=switched(switch)) as opened:
        async with asyncio.timeout(20):
            for case_id in cases:
                assert data(await opened.wait_case(case_id))["done"]
        assert sorted(switch.made) == ["up"] * count
        assert store.read < 7 * count
        assert (await opened.verify_store()).intact


def row_of(opened: WorkflowEngine, case_id: str) -> bytes:
    """The key of the row of a case's only call."""
    return parts(opened).keyspace.case("default", case_id).effect(outbox.effect(1, 1))


async def waiting(store: KeptStore, count: int, damaged: slice) -> list[str]:
    """Cases that wait for a call, by id; the rows of some of the calls are damaged."""
    async with WorkflowEngine(StateStore.over(store)) as opened:
        await opened.register_workflow(calls(ASK))
        cases = sorted(await to(opened, "up", count))
        for case_id in cases[damaged]:
            await damage(opened, row_of(opened, case_id))
    return cases


async def test_a_damaged_row_holds_up_neither_its_call_nor_another() -> None:
    switch, store, said = Switch(), KeptStore(), listening()
    cases = await waiting(store, 3, slice(1))
    async with WorkflowEngine(StateStore.over(store), connectors=switched(switch)) as opened:
        for case_id in cases:
            assert data(await opened.wait_case(case_id))["done"]
        row = f"the row of call 1.1 of case {cases[0]!r} of tenant 'default'"
        assert said == [f"{row} cannot be read; its case is asked instead"]
        assert (await opened.verify_store()).intact


async def test_damaged_rows_without_room_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUEUED_MAX", 40), ("WAITING_MAX", 16), ("LEFT_ALONE_MAX", 4)):
        monkeypatch.setattr(outbox, name, value)
    switch, store, said = Switch(), KeptStore(), listening()
    cases = await waiting(store, 200, slice(100, 140))
    async with WorkflowEngine(StateStore.over(store), connectors=switched(switch)) as opened:
        for case_id in cases:
            assert data(await opened.wait_case(case_id))["done"]
    assert len(said) == len(set(said)) == 40
    assert len(switch.made) == 200


async def test_a_damaged_row_of_a_damaged_case_holds_no_other_call_up() -> None:
    switch, store, said = Switch(), KeptStore(), listening()
    cases = await waiting(store, 3, slice(1))
    async with WorkflowEngine(StateStore.over(store)) as opened:
        await damage(opened, parts(opened).keyspace.case_head("default", cases[0]))
    async with WorkflowEngine(StateStore.over(store), connectors=switched(switch)) as opened:
        for case_id in cases[1:]:
            assert data(await opened.wait_case(case_id))["done"]
        assert len(said) == 1
        with pytest.raises(StoreCorrupt):
            await opened.get_case(cases[0])
        found = (await opened.verify_store()).findings
        assert any(row_of(opened, cases[0]).hex() in each.message for each in found)


async def test_calls_that_wait_go_with_the_connector_that_takes_the_place_of_theirs(outside: str) -> None:
    dead = {"base_url": "http://127.0.0.1:1", "breaker": {"failures": 1, "pause": 600}, "max_concurrent": 1}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.put_connector("http", "http", dead)
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1, "result": {}}))
        cases = [(await opened.run_case("calls")).case_id for _ in range(8)]
        assert (await until_open(opened, cases[0])).incidents
        assert (await opened.list_connectors())[0].waiting == 7
        await opened.put_connector("http", "http", {"base_url": outside})
        async with asyncio.timeout(60):
            for case_id in cases[1:]:
                assert (await opened.wait_case(case_id)).state == "completed"


async def test_calls_that_wait_for_a_connector_that_is_deleted_are_for_a_person() -> None:
    dead = {"base_url": "http://127.0.0.1:1", "breaker": {"failures": 1, "pause": 600}, "max_concurrent": 1}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.put_connector("http", "http", dead)
        await opened.register_workflow(calls({"request": {"url": "/echo"}, "retry": 1}))
        cases = [(await opened.run_case("calls")).case_id for _ in range(4)]
        assert (await until_open(opened, cases[0])).incidents
        await opened.delete_connector("http", force=True)
        for case_id in cases[1:]:
            assert "no_connector: " in (await until_open(opened, case_id)).incidents[0].message
        with pytest.raises(NotFound):
            await opened.delete_connector("http")


async def test_two_that_configure_at_once_leave_one_default() -> None:
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with engine(connectors) as opened:
        await opened.open()
        base = {"base_url": "http://127.0.0.1:1"}
        await asyncio.gather(*(opened.put_connector(name, "http", base, default=True) for name in ("a", "b", "c")))
        assert [view.default for view in await opened.list_connectors()].count(True) == 1


async def test_what_a_caller_has_given_up_is_there_all_the_same() -> None:
    """A client's deadline cancels the call while its commit is on the way: memory follows the store."""
    store, base = Gate(), {"base_url": "http://127.0.0.1:1"}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    async with WorkflowEngine(StateStore.over(store), connectors=connectors) as opened:

        async def names() -> list[tuple[str, bool]]:
            return [(view.name, view.default) for view in await opened.list_connectors()]

        await opened.put_connector("a", "http", base, default=True)
        await store.given_up(opened.put_connector("b", "http", base, default=True))
        third = asyncio.create_task(opened.put_connector("c", "http", base, default=True))
        await asyncio.sleep(0)
        assert await names() == [("a", True)], "nothing is said before it is durable"
        store.open.set()
        await third
        assert await names() == [("a", False), ("b", False), ("c", True)]

        await opened.register_workflow(calls({"connector": "b", "request": {"url": "/"}, "retry": 60}))
        await store.given_up(opened.delete_connector("b", force=True))
        store.open.set()
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "there is no connector 'b'" in case.incidents[0].message
        assert await names() == [("a", False), ("c", True)]

        store.full = True
        await store.given_up(opened.put_connector("d", "http", base))
        store.open.set()
        with pytest.raises(StoreUnavailable):
            await opened.put_connector("e", "http", base)
        store.full = False
        assert await names() == [("a", False), ("c", True)]
    async with WorkflowEngine(StateStore.over(store), connectors=connectors) as opened:
        assert [view.name for view in await opened.list_connectors()] == ["a", "c"]


async def test_a_damaged_connector_fails_its_own_calls_alone() -> None:
    store, base = KeptStore(), {"base_url": "http://127.0.0.1:1"}
    connectors = ConnectorSetup(allow=("http://127.0.0.1:*",), networks=LOOPBACK)
    said = listening()
    async with WorkflowEngine(StateStore.over(store), connectors=connectors) as opened:
        for name in ("sick", "well"):
            await opened.put_connector(name, "http", base)
        key = parts(opened).keyspace.connector("default", "sick")
        await store.commit([(key, (await store.get(key) or b"")[:-1] + b"?")], (), True)
    async with WorkflowEngine(StateStore.over(store), connectors=connectors) as opened:
        assert [view.name for view in await opened.list_connectors()] == ["well"]
        assert said == ["connector 'sick' of tenant 'default' cannot be read"]
        [finding] = (await opened.verify_store()).findings
        assert key.hex() in finding.message
        await opened.register_workflow(calls({"connector": "sick", "request": {"url": "/"}}))
        case = await until_open(opened, (await opened.run_case("calls")).case_id)
        assert "connector 'sick' cannot be used: " in case.incidents[0].message
        await opened.put_connector("sick", "http", base)
        assert (await opened.verify_store()).intact


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b'{"body":{"x":' + b"[" * 62 + b"]" * 62 + b"}}", ""),
        (b'{"body":{"x":' + b"[" * 63 + b"]" * 63 + b"}}", "depth"),
        (b'{"body":{"x":' + b"[" * 985 + b"]" * 985 + b"}}", "depth"),
        (b'{"body":{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}}", "depth"),
        (b'{"body":{"x":-9223372036854775808}}', ""),
        (b'{"body":{"x":9223372036854775808}}', "number_range"),
        (b'{"body":{"x":1e999}}', "number_range"),
        (b'{"body":{"x":NaN}}', "not_a_number"),
        (b'{"body":{"x":1,"x":2}}', "duplicate_key"),
        (b'{"body":{"x":"\\ud800"}}', "encoding"),
        (b'{"body":{"x":"\xff"}}', "encoding"),
        (b'{"body":', "syntax"),
        (b"", "empty"),
    ],
)
async def test_an_answer_keeps_the_rules_of_case_data(answer: bytes, code: str) -> None:
    """What could not come in by a call does not by a connector, and is the call's failure, not the engine's."""
    switch, store = Switch(), KeptStore()
    switch.answer = answer
    said = listening()
    for _ in range(2):
        async with WorkflowEngine(StateStore.over(store), connectors=switched(switch)) as opened:
            await opened.register_workflow(calls({**ASK, "retry": 2}))
            async with asyncio.timeout(10):
                if not switch.made:
                    await opened.run_case("calls", {"place": "x"}, case_id="c")
                case = await until_open(opened, "c")
            if not code:
                assert (case.state, case.incidents) == ("completed", ())
            else:
                [incident] = case.incidents
                assert incident.kind == "connector_failed"
                assert "connector_error: the connector's answer cannot be used: " in incident.message
                assert f"({code})" in incident.message
            assert (await opened.verify_store()).intact
    assert len(switch.made) == 1, "it would be the same again"
    assert not said


async def test_what_is_said_of_a_failure_keeps_the_rules_too() -> None:
    switch = Switch()
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls({**ASK, "retry": 1}, sensitive=["secret"]))
        async with asyncio.timeout(10):
            case = await until_open(opened, (await to(opened, "deep", 1))[0])
        assert [incident.kind for incident in case.incidents] == ["connector_failed"]


@pytest.mark.parametrize("place", ["broken", "cancelled", "wrong", "full", "mute"])
async def test_no_fault_of_a_connector_leaves_a_call_without_an_end(place: str) -> None:
    """It fails before it is asked, gives its call up, raises what is not for it, says too much, answers rubbish."""
    switch = Switch()
    if place == "mute":
        switch.answer = b"[1]"
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls({**ASK, "retry": 1}))
        async with asyncio.timeout(60):
            case = await until_open(opened, (await to(opened, place, 1))[0])
        assert case.incidents[0].kind == "connector_failed"
        assert (await opened.probe_connector("http")).healthy is False
        assert (await opened.verify_store()).intact


@pytest.mark.parametrize(("command", "place"), [(c.CompleteCall, "up"), (c.FailCall, "full")])
async def test_a_call_whose_outcome_meets_a_mistake_can_be_made_again(command: type[c.Command], place: str) -> None:
    """It has failed for good, and a person who retries it has it made again, without a restart."""
    switch, said = Switch(), listening()
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls({**ASK, "retry": 1}))
        with poison(command, "sick", times=1):
            await opened.run_case("calls", {"place": place}, case_id="sick")
            sick = await until_open(opened, "sick")
        [incident] = sick.incidents
        assert incident.kind == "connector_failed"
        assert "connector_error: the engine made a mistake with what the call gave (KeyError)" in incident.message
        assert said == ["what a call of case 'sick' of tenant 'default' gave met a mistake of ours"]
        [letter] = (await opened.list_dead_letters()).items
        await opened.retry_dead_letter(letter.dead_letter_id)
        again = await until_open(opened, "sick")
        assert switch.made == [place] * 2
        assert (again.state, len(again.incidents)) == (("completed", 0) if place == "up" else ("running", 1))
        assert (await opened.verify_store()).intact


async def test_a_case_that_is_stopped_by_two_mistakes_asks_for_a_person() -> None:
    """Not even the failure of its call can be written."""
    switch = Switch()
    async with engine(switched(switch)) as opened:
        await opened.register_workflow(calls({**ASK, "retry": 1}))
        with poison(c.CompleteCall, "sick"), poison(c.FailCall, "sick"):
            await opened.run_case("calls", {"place": "up"}, case_id="sick")
            sick = await until_open(opened, "sick")
        assert [incident.kind for incident in sick.incidents] == ["internal_error"]
        assert (await opened.verify_store()).intact
