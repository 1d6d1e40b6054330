"""StreamWorkItems over gRPC: what each part of a message does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.streams import closed_after
from knhk_sidecar.api.services.work_stream import EXTENSIONS_MAX, UNREAD_MAX, work_stream
from knhk_workflow import CallMeta
from tests.sidecar.services.server import Sidecar, info_of, refused

ROLE = ["clerk"]
PACK = {
    "id": "parcel",
    "tasks": {
        "pack": {"required_roles": ROLE, "retry": {"max_attempts": 2, "backoff": 0}},
        "ship": {"required_roles": ROLE},
    },
    "flows": [{"from": "start", "to": "pack"}, {"from": "pack", "to": "ship"}, {"from": "ship", "to": "end"}],
}
WAIT_S = 60.0
Stream = aio.StreamStreamCall[pb.StreamWorkItemsRequest, pb.StreamWorkItemsResponse]


class Worker:
    """One end of the stream, by hand."""

    def __init__(self, call: Stream) -> None:
        self.call = call
        self.credit = 0
        self.items: list[pb.LeasedWorkItem] = []
        self.receipts: list[pb.WorkItemReceipt] = []
        self.revoked: list[str] = []

    async def read(self) -> bool:
        """One message; false at the end."""
        try:
            response = await self.call.read()
        except aio.AioRpcError:
            return False
        if not isinstance(response, pb.StreamWorkItemsResponse):
            return False
        self.credit = response.credit
        self.items.extend(response.items)
        self.receipts.extend(response.receipts)
        self.revoked.extend(response.revoked_item_ids)
        return True

    async def get(self, count: int = 1) -> Sequence[pb.LeasedWorkItem]:
        """The next items."""
        async with asyncio.timeout(WAIT_S):
            while len(self.items) < count:
                assert await self.read()
        found, self.items = self.items[:count], self.items[count:]
        return found

    async def told(self, count: int = 1) -> Sequence[pb.WorkItemReceipt]:
        """The next receipts."""
        async with asyncio.timeout(WAIT_S):
            while len(self.receipts) < count:
                assert await self.read()
        found, self.receipts = self.receipts[:count], self.receipts[count:]
        return found

    async def send(self, request: pb.StreamWorkItemsRequest) -> None:
        """One message."""
        await self.call.write(request)


def wish(*tasks: str, credit: int = 10, worker_id: str = "", lease: int = 30) -> pb.StreamWorkItemsRequest:
    """The first message."""
    return pb.StreamWorkItemsRequest(
        subscribe=pb.WorkSubscription(
            tasks=tasks or ("pack", "ship"), credit=credit, worker_id=worker_id, lease=Duration(seconds=lease)
        )
    )


@asynccontextmanager
async def worker(running: Sidecar, first: pb.StreamWorkItemsRequest) -> AsyncIterator[Worker]:
    """A worker that has subscribed."""
    call: Stream = running.items.StreamWorkItems()  # type: ignore[call-arg]  # what is written follows
    made = Worker(call)
    await made.send(first)
    assert await made.read()
    yield made
    call.cancel()


async def cases(running: Sidecar, *names: str) -> None:
    """Cases that wait for being packed."""
    await running.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=json.dumps(PACK).encode()))
    for name in names:
        data = json.dumps({"name": name}).encode()
        await running.cases.RunCase(pb.RunCaseRequest(spec_id="parcel", case_id=name, data_json=data))


def done(*items: pb.LeasedWorkItem, **fields: str) -> pb.StreamWorkItemsRequest:
    """The results of items."""
    return pb.StreamWorkItemsRequest(
        completions=[
            pb.CompleteWorkItemRequest(
                item_id=each.item.item_id, attempt=each.item.attempt, output_json=json.dumps(fields).encode()
            )
            for each in items
        ]
    )


async def test_items_come_with_input_and_lease_and_results_get_receipts(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish(credit=5)) as one:
        items = await one.get(2)
        assert [json.loads(each.item.data_json) for each in items] == [{"name": "a"}, {"name": "b"}]
        assert {(each.item.task_id, each.item.state, each.redelivered) for each in items} == {
            ("pack", pb.WORK_ITEM_STATE_STARTED, False)
        }
        for each in items:
            lease = each.lease_expire_time.ToDatetime() - each.item.start_time.ToDatetime()
            assert timedelta(seconds=29) < lease < timedelta(seconds=31)
            shown = (await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=each.item.item_id))).item
            assert shown.lease_expire_time == each.lease_expire_time
        assert one.credit == 3
        await one.send(done(*items, packed="yes"))
        receipts = await one.told(2)
        assert [(each.item_id, each.attempt, each.HasField("error")) for each in receipts] == [
            (each.item.item_id, 1, False) for each in items
        ]
        assert all(each.sequence for each in receipts)
        shipped = await one.get(2)
        assert [each.item.task_id for each in shipped] == ["ship", "ship"]
        await one.send(done(*shipped))
        await one.told(2)
    for name in ("a", "b"):
        assert (await running.cases.GetCase(pb.GetCaseRequest(case_id=name))).case.state == pb.CASE_STATE_COMPLETED


async def test_a_result_twice_is_refused_unless_its_request_id_says_that_it_is_the_same(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish("pack")) as one:
        first, second = await one.get(2)
        message = done(first)
        await one.send(message)
        await one.send(message)
        told = await one.told(2)
        refusals = [each for each in told if each.HasField("error")]
        assert [info_of(each.error).reason for each in refusals] == ["WRONG_STATE"]
        message = done(second)
        message.request_id = "m-1"
        await one.send(message)
        await one.send(message)
        again = await one.told(2)
        assert [(each.sequence, each.HasField("error")) for each in again] == [(again[0].sequence, False)] * 2
        wrong = done(second)
        wrong.completions[0].attempt = 7
        await one.send(wrong)
        [stale] = await one.told()
        assert (stale.error.code, info_of(stale.error).reason) == (grpc.StatusCode.ABORTED.value[0], "STALE")


async def test_failures_return_to_the_offer_until_no_attempt_is_left(running: Sidecar) -> None:
    await cases(running, "a")
    async with worker(running, wish("pack", credit=1)) as one:
        [item] = await one.get()
        failure = pb.FailWorkItemRequest(item_id=item.item.item_id, attempt=1, code="wet", message="rain")
        await one.send(pb.StreamWorkItemsRequest(failures=[failure], request_id="f-1"))
        assert not (await one.told())[0].HasField("error")
        [again] = await one.get()
        assert again.item.attempt == 2
        failure = pb.FailWorkItemRequest(item_id=again.item.item_id, attempt=2, code="wet", permanent=True)
        await one.send(pb.StreamWorkItemsRequest(failures=[failure]))
        await one.told()
        case = (await running.cases.GetCase(pb.GetCaseRequest(case_id="a"))).case
        assert case.open_incident_count == 1


async def test_leases_are_extended_given_back_and_revoked(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish("pack", credit=2)) as one:
        first, second = await one.get(2)
        extension = pb.LeaseExtension(item_id=first.item.item_id, attempt=1, lease=Duration(seconds=3_000))
        await one.send(pb.StreamWorkItemsRequest(extensions=[extension]))
        [receipt] = await one.told()
        assert (receipt.item_id, receipt.sequence, receipt.HasField("error")) == (first.item.item_id, 0, False)
        shown = (await running.items.GetWorkItem(pb.GetWorkItemRequest(item_id=first.item.item_id))).item
        longer = shown.lease_expire_time.ToDatetime() - first.lease_expire_time.ToDatetime()
        assert longer > timedelta(seconds=2_900)
        back = pb.LeaseExtension(item_id=second.item.item_id, attempt=1, lease=Duration())
        unknown = pb.LeaseExtension(item_id="9.1.1@a", attempt=1)
        await one.send(pb.StreamWorkItemsRequest(extensions=[back, unknown]))
        kept, refused_ = await one.told(2)
        assert not kept.HasField("error")
        assert info_of(refused_.error).reason == "STALE"
        [again] = await one.get()
        assert (again.item.case_id, again.item.attempt) == (second.item.case_id, 2)
        await running.cases.CancelCase(pb.CancelCaseRequest(case_id="a"))
        async with asyncio.timeout(WAIT_S):
            while not one.revoked:
                assert await one.read()
        assert one.revoked == [first.item.item_id]
        assert one.credit == 1


async def test_credit_bounds_what_is_under_way_and_can_grow(running: Sidecar) -> None:
    await cases(running, *"abcd")
    async with worker(running, wish("pack", credit=1)) as one, worker(running, wish("pack", credit=1)) as other:
        [item] = await one.get()
        await other.get()
        assert one.credit == 0
        await one.send(done(item))
        await one.get()
        await one.send(pb.StreamWorkItemsRequest(add_credit=1))
        await one.get()


async def test_a_drained_worker_is_let_go_when_its_items_have_ended(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish("pack", credit=1)) as one:
        [item] = await one.get()
        await one.send(pb.StreamWorkItemsRequest(drain=True))
        await one.send(done(item))
        assert len(await one.told()) == 1
        while await one.read():
            assert not one.items
        assert await one.call.code() is grpc.StatusCode.OK


async def test_who_only_listens_is_let_go_when_its_credit_is_used_up(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish("pack", credit=1, worker_id="listener")) as one:
        await one.call.done_writing()
        [item] = await one.get()
        request = pb.CompleteWorkItemRequest(item_id=item.item.item_id)
        await running.items.CompleteWorkItem(request)
        while await one.read():
            assert not one.items
        assert await one.call.code() is grpc.StatusCode.OK


async def test_a_worker_that_comes_back_under_its_name_has_its_items(running: Sidecar) -> None:
    await cases(running, "a")
    async with worker(running, wish("pack", worker_id="w")) as one:
        [item] = await one.get()
    async with worker(running, wish("pack", worker_id="w")) as again:
        [same] = await again.get()
        assert (same.item.item_id, same.redelivered) == (item.item.item_id, True)
        async with worker(running, wish("pack", worker_id="w")) as twin:
            [same] = await twin.get()
            assert same.redelivered
            while await again.read():
                pass
            assert await again.call.code() is grpc.StatusCode.ABORTED
            await twin.send(done(same))
            assert not (await twin.told())[0].HasField("error")


async def test_a_worker_without_a_name_loses_its_items_with_the_stream(running: Sidecar) -> None:
    await cases(running, "a")
    async with worker(running, wish("pack")) as one:
        await one.get()
    async with worker(running, wish("pack")) as other:
        [item] = await other.get()
        assert (item.item.attempt, item.redelivered) == (2, False)


async def test_a_first_message_that_makes_no_sense_is_refused(running: Sidecar) -> None:
    async def opened(first: pb.StreamWorkItemsRequest) -> None:
        async for _ in running.items.StreamWorkItems(iter([first])):
            pass

    refusal = await refused(opened(pb.StreamWorkItemsRequest(add_credit=1)))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["subscribe"])
    refusal = await refused(opened(wish("pack", credit=0)))
    assert refusal.fields == ["subscribe.credit"]
    subscription = pb.WorkSubscription(connectors=["http"], credit=1)
    refusal = await refused(opened(pb.StreamWorkItemsRequest(subscribe=subscription)))
    assert refusal.info.metadata["feature"] == "WorkSubscription.connectors"
    async with worker(running, wish("pack")) as one:
        await one.send(wish("pack", worker_id="other"))
        while await one.read():
            pass
        assert await one.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_that_does_not_read_is_not_listened_to(running: Sidecar) -> None:
    """Its receipts would fill the memory; it goes on where it stopped once it reads."""
    await cases(running, "a")
    taken = 0

    async def requests() -> AsyncIterator[pb.StreamWorkItemsRequest]:
        nonlocal taken
        yield wish(worker_id="w")
        for _ in range(8):
            taken += 1
            yield pb.StreamWorkItemsRequest(extensions=[pb.LeaseExtension(item_id="1.1.1@b")] * EXTENSIONS_MAX)

    assert running.engine is not None
    async with closed_after(work_stream(running.engine, requests(), CallMeta())) as stream:
        await anext(stream)
        async with asyncio.timeout(WAIT_S):
            while taken < UNREAD_MAX // EXTENSIONS_MAX + 1:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0)
        for _ in range(3_000):
            await asyncio.sleep(0)
        assert taken == UNREAD_MAX // EXTENSIONS_MAX + 1
        found = 0
        async with asyncio.timeout(WAIT_S):
            while found < 8 * EXTENSIONS_MAX:
                found += len((await anext(stream)).receipts)


async def test_more_extensions_than_items_can_be_are_refused(running: Sidecar) -> None:
    async with worker(running, wish()) as one:
        many = [pb.LeaseExtension(item_id="1.1.1@b")] * (EXTENSIONS_MAX + 1)
        await one.send(pb.StreamWorkItemsRequest(extensions=many))
        while await one.read():
            pass
        assert await one.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_times_that_no_record_can_hold_are_refused_one_by_one(running: Sidecar) -> None:
    await cases(running, "a", "b")
    async with worker(running, wish(credit=2)) as one:
        items = await one.get(2)
        failures = [
            pb.FailWorkItemRequest(item_id=each.item.item_id, code="x", retry_after=Duration(seconds=seconds))
            for each, seconds in zip(items, (2**62, 5), strict=True)
        ]
        await one.send(pb.StreamWorkItemsRequest(failures=failures, request_id="r"))
        told = await one.told(2)
        assert sorted(receipt.HasField("error") for receipt in told) == [False, True]
