"""Worker: what handlers take and give, what becomes of their failures, and how a worker stops."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from knhk_sidecar.api import pb, wire
from knhk_sidecar.client import Endpoint, Failed, Job, Refused, Worker
from knhk_sidecar.worker import CODE_BYTES_MAX, DATA_BYTES_MAX, MESSAGE_BYTES_MAX
from knhk_workflow import VirtualClock
from tests.sidecar.services.server import Sidecar, sidecar

WAIT_S = 60.0
LEASE_NS = 300_000_000
ONE: Mapping[str, object] = {
    "id": "one",
    "tasks": {"do": {"required_roles": ["clerk"], "retry": {"max_attempts": 3, "backoff": 0}}},
    "flows": [{"from": "start", "to": "do"}, {"from": "do", "to": "end"}],
}


@dataclass
class Order:
    """An input and an output."""

    amount: int
    note: str = ""


class Bill(msgspec.Struct):
    """Another one."""

    amount: int
    paid: bool = False


def endpoint(running: Sidecar) -> Endpoint:
    """Where the server is."""
    return Endpoint(running.address)


async def start(running: Sidecar, case_id: str = "c", data: Mapping[str, object] | None = None) -> None:
    """A case with one thing to do."""
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(ONE).encode()))
    request = pb.RunCaseRequest(spec_id="one", case_id=case_id, data_json=json.dumps(data or {"amount": 7}).encode())
    await running.cases.RunCase(request)


async def case_of(running: Sidecar, case_id: str = "c") -> pb.Case:
    """The case as it is."""
    return (await running.cases.GetCase(pb.GetCaseRequest(case_id=case_id))).case


async def until(met: Callable[[], bool]) -> None:
    """Something has to come true."""
    async with asyncio.timeout(WAIT_S):
        while not met():  # noqa: ASYNC110  # counters, which tell nobody
            await asyncio.sleep(0.01)


async def of_struct(bill: Bill) -> Bill:
    return Bill(bill.amount, True)


async def of_dataclass(order: Order) -> Order:
    return Order(order.amount + 1, "done")


async def of_dict(data: dict[str, int]) -> dict[str, int]:
    return {"twice": 2 * data["amount"]}


async def of_json(data: bytes) -> bytes:
    return data.replace(b"7", b"8")


async def of_job(job: Job) -> dict[str, object]:
    return {"told": [job.case_id, job.spec_id, job.task_id, job.attempt, job.redelivered]}


async def of_both(data: dict[str, object], job: Job) -> dict[str, object]:
    return {"both": [data["amount"], job.attempt]}


async def of_nothing() -> None:
    return None


def in_a_thread(data: dict[str, object]) -> dict[str, object]:
    return {"threaded": threading.current_thread() is not threading.main_thread()}


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (of_struct, {"amount": 7, "paid": True}),
        (of_dataclass, {"amount": 8, "note": "done"}),
        (of_dict, {"amount": 7, "twice": 14}),
        (of_json, {"amount": 8}),
        (of_job, {"amount": 7, "told": ["c", "one", "do", 1, False]}),
        (of_both, {"amount": 7, "both": [7, 1]}),
        (of_nothing, {"amount": 7}),
        (in_a_thread, {"amount": 7, "threaded": True}),
        (lambda data: {"seen": data["amount"]}, {"amount": 7, "seen": 7}),
    ],
)
async def test_input_and_output_are_what_the_handler_says(
    running: Sidecar, handler: Callable[..., object], expected: Mapping[str, object]
) -> None:
    await start(running)
    async with Worker(endpoint(running), {"do": handler}) as worker:
        await until(lambda: worker.completed == 1)
    case = await case_of(running)
    assert case.state == pb.CASE_STATE_COMPLETED
    assert json.loads(case.data_json) == expected


async def test_the_handler_of_the_workflow_goes_first(running: Sidecar) -> None:
    await start(running)

    async def wrong() -> None:
        raise AssertionError

    async with Worker(endpoint(running), {"do": wrong, "one/do": of_nothing}) as worker:
        await until(lambda: worker.completed == 1)


async def test_failures_are_told_and_retried(running: Sidecar) -> None:
    attempts: list[int] = []

    async def stubborn(job: Job) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1:
            raise KeyError("where is it")
        raise Failed("broken", "for good", permanent=True, data={"part": 4})

    await start(running)
    async with Worker(endpoint(running), {"do": stubborn}) as worker:
        await until(lambda: worker.failed == 2)
    assert attempts == [1, 2]
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="c", event_types=["item_failed"]))
    told = [json.loads(event.data_json) for event in history.events]
    assert [(each["code"], each["message"], each.get("data")) for each in told] == [
        ("KeyError", "'where is it'", None),
        ("broken", "for good", {"part": 4}),
    ]
    assert (await case_of(running)).open_incident_count == 1


@pytest.mark.parametrize(
    ("handler", "data", "code"),
    [
        (of_struct, {"amount": "much"}, "invalid_input"),
        (lambda data: [1], {}, "invalid_output"),
        (lambda data: object(), {}, "TypeError"),
    ],
)
async def test_what_does_not_fit_is_a_failure(
    running: Sidecar, handler: Callable[..., object], data: Mapping[str, object], code: str
) -> None:
    await start(running, data=data)
    async with Worker(endpoint(running), {"do": handler}) as worker:
        await until(lambda: worker.failed >= 1)
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="c", event_types=["item_failed"]))
    assert json.loads(history.events[0].data_json)["code"] == code


async def test_a_lease_lasts_as_long_as_the_work(tmp_path: Path) -> None:
    """The work takes four leases by the engine's clock, which goes on when the lease was extended."""
    clock = VirtualClock()
    async with sidecar(str(tmp_path / "store"), clock=clock) as running:

        async def slow(job: Job) -> dict[str, object]:
            assert running.engine is not None
            for _ in range(8):
                clock.advance(LEASE_NS / 2e9)
                async with asyncio.timeout(WAIT_S):
                    item = await running.engine.get_work_item(job.item_id)
                    while item.leased_until < clock.now() + LEASE_NS:  # it tells nobody
                        await asyncio.sleep(0.01)
                        item = await running.engine.get_work_item(job.item_id)
            return {"attempt": job.attempt}

        await start(running)
        async with Worker(endpoint(running), {"do": slow}, lease=LEASE_NS / 1e9) as worker:
            await until(lambda: worker.completed == 1)
        assert json.loads((await case_of(running)).data_json)["attempt"] == 1


