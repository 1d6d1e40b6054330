"""The callers: a process of its own that keeps so many calls in flight and says how long they took.

Requests are serialized beforehand and answers are not parsed: the client shall not be what limits. What a slice of work
needs, cases to complete for example, is prepared before it and not timed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, cast

import grpc
import grpc.aio
import msgspec
import uvloop

from knhk_sidecar.api import pb
from knhk_sidecar.retries import Metadata, push_back
from tests.benchmark.empty import PATH as EMPTY
from tests.benchmark.empty import WORK_PATH as BUSY
from tests.benchmark.processes import Certificates, serve_questions
from tests.benchmark.samples import quantile
from tests.benchmark.workloads import BATCH, DATA, DOCUMENTS, OUTPUT, ROUTING, STEPWISE, TASKS, WORKED

Target = Literal["bare", "piped", "daemon"]
Work = Literal["empty", "busy", "step", "run", "batch", "stream", "get", "worker1", "worker8", "worker64"]
PER_MESSAGE: Final[Mapping[Work, int]] = {"worker1": 1, "worker8": 8, "worker64": 64}
"""Results in one message of a worker."""

PER_CONNECTION: Final = 64  # the server takes 100 at once on one connection, and 64 of one stream
CONNECTIONS: Final = 2
MANY_CONNECTIONS: Final = 8
DEADLINE_S: Final = 60.0  # every call has a deadline, as those of good clients do
GIVE_UP_S: Final = 60.0  # a server that has not recovered by then is reported with this time
MADE_TOGETHER: Final = 500
_CASES: Final = "/knhk.sidecar.v1.CaseService/"
_COMPLETE: Final = "/knhk.sidecar.v1.WorkItemService/CompleteWorkItem"


class Connect(msgspec.Struct, tag=True):
    """Where the servers are; registers the workflows."""

    bare: str
    piped: str
    daemon: str
    files: Certificates


class Prepare(msgspec.Struct, tag=True):
    """Get ready for `calls` calls of a kind, `in_flight` of them at once. The next `Go` makes them.

    With `many` over MANY_CONNECTIONS. With a `rate` they are begun so often per second, whatever becomes of others (an
    open loop); `deadline` is then each one's, in seconds, and what is counted are those that succeed.
    """

    target: Target
    work: Work
    in_flight: int
    calls: int
    many: bool = False
    rate: float = 0.0
    deadline: float = 0.0


class Recover(msgspec.Struct, tag=True):
    """Make one call after the other until one is answered within `good` seconds; how long that took."""

    target: Target
    work: Work
    good: float


class Go(msgspec.Struct, tag=True):
    """Make the prepared calls."""


class Done(msgspec.Struct):
    """A slice as the client saw it: calls made, seconds from first to last, and its own processor time."""

    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    p50_ms: float = 0.0
    refused: int = 0
    """Calls that the server refused before it began them; they were made again."""


class Client:
    """Connections to all servers, and the prepared slice."""

    def __init__(self) -> None:
        self._channels: dict[str, list[grpc.aio.Channel]] = {}
        self._slice: Callable[[], Awaitable[Done]] | None = None
        self._items: tuple[str, ...] = ()
        self._made = 0
        self._standing: list[str] = []

    async def answer(self, question: Connect | Prepare | Go | Recover) -> Done:
        """Does what is asked."""
        match question:
            case Connect():
                await self._connect(question)
            case Prepare():
                self._slice = await self._prepare(question)
                gc.collect()
            case Go():
                assert self._slice is not None
                return await self._slice()
            case Recover():
                path, (request,) = await self._requests(Prepare(question.target, question.work, 1, 1))
                call = self._channels[question.target][0].unary_unary(path, _as_is, _as_is)
                return await _recovered(call, request, question.good)
        return Done()

    async def close(self) -> None:
        """Ends the connections."""
        for channels in self._channels.values():
            for channel in channels:
                await channel.close(None)

    async def _connect(self, asked: Connect) -> None:
        credentials = await asyncio.to_thread(_credentials, asked.files)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        for target in ("bare", "piped", "daemon"):
            address: str = getattr(asked, target)
            self._channels[target] = [
                grpc.aio.secure_channel(address, credentials, [*options, ("grpc.max_receive_message_length", -1)])
                for _ in range(MANY_CONNECTIONS)
            ]
            for channel in self._channels[target]:
                await asyncio.wait_for(channel.channel_ready(), DEADLINE_S)
        first = self._channels["daemon"][0]
        workflows = pb.WorkflowServiceStub(first)
        for text in DOCUMENTS:
            await workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=text))
        self._items = await self._walk(pb.CaseServiceStub(first), pb.WorkItemServiceStub(first))

    async def _walk(self, cases: pb.CaseServiceAsyncStub, items: pb.WorkItemServiceAsyncStub) -> tuple[str, ...]:
        """The item ids of one case in the order of its tasks: those of every other case differ in the case only."""
        ran = await cases.RunCase(pb.RunCaseRequest(spec_id=STEPWISE, data_json=DATA))
        names = {item.task_id: item.item_id for item in ran.open_work_items}
        for task in TASKS:
            done = await items.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=names[task], output_json=OUTPUT))
            for item_id in done.opened_item_ids:
                found = await items.GetWorkItem(pb.GetWorkItemRequest(item_id=item_id))
                names[found.item.task_id] = item_id
        assert done.case_state == pb.CASE_STATE_COMPLETED
        return tuple(names[task].partition("@")[0] for task in TASKS)

    async def _prepare(self, asked: Prepare) -> Callable[[], Awaitable[Done]]:
        needed = MANY_CONNECTIONS if asked.many else min(CONNECTIONS, -(-asked.in_flight // PER_CONNECTION))
        channels = self._channels[asked.target][:needed]
        if asked.work == "stream":
            stubs = [channel.stream_stream(_CASES + "StreamRunCase", _as_is, _as_is) for channel in channels]
            return lambda: _stream(stubs, asked)
        if asked.work in PER_MESSAGE:
            count = -(-asked.calls // len(TASKS))
            await self._cases(count, WORKED)
            stub = pb.WorkItemServiceStub(channels[0])
            return lambda: _worker(stub, asked, count * len(TASKS), PER_MESSAGE[asked.work])
        if asked.work == "step":
            names = await self._cases(-(-asked.calls // len(TASKS)))
            orders = deque([self._completions(name) for name in names])
            path = _COMPLETE
        else:
            path, requests = await self._requests(asked)
            orders = deque([[request] for request in requests])
        calls = [channel.unary_unary(path, _as_is, _as_is) for channel in channels]
        if asked.rate:
            return lambda: _open_loop(calls, orders[0][0], asked)
        return lambda: _unary(calls, orders, asked.in_flight)

    async def _requests(self, asked: Prepare) -> tuple[str, list[bytes]]:
        match asked.work:
            case "empty" | "busy":
                return (EMPTY if asked.work == "empty" else BUSY), [b""] * asked.calls
            case "run":
                return _CASES + "RunCase", [_run().SerializeToString()] * asked.calls
            case "batch":
                request = pb.RunCasesRequest(cases=[_run()] * BATCH)
                return _CASES + "RunCases", [request.SerializeToString()] * asked.calls
            case _:
                if not self._standing:
                    self._standing = await self._cases(MADE_TOGETHER)
                asking = [pb.GetCaseRequest(case_id=name).SerializeToString() for name in self._standing]
                return _CASES + "GetCase", [asking[call % len(asking)] for call in range(asked.calls)]

    async def _cases(self, count: int, spec_id: str = STEPWISE) -> list[str]:
        """So many new cases that wait for A."""
        names = [f"bench-{os.getpid()}-{number}" for number in range(self._made, self._made + count)]
        self._made += count
        stub = pb.CaseServiceStub(self._channels["daemon"][0])
        for start in range(0, count, MADE_TOGETHER):
            together = [
                pb.RunCaseRequest(spec_id=spec_id, data_json=DATA, case_id=name)
                for name in names[start : start + MADE_TOGETHER]
            ]
            answer = await stub.RunCases(pb.RunCasesRequest(cases=together), timeout=DEADLINE_S)
            for result in answer.results:
                if result.HasField("error"):
                    raise RuntimeError(f"a case could not be made: {result.error.message}")
        return names

    def _completions(self, case_id: str) -> list[bytes]:
        return [
            pb.CompleteWorkItemRequest(item_id=f"{item}@{case_id}", output_json=OUTPUT).SerializeToString()
            for item in self._items
        ]


def _credentials(files: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        *(Path(name).read_bytes() for name in (files.ca, files.client_key, files.client))
    )


def _run() -> pb.RunCaseRequest:
    return pb.RunCaseRequest(spec_id=ROUTING, data_json=DATA)


_as_is = None  # bytes go and come as they are
Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Stream = grpc.aio.StreamStreamMultiCallable[bytes, bytes]


async def _worker(stub: pb.WorkItemServiceAsyncStub, asked: Prepare, steps: int, per_message: int) -> Done:
    """One worker does everything that is there. Each step is two durable ones: its start and its end."""
    inbox: asyncio.Queue[str] = asyncio.Queue()
    done = 0

    async def results() -> AsyncIterator[pb.StreamWorkItemsRequest]:
        tasks = [f"{WORKED}/{task}" for task in TASKS]
        yield pb.StreamWorkItemsRequest(subscribe=pb.WorkSubscription(tasks=tasks, credit=asked.in_flight))
        while True:
            names = [await inbox.get()]
            while len(names) < per_message and not inbox.empty():
                names.append(inbox.get_nowait())
            completions = [pb.CompleteWorkItemRequest(item_id=name, output_json=OUTPUT) for name in names]
            yield pb.StreamWorkItemsRequest(completions=completions)

    cpu, start = time.process_time(), time.perf_counter()
    stream = stub.StreamWorkItems(results(), timeout=DEADLINE_S)
    async for response in stream:
        for receipt in response.receipts:
            if receipt.HasField("error"):
                raise RuntimeError(f"a step failed: {receipt.error.message}")
            done += 1
        for item in response.items:
            inbox.put_nowait(item.item.item_id)
        if done == steps:
            break
    seconds = time.perf_counter() - start
    stream.cancel()
    return Done(done, seconds, time.process_time() - cpu)


async def _unary(calls: list[Unary], orders: deque[list[bytes]], in_flight: int) -> Done:
    """Workers take orders; the requests of one order go one after the other."""
    times: list[float] = []
    clock = time.perf_counter
    refused = 0

    async def again(call: Unary, request: bytes) -> None:
        nonlocal refused
        while True:
            try:
                await call(request, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                wait = push_back(cast(Metadata, error.trailing_metadata() or ()))
                if error.code() is not grpc.StatusCode.UNAVAILABLE and wait is None:
                    raise
                refused += 1
                await asyncio.sleep((wait or 0.0) * (1 + random.random()))
            else:
                return

    async def work(call: Unary) -> None:
        while orders:
            for request in orders.popleft():
                began = clock()
                await again(call, request)
                times.append(clock() - began)

    cpu, start = time.process_time(), clock()
    async with asyncio.TaskGroup() as group:
        for number in range(in_flight):
            group.create_task(work(calls[number % len(calls)]))
    return Done(len(times), clock() - start, time.process_time() - cpu, quantile(times, 0.5) * 1e3, refused)


async def _open_loop(calls: list[Unary], request: bytes, asked: Prepare) -> Done:
    """Calls begin at their time, whatever becomes of others. `refused` are those that did not succeed."""
    times: list[float] = []
    failed = 0
    clock = time.perf_counter

    async def one(call: Unary) -> None:
        nonlocal failed
        began = clock()
        try:
            await call(request, timeout=asked.deadline)
        except grpc.aio.AioRpcError:
            failed += 1
        else:
            times.append(clock() - began)

    cpu, start = time.process_time(), clock()
    running: set[asyncio.Task[None]] = set()
    for number in range(asked.calls):
        if (ahead := start + number / asked.rate - clock()) > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(one(calls[number % len(calls)]))
        running.add(task)
        task.add_done_callback(running.discard)
    seconds, done = clock() - start, len(times)
    spent = time.process_time() - cpu
    await asyncio.gather(*running)
    return Done(max(done, 1), seconds, spent, quantile(times, 0.5) * 1e3, failed)


async def _recovered(call: Unary, request: bytes, good: float) -> Done:
    start = time.perf_counter()
    while True:
        began = time.perf_counter()
        with suppress(grpc.aio.AioRpcError):
            await call(request, timeout=DEADLINE_S)
            if time.perf_counter() - began < good or began - start > GIVE_UP_S:
                return Done(1, began - start)


async def _stream(stubs: list[Stream], asked: Prepare) -> Done:
    """Each stream keeps its window full: an answer is followed by the next request."""
    request = pb.StreamRunCaseRequest(correlation_id="1", run=_run()).SerializeToString()
    times: list[float] = []
    clock = time.perf_counter

    async def work(stub: Stream, window: int, count: int) -> None:
        began: deque[float] = deque()
        call = stub(None, timeout=DEADLINE_S)
        sent = 0
        for received in range(-min(window, count), count):
            if received >= 0:
                answer = await call.read()
                if answer is grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                    raise RuntimeError(f"the stream ended after {received} answers: {await call.details()}")
                times.append(clock() - began.popleft())
            if sent < count:
                sent += 1
                began.append(clock())
                await call.write(request)
        await call.done_writing()
        await call.read()

    share, window = -(-asked.calls // len(stubs)), -(-asked.in_flight // len(stubs))
    cpu, start = time.process_time(), clock()
    async with asyncio.TaskGroup() as group:
        for stub in stubs:
            group.create_task(work(stub, window, share))
    return Done(len(times), clock() - start, time.process_time() - cpu, quantile(times, 0.5) * 1e3)


async def main() -> None:
    """Calls what the parent says until it closes the pipe."""
    client = Client()
    gc.freeze()
    await serve_questions(Connect | Prepare | Go | Recover, client.answer)  # type: ignore[arg-type]  # a union is no class to mypy
    await client.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
