"""Streams: many calls over one, and watching, with readers who are slow and readers who leave."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import TypeVar

import grpc
import pytest
from grpc import aio

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.streams import QUIET, Tell, followed, multiplexed
from tests.sidecar.services.server import Sidecar, info_of, refusal_of
from tests.simulation.loop import in_virtual_time

A = TypeVar("A")


async def numbers(count: int) -> AsyncIterator[int]:
    for n in range(count):
        yield n


async def collected(events: AsyncIterator[A]) -> list[A]:
    return [event async for event in events]


def test_answers_may_overtake_each_other_within_a_bound() -> None:
    under_way = most = 0

    async def carry_out(n: int, _: Tell[int]) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02 if n % 10 == 0 else 0)
        under_way -= 1
        return n

    found = in_virtual_time(collected(multiplexed(numbers(100), carry_out, limit=8)))
    assert sorted(found) == list(range(100))
    assert found != sorted(found)
    assert 2 <= most <= 8


def test_who_does_not_take_answers_gets_no_more_work_done() -> None:
    begun = 0

    async def carry_out(n: int, _: Tell[int]) -> int:
        nonlocal begun
        begun += 1
        return n

    async def take_one() -> None:
        answers = multiplexed(numbers(1_000), carry_out, limit=4)
        assert await anext(answers) == 0
        await asyncio.sleep(1)
        assert begun == 4
        await answers.aclose()
        assert begun == 4

    in_virtual_time(take_one())


async def test_leaving_cancels_what_is_under_way() -> None:
    cancelled = 0

    async def carry_out(n: int, _: Tell[int]) -> int:
        nonlocal cancelled
        if n == 0:
            return n
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return n

    before = len(asyncio.all_tasks())
    answers = multiplexed(numbers(5), carry_out)
    assert await anext(answers) == 0
    await answers.aclose()
    assert cancelled == 4
    assert len(asyncio.all_tasks()) == before


async def test_a_stream_of_requests_that_breaks_ends_the_stream_of_answers() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def carry_out(n: int, _: Tell[int]) -> int:
        return n

    answers = multiplexed(broken(), carry_out)
    assert await anext(answers) == 1
    with pytest.raises(ConnectionError):
        await anext(answers)


class TooSlow(Exception):
    """Cut off."""


def test_a_slow_reader_is_cut_off_and_a_brisk_one_is_not() -> None:
    async def slowly() -> None:
        slow = followed(numbers(1_000), TooSlow, buffered=5, patience_s=0.02)
        assert await anext(slow) == 0
        await asyncio.sleep(0.05)
        with pytest.raises(TooSlow):
            await anext(slow)

    in_virtual_time(slowly())
    brisk = followed(numbers(1_000), TooSlow, buffered=5, patience_s=5)
    assert in_virtual_time(collected(brisk)) == list(range(1_000))


def test_silence_is_broken_by_signs_of_life() -> None:
    async def rare() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.1)
        yield 2

    assert in_virtual_time(collected(followed(rare(), TooSlow, quiet_s=0.03))) == [1, QUIET, QUIET, QUIET, 2]


async def test_cases_run_over_one_stream_with_their_correlation_ids(running: Sidecar) -> None:
    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        for n in range(200):
            spec = "unknown" if n % 50 == 7 else "routing"
            run = pb.RunCaseRequest(spec_id=spec, case_id=f"s-{n}")
            yield pb.StreamRunCaseRequest(correlation_id=str(n), request_id=f"r-{n}", run=run)

    answers = {answer.correlation_id: answer async for answer in running.cases.StreamRunCase(requests())}
    assert len(answers) == 200
    for n in range(200):
        answer = answers[str(n)]
        if n % 50 == 7:
            assert info_of(answer.error).reason == "NOT_FOUND"
        else:
            assert answer.response.case.case_id == f"s-{n}"
            assert answer.response.case.state == pb.CASE_STATE_COMPLETED


async def test_a_cancelled_stream_harms_nobody(running: Sidecar) -> None:
    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        for n in range(100_000):
            yield pb.StreamRunCaseRequest(correlation_id=str(n), run=pb.RunCaseRequest(spec_id="routing"))

    call = running.cases.StreamRunCase(requests())
    seen = 0
    async for _ in call:
        seen += 1
        if seen == 20:
            call.cancel()
            break
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", case_id="after"))
    assert run.case.state == pb.CASE_STATE_COMPLETED


async def test_a_watched_case_tells_everything_and_ends_with_it(running: Sidecar) -> None:
    run = await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval", case_id="w"))
    watch = running.cases.WatchCase(pb.WatchCaseRequest(case_id="w"))
    past = [(await anext(aiter(watch))).event.sequence for _ in range(run.case.sequence)]
    assert past == list(range(1, run.case.sequence + 1))
    item = run.open_work_items[0].item_id
    await running.items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item))
    rest = [answer async for answer in watch]
    history = await running.cases.GetCaseHistory(pb.GetCaseHistoryRequest(case_id="w"))
    assert [answer.event for answer in rest] == list(history.events)[len(past) :]
    assert rest[-1].sequence == history.last_sequence
    resumed = running.cases.WatchCase(
        pb.WatchCaseRequest(case_id="w", after_sequence=rest[0].sequence, event_types=["state_changed"])
    )
    assert [answer.event.event_type async for answer in resumed] == ["state_changed"]


async def test_watching_nothing_says_so(running: Sidecar) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await anext(aiter(running.cases.WatchCase(pb.WatchCaseRequest(case_id="nobody"))))
    assert refusal_of(caught.value).code is grpc.StatusCode.NOT_FOUND


async def test_all_cases_are_watched_from_now_on_and_from_a_token(running: Sidecar) -> None:
    await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", case_id="before"))
    wanted = pb.WatchCasesRequest(filter=pb.CaseFilter(spec_id="routing"), event_types=["case_created"])
    watch = running.cases.WatchCases(wanted)
    start = await anext(aiter(watch))
    assert start.resume_token
    assert not start.HasField("event")
    for n in range(3):
        await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", case_id=f"w-{n}"))
        await running.cases.RunCase(pb.RunCaseRequest(spec_id="approval"))
    seen = [await anext(aiter(watch)) for _ in range(3)]
    assert [answer.event.case_id for answer in seen] == ["w-0", "w-1", "w-2"]
    watch.cancel()
    wanted.resume_token = start.resume_token
    again = running.cases.WatchCases(wanted)
    assert (await anext(aiter(again))).event.case_id == "w-0"
    again.cancel()
    wanted.resume_token = seen[0].resume_token
    resumed = running.cases.WatchCases(wanted)
    first = await anext(aiter(resumed))
    assert first.event.case_id == "w-1"
    resumed.cancel()


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (pb.WatchCasesRequest(filter=pb.CaseFilter(states=[pb.CASE_STATE_RUNNING])), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.WatchCasesRequest(resume_token="%%"), grpc.StatusCode.INVALID_ARGUMENT),
        *(
            (pb.WatchCasesRequest(resume_token=b64encode(positions).decode()), grpc.StatusCode.INVALID_ARGUMENT)
            for positions in (
                b'{"0":[-5,0]}',
                b'{"0":[0,-1]}',
                b'{"0":[99999999999999999999,0]}',
                b'{"0":[1000000,0]}',
                b'{"0":7}',
                b'{"7":[1,0]}',
                b"{}",
            )
        ),
    ],
)
async def test_what_cannot_be_watched_is_refused(
    running: Sidecar, wanted: pb.WatchCasesRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await anext(aiter(running.cases.WatchCases(wanted)))
    assert caught.value.code() is code


async def test_a_watch_may_begin_at_the_beginning(running: Sidecar) -> None:
    for number in range(3):
        await running.cases.RunCase(pb.RunCaseRequest(spec_id="routing", case_id=f"old-{number}"))
    watch = running.cases.WatchCases(pb.WatchCasesRequest(from_start=True, event_types=["case_created"]))
    seen: list[str] = []
    async for message in watch:
        if message.HasField("event"):
            seen.append(message.event.case_id)
        if len(seen) == 3:
            break
    watch.cancel()
    assert seen == ["old-0", "old-1", "old-2"]
