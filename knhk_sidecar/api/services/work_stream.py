"""StreamWorkItems: one worker's channel, both ways.

What the worker sends is read in order; results of several messages are on their way to the engine at once, within a
bound, and each message's results together. What it is sent is collected while the connection is busy: items, receipts
and revocations that are there go in one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.faults import to_status
from knhk_workflow import (
    CallMeta,
    CompleteRequest,
    FailRequest,
    InvalidInput,
    LimitExceeded,
    WorkflowEngine,
    WorkflowError,
    WorkItemView,
    WorkSession,
)

MESSAGES_MAX: Final = 16  # of one worker, whose results are on their way; then it has to wait
RECEIPTS_MAX: Final = 1_000  # in one message to the worker, as many as results in one message of it
UNREAD_MAX: Final = 20_000  # receipts that wait for the worker to read them; beyond that it is not listened to
EXTENSIONS_MAX: Final = 10_000  # in one message: as many items as a worker can have
EXTENSIONS_AT_ONCE: Final = 64  # about 1 ms of the event loop
ITEMS_BYTES: Final = 1024 * 1024  # of input in one message to the worker; one more item still fits gRPC's 4 MB


async def work_stream(
    engine: WorkflowEngine, requests: AsyncIterator[pb.StreamWorkItemsRequest], meta: CallMeta
) -> AsyncIterator[pb.StreamWorkItemsResponse]:
    """Answers a worker until it goes, has drained, or the engine ends."""
    first = await anext(requests, None)
    if first is None:
        return
    if not first.HasField("subscribe"):
        raise InvalidInput.field("subscribe", "is missing", "the first message says what the worker wants")
    session = await engine.open_work(wire.subscription(first.subscribe), meta=meta)
    channel = _Channel(session)
    reader = asyncio.create_task(channel.read(first, requests))
    reader.add_done_callback(lambda _: session.news.set())
    try:
        yield channel.welcome()
        while True:
            await session.news.wait()
            for response in channel.responses():
                yield response
            if reader.done() and not reader.cancelled() and (failure := reader.exception()) is not None:
                raise failure
            if session.error is not None:
                raise session.error
            if session.finished and not channel.busy:
                for response in channel.responses():
                    yield response
                return
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        channel.stop()
        await session.close()


class _Channel:
    """What goes through one stream."""

    def __init__(self, session: WorkSession) -> None:
        self._session = session
        self._room = asyncio.Semaphore(MESSAGES_MAX)
        self._running: set[asyncio.Task[None]] = set()
        self._receipts: list[pb.WorkItemReceipt] = []
        self._sent = asyncio.Event()
        self._told = -1  # the credit that the worker knows of

    @property
    def busy(self) -> bool:
        """Results are on their way."""
        return bool(self._running)

    async def read(self, first: pb.StreamWorkItemsRequest, requests: AsyncIterator[pb.StreamWorkItemsRequest]) -> None:
        """Take what the worker sends, until it has nothing more to say. Raises InvalidInput for what makes no sense."""
        await self._take(first)
        async for request in requests:
            if request.HasField("subscribe"):
                self._session.subscribe(wire.subscription(request.subscribe))
            await self._take(request)
            while len(self._receipts) > UNREAD_MAX:  # it does not read: then it has to wait
                self._sent.clear()
                await self._sent.wait()
        while self._running:
            await asyncio.wait(self._running)
        self._session.no_more()

    def welcome(self) -> pb.StreamWorkItemsResponse:
        """What tells the worker that it is subscribed."""
        self._told = self._session.credit
        return pb.StreamWorkItemsResponse(credit=self._told)

    def responses(self) -> list[pb.StreamWorkItemsResponse]:
        """What is there to say, in messages of a good size."""
        delivery = self._session.take()
        receipts, self._receipts = self._receipts, []
        self._sent.set()
        found: list[pb.StreamWorkItemsResponse] = []
        items: list[pb.LeasedWorkItem] = []
        size = 0
        for each in delivery.items:
            items.append(wire.leased_item(each))
            size += len(each.item.data)
            if size >= ITEMS_BYTES:
                found.append(pb.StreamWorkItemsResponse(items=items, credit=delivery.credit))
                items, size = [], 0
        while len(receipts) > RECEIPTS_MAX:
            found.append(pb.StreamWorkItemsResponse(receipts=receipts[:RECEIPTS_MAX], credit=delivery.credit))
            receipts = receipts[RECEIPTS_MAX:]
        if items or receipts or delivery.revoked or (not found and delivery.credit != self._told):
            found.append(
                pb.StreamWorkItemsResponse(
                    items=items, receipts=receipts, revoked_item_ids=delivery.revoked, credit=delivery.credit
                )
            )
        self._told = delivery.credit
        return found

    def stop(self) -> None:
        """Nobody waits for the receipts any more. Results that the engine has begun to commit are finished there."""
        for task in self._running:
            task.cancel()

    async def _take(self, request: pb.StreamWorkItemsRequest) -> None:
        """One message: its results go together, the rest happens at once."""
        session = self._session
        if len(request.completions) + len(request.failures) > wire.BATCH_MAX:
            count = len(request.completions) + len(request.failures)
            raise LimitExceeded("results in one message", wire.BATCH_MAX, count, "send several messages")
        if len(request.extensions) > EXTENSIONS_MAX:
            count = len(request.extensions)
            raise LimitExceeded("extensions in one message", EXTENSIONS_MAX, count, "send several messages")
        if request.completions or request.failures:
            await self._room.acquire()
            task = asyncio.create_task(self._results(request))
            self._running.add(task)
            task.add_done_callback(self._over)
        for index, extension in enumerate(request.extensions):
            if index % EXTENSIONS_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                wire.present_attempt(wire.item_id(extension.item_id), extension.attempt)
                given = extension.HasField("lease")
                session.extend(extension.item_id, wire.duration_ns(extension.lease, "lease") if given else None)
                self._receipts.append(_receipt(extension.item_id, extension.attempt))
            except WorkflowError as error:
                self._receipts.append(_receipt(extension.item_id, extension.attempt, error=error))
        if request.extensions:
            session.news.set()
        if request.add_credit:
            session.add_credit(request.add_credit)
        if request.drain:
            session.drain()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()
        self._session.news.set()

    async def _results(self, request: pb.StreamWorkItemsRequest) -> None:
        completions, failures = request.completions, request.failures
        receipts: list[pb.WorkItemReceipt | None] = [None] * (len(completions) + len(failures))
        meta = self._session.meta
        done: list[tuple[int, CompleteRequest]] = []
        failed: list[tuple[int, FailRequest]] = []
        for index, completion in enumerate(completions):
            try:
                done.append((index, wire.streamed_completion(completion, request.request_id, index, meta)))
            except WorkflowError as error:
                receipts[index] = _receipt(completion.item_id, completion.attempt, error=error)
        for index, failure in enumerate(failures):
            try:
                failed.append((index, wire.streamed_failure(failure, request.request_id, index, meta)))
            except WorkflowError as error:
                receipts[len(completions) + index] = _receipt(failure.item_id, failure.attempt, error=error)
        answers = await self._session.complete([asked for _, asked in done])
        for (index, _), answer in zip(done, answers, strict=True):
            receipts[index] = _outcome(completions[index].item_id, completions[index].attempt, answer)
        answers = await self._session.fail([asked for _, asked in failed])
        for (index, _), answer in zip(failed, answers, strict=True):
            receipts[len(completions) + index] = _outcome(failures[index].item_id, failures[index].attempt, answer)
        self._receipts += [receipt for receipt in receipts if receipt is not None]


def _outcome(name: str, attempt: int, answer: WorkItemView | WorkflowError) -> pb.WorkItemReceipt:
    if isinstance(answer, WorkflowError):
        return _receipt(name, attempt, error=answer)
    return _receipt(name, answer.attempt, answer.case_sequence)


def _receipt(name: str, attempt: int, sequence: int = 0, error: WorkflowError | None = None) -> pb.WorkItemReceipt:
    return pb.WorkItemReceipt(
        item_id=name, attempt=attempt, sequence=sequence, error=to_status(error) if error is not None else None
    )
