"""Who goes first when places are short, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.pipeline import Limits, Refusal
from knhk_sidecar.pipeline.admission import FAIR_EVERY, LATE_NS, LATE_OFTEN, LATE_STEP, MARGIN_NS, WORK_SECONDS, Admit
from knhk_sidecar.pipeline.call import Call, Request
from knhk_sidecar.pipeline.memory import MIB, Memory, limit_bytes, resident_bytes
from knhk_sidecar.pipeline.permissions import PERMISSIONS, Permission
from knhk_sidecar.pipeline.precedence import FINISH, READ, START, precedence_of
from knhk_workflow import Busy, DeadlineExceeded, LimitExceeded, WorkflowError
from tests.sidecar.pipeline.road import METHODS, Clock, Road, eventually

FINISHING = "WorkItemService/CompleteWorkItem"
STARTING = "CaseService/RunCase"
READING = "CaseService/ListCases"
NS = 1_000_000_000


class Desk:
    """An Admit around work that the test ends one by one; `order` is the order in which it began."""

    def __init__(self, in_flight: int = 1, queued: int = 64, memory: Memory | None = None) -> None:
        self.clock = Clock()
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.admit = Admit(
            self._work,
            now=self.clock,
            in_flight=in_flight,
            queued=queued,
            waiting=10,
            streams_per_connection=10,
            stream_messages=5,
            memory=memory,
        )

    async def _work(self, call: Call, request: Request) -> None:
        self.order.append(call.peer)
        await self._ends.setdefault(call.peer, asyncio.Event()).wait()

    def come(self, name: str, method: str, deadline: int = 0) -> asyncio.Task[object]:
        """A call of this name arrives."""
        about = METHODS[f"/knhk.sidecar.v1.{method}"]
        call = Call(about, protocol="grpc", peer=name, deadline=deadline)
        return asyncio.ensure_future(self.admit.run(call, about.request()))

    async def end(self, name: str) -> None:
        """It is done."""
        self._ends.setdefault(name, asyncio.Event()).set()
        for _ in range(4):
            await asyncio.sleep(0)


async def outcome(task: asyncio.Task[object]) -> str:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if not task.done():
        return "waits"
    error = task.exception()
    return type(error).__name__ if error is not None else "done"


def test_every_method_has_its_class() -> None:
    classes = {path: precedence_of(path.rpartition("/")[2], permission) for path, permission in PERMISSIONS.items()}
    assert {path: method.precedence for path, method in METHODS.items()} == {
        path: found for path, found in classes.items() if path in METHODS
    }
    for name in ("WorkItemService/CompleteWorkItem", "WorkItemService/FailWorkItem", "CaseService/TriggerCase"):
        assert classes[f"/knhk.sidecar.v1.{name}"] == FINISH
    for name in ("CaseService/CreateCase", "CaseService/RunCases", "PatternService/ExecutePattern"):
        assert classes[f"/knhk.sidecar.v1.{name}"] == START
    for name in ("CaseService/ListCases", "CaseService/GetCaseHistory", "WorkItemService/ListWorkItems"):
        assert classes[f"/knhk.sidecar.v1.{name}"] == READ
    assert precedence_of("SomethingNew", None) == READ
    assert precedence_of("SomethingNew", Permission.WORK_WRITE) == FINISH


async def test_finishing_before_starting_before_reading() -> None:
    desk = Desk()
    for name, method in (("0", READING), ("r1", READING), ("s1", STARTING), ("f1", FINISHING), ("s2", STARTING)):
        desk.come(name, method)
    await asyncio.sleep(0)
    desk.come("f2", FINISHING)
    await asyncio.sleep(0)
    for name in ("0", "f1", "f2", "s1", "s2", "r1"):
        await desk.end(name)
    assert desk.order == ["0", "f1", "f2", "s1", "s2", "r1"]
    assert (desk.admit.in_flight, desk.admit.queued) == (0, 0)


async def test_the_last_class_is_served_while_the_first_never_ends() -> None:
    desk = Desk()
    desk.come("f0", FINISHING)
    desk.come("reader", READING)
    desk.come("f1", FINISHING)
    await asyncio.sleep(0)
    for number in range(2 * FAIR_EVERY):
        desk.come(f"f{number + 2}", FINISHING)  # there is always one more
        await desk.end(desk.order[-1])
    assert "reader" in desk.order[: FAIR_EVERY + 1]


async def test_a_full_queue_refuses_the_last_class_first() -> None:
    desk = Desk(queued=16)
    desk.come("0", FINISHING)
    readers = [desk.come(f"r{number}", READING) for number in range(16)]
    assert await outcome(desk.come("r16", READING)) == "Busy"
    finishing = [desk.come(f"f{number}", FINISHING) for number in range(14)]
    assert [await outcome(each) for each in finishing] == ["waits"] * 14
    assert [await outcome(each) for each in readers] == ["waits"] * 2 + ["Busy"] * 14, (
        "the newest first, down to a share"
    )
    assert await outcome(desk.come("f14", FINISHING)) == "Busy"
    assert desk.admit.queued_of(READ) == 2


async def test_each_class_has_its_share_of_the_queue() -> None:
    desk = Desk(queued=16)
    desk.come("0", FINISHING)
    finishing = [desk.come(f"f{number}", FINISHING) for number in range(16)]
    await asyncio.sleep(0)
    readers = [desk.come(f"r{number}", READING) for number in range(3)]
    assert [await outcome(each) for each in readers] == ["waits", "waits", "Busy"]
    assert [await outcome(each) for each in finishing] == ["waits"] * 14 + ["Busy"] * 2


async def test_what_expired_is_dropped_without_a_turn() -> None:
    desk = Desk()
    desk.come("0", STARTING)
    late = [desk.come(f"late{number}", FINISHING, desk.clock.time + 10) for number in range(5)]
    good = desk.come("good", READING, desk.clock.time + NS)
    await asyncio.sleep(0)
    desk.clock.time += 11
    await desk.end("0")
    assert [await outcome(each) for each in late] == ["DeadlineExceeded"] * 5
    assert desk.order == ["0", "good"]
    assert desk.admit.expired == 5
    await desk.end("good")
    assert await outcome(good) == "done"
    assert (desk.admit.in_flight, desk.admit.queued) == (0, 0)


async def test_under_overload_no_answer_is_made_that_comes_too_late() -> None:
    desk = Desk(in_flight=1_000)
    soon = MARGIN_NS // 2

    def comes(name: str, left: int) -> asyncio.Task[object]:
        return desk.come(name, READING, desk.clock.time + left)

    assert await outcome(comes("short, while all is well", soon)) == "waits"
    for number in range(LATE_OFTEN // LATE_STEP):
        assert await outcome(comes(f"expired {number}", 0)) == "DeadlineExceeded"
    assert await outcome(comes("short", soon)) == "DeadlineExceeded"
    for number in range(LATE_OFTEN):
        assert await outcome(comes(f"long {number}", NS)) == "waits"
    assert await outcome(comes("short, and it is over", soon)) == "waits"
    for name in tuple(desk.order):
        await desk.end(name)
    assert desk.admit.in_flight == 0


async def test_an_overload_that_is_over_is_forgotten_without_a_call_that_has_time() -> None:
    """Callers that all have little time would else be refused for ever, after a moment or by one who asks for it."""
    desk = Desk(in_flight=1_000)
    for number in range(10 * LATE_OFTEN):
        assert await outcome(desk.come(f"expired {number}", READING, desk.clock.time)) == "DeadlineExceeded"
    assert await outcome(desk.come("short", READING, desk.clock.time + MARGIN_NS // 2)) == "DeadlineExceeded"
    desk.clock.time += LATE_NS
    assert await outcome(desk.come("later", READING, desk.clock.time + MARGIN_NS // 2)) == "waits"
    await desk.end("later")


async def test_callers_that_leave_at_any_moment_lose_no_place() -> None:
    desk = Desk(in_flight=2, queued=8)
    for start in range(40):
        calls = [desk.come(f"{start}-{number}", (FINISHING, STARTING, READING)[number % 3]) for number in range(9)]
        await asyncio.sleep(0)
        await desk.end(f"{start}-0")
        for call in calls[1 + start % 5 :: 2]:
            call.cancel()
        for number in range(9):
            await desk.end(f"{start}-{number}")
        await asyncio.gather(*calls, return_exceptions=True)
        assert (desk.admit.in_flight, desk.admit.queued) == (0, 0)
        assert not any(desk.admit.queued_of(each) for each in (FINISH, START, READ))


async def test_while_memory_is_short_only_new_work_is_refused() -> None:
    used = 600
    memory = Memory(1_000, 50, resident=lambda: used)
    desk = Desk(in_flight=10, memory=memory)
    assert await outcome(desk.come("s", STARTING)) == "MemoryShort"
    assert await outcome(desk.come("f", FINISHING)) == "waits"
    assert await outcome(desk.come("r", READING)) == "waits"
    used = 480
    memory.look()
    assert memory.short, "it does not flutter"
    used = 470
    memory.look()
    assert await outcome(desk.come("s2", STARTING)) == "waits"
    assert "s2" in desk.order
    for name in ("f", "r", "s2"):
        await desk.end(name)


async def test_a_stream_that_starts_cases_waits_while_memory_is_short() -> None:
    used = 0
    memory = Memory(1_000, 50, resident=lambda: used)
    road = Road()
    road.pipeline._admit._memory = memory

    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        nonlocal used
        yield pb.StreamRunCaseRequest(correlation_id="1")
        used = 900
        memory.look()
        yield pb.StreamRunCaseRequest(correlation_id="2")

    stream = asyncio.ensure_future(road.pipeline.run(road.call("StreamRunCase"), requests()))
    await eventually(lambda: used > 0 and len(road.sent) > 0)
    await asyncio.sleep(0.01)
    assert len(road.sent) == 1
    used = 0
    memory.look()
    await stream
    assert len(road.sent) == 2


async def test_a_stream_has_an_end() -> None:
    road = Road(limits=Limits(stream_messages=3))

    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        for number in range(5):
            yield pb.StreamRunCaseRequest(correlation_id=str(number))

    with pytest.raises(Refusal) as caught:
        await road.pipeline.run(road.call("StreamRunCase"), requests())
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(caught.value.error, LimitExceeded)
    assert "another stream" in caught.value.error.message
    assert len(road.sent) == 3


def test_the_memory_limit_is_the_least_of_all() -> None:
    assert 0 < resident_bytes() < 1 << 40
    assert limit_bytes(64 * MIB) <= 64 * MIB
    unlimited = limit_bytes()
    assert unlimited == 0 or unlimited >= 16 * MIB


def test_refusals_are_of_the_kind_that_is_tried_again() -> None:
    kinds: list[type[WorkflowError]] = [Busy, DeadlineExceeded]
    assert all(kind.retry for kind in kinds)


async def running_case(desk: Desk, name: str, deadline: int = 0) -> asyncio.Task[object]:
    """RunCase with the least wait that there is."""
    about = METHODS["/knhk.sidecar.v1.CaseService/RunCase"]
    call = Call(about, protocol="grpc", peer=name, deadline=deadline)
    request = pb.RunCaseRequest(spec_id="s")
    request.wait.nanos = 1
    return asyncio.ensure_future(desk.admit.run(call, request))


async def test_who_works_before_it_waits_takes_its_turn() -> None:
    desk = Desk(queued=1)
    desk.come("0", READING)
    await asyncio.sleep(0)
    late = await running_case(desk, "w", deadline=desk.clock.time + 10)
    assert await outcome(late) == "waits"
    assert desk.order == ["0"]
    desk.clock.time += 11
    await desk.end("0")
    assert await outcome(late) == "DeadlineExceeded"
    assert (desk.order, desk.admit.in_flight, desk.admit.waiting) == (["0"], 0, 0)


async def test_who_still_runs_after_its_work_waits_for_free() -> None:
    desk = Desk()
    waiting = await running_case(desk, "w")
    await eventually(lambda: desk.order == ["w"])
    assert (desk.admit.in_flight, desk.admit.waiting) == (1, 1)
    desk.come("1", READING)
    await eventually(lambda: desk.order == ["w", "1"])  # without "w" having ended
    await desk.end("w")
    assert await outcome(waiting) == "done"
    assert (desk.admit.in_flight, desk.admit.waiting) == (1, 0)
    await desk.end("1")
    assert desk.admit.in_flight == 0


async def test_who_is_done_soon_gives_its_place_back_once() -> None:
    desk = Desk()
    waiting = await running_case(desk, "w")
    await eventually(lambda: desk.order == ["w"])
    await desk.end("w")
    assert await outcome(waiting) == "done"
    await asyncio.sleep(2 * WORK_SECONDS)
    assert (desk.admit.in_flight, desk.admit.waiting) == (0, 0)