async def test_stopping_finishes_what_is_under_way(running: Sidecar) -> None:
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.3)

    await start(running)
    async with Worker(endpoint(running), {"do": slow}) as worker:
        await begun.wait()
    assert worker.completed == 1
    assert (await case_of(running)).state == pb.CASE_STATE_COMPLETED
    await worker.wait()


async def test_what_does_not_finish_in_time_is_given_back_and_somebody_else_does_it(running: Sidecar) -> None:
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.sleep(WAIT_S * 10)

    await start(running)
    async with Worker(endpoint(running), {"do": endless}, grace=0.1):
        await begun.wait()
    async with Worker(endpoint(running), {"do": of_job}) as other:
        await until(lambda: other.completed == 1)
    assert json.loads((await case_of(running)).data_json)["told"][3] == 2


async def test_cancelled_work_stops_its_handler(running: Sidecar) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(WAIT_S * 10)
        finally:
            stopped.set()

    await start(running)
    async with Worker(endpoint(running), {"do": endless}):
        await begun.wait()
        await running.cases.CancelCase(pb.CancelCaseRequest(case_id="c"))
        async with asyncio.timeout(WAIT_S):
            await stopped.wait()


async def test_at_most_credit_handlers_run_at_once(running: Sidecar) -> None:
    at_once, most, full = 0, 0, asyncio.Event()

    async def counted() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0.01)
        at_once -= 1

    for number in range(12):
        await start(running, f"c-{number}")
    async with Worker(endpoint(running), {"do": counted}, credit=3) as worker:
        await until(lambda: worker.completed == 12)
    assert most == 3


async def test_a_worker_that_makes_no_sense_is_refused(running: Sidecar) -> None:
    async with Worker(endpoint(running), {"do": of_nothing}, lease=5_000) as worker:
        with pytest.raises(Refused, match="lease"):
            await worker.wait()
    with pytest.raises(ValueError, match="handler"):
        Worker(endpoint(running), {})


async def test_without_a_daemon_a_worker_waits_for_one(running: Sidecar) -> None:
    await start(running)
    found = Endpoint("127.0.0.1:1")
    async with Worker(lambda: found, {"do": of_nothing}) as worker:
        await asyncio.sleep(0.3)
        assert not worker.completed
        found = endpoint(running)
        await until(lambda: worker.completed == 1)


class _Unspeakable(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def no_unicode() -> None:
    raise LookupError("no file " + b"/nowhere/\xff".decode(errors="surrogateescape"))


def loud() -> None:
    raise ValueError("x" * 6_000_000)


def speechless() -> None:
    raise _Unspeakable


def failing(failure: Failed) -> Callable[[], None]:
    """A handler that says so."""

    def handler() -> None:
        raise failure

    return handler


LARGE = "x" * 5_000_000
DEEP = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("handler", "code", "said"),
    [
        (no_unicode, "LookupError", "nowhere/\\udcff"),
        (loud, "ValueError", "xxx"),
        (speechless, "_Unspeakable", "RuntimeError"),
        (failing(Failed("broken", data={"what": object()})), "invalid_failure", "it was: broken"),
        (failing(Failed("broken", data={"what": LARGE})), "invalid_failure", "at most 2,097,152"),
        (failing(Failed("broken", "why", retry_after=float("nan"))), "invalid_failure", "it was: why"),
        (failing(Failed("broken", "why", retry_after=-1)), "invalid_failure", "retry_after is -1"),
        (failing(Failed("two\nlines", "why")), "invalid_failure", "control characters"),
        (failing(Failed("\udcff", "why")), "\\udcff", "why"),
        (failing(Failed("c" * 300, LARGE)), "c" * 256, "xxx"),
        (lambda: b'{"cut": ', "invalid_output", "output_json"),
        (lambda: b'{"a": 1, "a": 2}', "invalid_output", "output_json"),
        (failing(Failed("broken", data={"deep": DEEP})), "invalid_failure", "data_json"),
        (lambda: {"large": LARGE}, "output_too_large", "at most 2,097,152"),
    ],
)
async def test_every_item_gets_a_result_and_the_next_one_its_turn(
    running: Sidecar, handler: Callable[[], object], code: str, said: str
) -> None:
    async def either(data: dict[str, object]) -> object:
        return await asyncio.to_thread(handler) if "odd" in data else None

    await start(running, "odd", {"odd": True})
    async with Worker(endpoint(running), {"do": either}, credit=1) as worker:
        await until(lambda: worker.failed >= 1)
        await start(running, "plain", {"plain": True})
        await until(lambda: worker.completed == 1)
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="odd", event_types=["item_failed"]))
    failure = json.loads(history.events[0].data_json)
    assert failure["code"] == code
    assert said in failure["message"]
    assert len(failure["message"]) <= MESSAGE_BYTES_MAX


def test_a_worker_sends_no_more_than_the_engine_takes() -> None:
    assert wire.CASE_DATA_BYTES_MAX == DATA_BYTES_MAX
    assert wire.ID_BYTES_MAX == CODE_BYTES_MAX
