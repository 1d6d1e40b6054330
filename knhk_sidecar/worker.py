"""A worker: Python functions that carry out tasks of workflows.

    async def pack(order: Order) -> Packed: ...

    async with Worker(endpoint, {"parcel/pack": pack}) as worker:
        await worker.wait()

A handler takes the item's input as what its first parameter is annotated with (dict, dataclass, msgspec.Struct,
TypedDict, or bytes for the JSON itself), and a `Job` where it asks for one; what it returns, an object of the same
kinds or None, is the item's output. A plain function runs in a thread, which goes on when nobody wants its result any
more. An exception fails the item: `Failed` as it says, any other with the name of its class as code. What the daemon
cannot take fails it for good, as `invalid_output`, `output_too_large` (2 MB) or `invalid_failure`.

The worker keeps its items' leases while it works on them, connects again after a pause when the connection breaks, and
goes on with what it has: results that were not acknowledged are sent again, items that were given to somebody else
meanwhile are dropped, and their handlers cancelled. A handler may therefore run more than once for the same work, its
result counts once. Leaving the block finishes what is under way, for at most `grace` seconds, and gives the rest back.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import re
import socket
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Final, Self, cast

import grpc
import msgspec
from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status
from grpc import aio

from knhk_sidecar.api import pb
from knhk_sidecar.bearer import NoToken, TokenSource, header_of
from knhk_sidecar.client import Endpoint, NotReachable, channel_options
from knhk_sidecar.credentials import LOOK_SECONDS, Way, Ways
from knhk_sidecar.retries import SPREAD, Metadata, asked_delay, push_back

Handler = Callable[..., object]
"""Takes the input, a `Job`, both or neither; returns the output, or an awaitable of it."""

Handlers = Mapping[str, Handler]
"""By task: `task`, or `workflow/task`, which goes first."""

Exchange = Callable[[AsyncIterator[pb.StreamWorkItemsRequest]], AsyncIterator[pb.StreamWorkItemsResponse]]
"""StreamWorkItems."""

Result = pb.CompleteWorkItemRequest | pb.FailWorkItemRequest
"""What became of an item."""

Connect = Callable[[], AbstractAsyncContextManager[Exchange]]
"""Makes a connection to a daemon; it is left when it breaks."""

RESULTS_MAX: Final = 1_000  # in one message: the contract's bound
RESULTS_BYTES: Final = 1024 * 1024  # in one message of several; a larger one goes alone
MESSAGE_BYTES: Final = 4 * 1024 * 1024  # what a daemon accepts that was not told otherwise
KEEPALIVE_MS: Final = 30_000  # a connection that is gone without a word is noticed; the daemon allows this often
PAUSE_FIRST_S: Final = 0.1  # before connecting again; doubles, and a random part of it is taken
PAUSE_MAX_S: Final = 10.0
BEATS: Final = 3  # extensions per lease: two may be lost
SETTLE_S: Final = 10.0  # for a moment without results on their way, before a connection is left for newer certificates
SETTLE_LOOK_S: Final = 0.005
RESULT_FRAME: Final = 8  # bytes around a result in a message
DATA_BYTES_MAX: Final = 2 * 1024 * 1024  # of an output: what the engine takes, as GetStatus says (case_data_bytes)
CODE_BYTES_MAX: Final = 256  # the engine's limit of an id
MESSAGE_BYTES_MAX: Final = 4_000  # of a failure, for people; the whole text is in this process's log
PAUSE_ASKED_MAX_S: Final = 9.2e9  # by a handler; 292 years, which the engine's nanoseconds hold
OUTPUT_TOO_LARGE: Final = "output_too_large"
INVALID_FAILURE: Final = "invalid_failure"  # the code of a failure that cannot be told as it is
TELL_S: Final = 5.0  # for the last results to be acknowledged when the worker stops
_NO_SENSE: Final = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_HOPELESS: Final = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)

_log = logging.getLogger("knhk_sidecar.worker")
_encode = msgspec.json.Encoder().encode
_LARGER = re.compile(r"larger than max \(\d+ vs\. (\d+)\)")  # as every gRPC server in C says it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Failed(Exception):
    """Raised by a handler: the item failed. `retry_after` in seconds; None = as the task's `retry` says."""

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        permanent: bool = False,
        retry_after: float | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        """`permanent`: trying again is pointless. `data`: what is known beyond the message, for the history."""
        super().__init__(message or code)
        self.code = code
        self.message = message
        self.permanent = permanent
        self.retry_after = retry_after
        self.data = data


class Refused(Exception):
    """The daemon does not want this worker as it is: what it asks for makes no sense there."""


class Job(msgspec.Struct, frozen=True):
    """The item that a handler works on. `data` is its input as JSON; `attempt` counts from 1."""

    item_id: str
    case_id: str
    spec_id: str
    task_id: str
    attempt: int
    data: bytes
    redelivered: bool


class Worker:
    """Carries out work items until it is stopped. Use as `async with`; `wait` returns when it has ended."""

    def __init__(
        self,
        endpoint: Endpoint | Callable[[], Endpoint] | Connect,
        handlers: Handlers,
        *,
        worker_id: str = "",
        credit: int = 32,
        lease: float = 30.0,
        roles: Iterable[str] = (),
        grace: float = 30.0,
    ) -> None:
        """`endpoint`: the daemon, or what says where it is each time the worker connects; it connects anew when its
        certificates change. `worker_id`: must be this worker's own; empty: host, process and a random part. `credit`:
        items at once. `lease`: seconds that an item stays with this worker when it is not heard of any more. `roles`:
        only items that one of them may take."""
        if not handlers:
            raise ValueError("a worker needs at least one handler")
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{random.getrandbits(32):08x}"
        self.completed = 0
        """Items whose output was taken."""
        self.failed = 0
        """Items whose failure was taken."""
        self.refused = 0
        """Results that came too late."""
        self._connect = _Daemon(endpoint, lambda: not self._results)
        self._handlers = {task: _Handler(handler) for task, handler in handlers.items()}
        self._subscription = pb.WorkSubscription(
            worker_id=self.worker_id,
            tasks=list(handlers),
            credit=credit,
            lease=_duration(lease),
            roles=list(roles),
        )
        self._lease = lease
        self._grace = grace
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._results: dict[str, Result] = {}  # not acknowledged yet
        self._unsent: dict[str, None] = {}  # those of them that go with the next message
        self._extensions: dict[str, pb.LeaseExtension] = {}
        self._returned: set[str] = set()  # items given back, not acknowledged yet
        self._room = _room(MESSAGE_BYTES)  # for results in one message
        self._connection = 0
        self._heard = False  # anything, on this connection
        self._something = asyncio.Event()
        self._quiet = asyncio.Event()
        self._draining = False
        self._drain_told = False
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._life = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Until the worker has ended. Raises Refused when the daemon does not want it."""
        if self._life is None:
            return
        await asyncio.wait([self._life])
        if not self._life.cancelled() and (error := self._life.exception()) is not None:
            raise error

    async def stop(self) -> None:
        """Take no further items, finish those under way within `grace` seconds, give the rest back. Twice is fine."""
        life = self._life
        if life is None or self._draining:
            return
        self._draining = True
        self._something.set()
        if self._jobs and not life.done():
            await asyncio.wait(self._jobs.values(), timeout=self._grace)
        for name, job in tuple(self._jobs.items()):
            job.cancel()
            self._give_back(name)
        if self._jobs:
            await asyncio.wait(self._jobs.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                while not life.done() and (self._results or self._returned):
                    self._quiet.clear()
                    await self._quiet.wait()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        pause = PAUSE_FIRST_S
        told = ""
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                self._heard = False
                asked = 0.0
                try:
                    async with self._connect() as exchange:
                        await self._talk(exchange)
                    problem = "the stream ended"
                    pause = PAUSE_FIRST_S
                except aio.AioRpcError as error:
                    if error.code() in _HOPELESS:
                        problem = error.details() or error.code().name
                        _log.error("worker %s is refused: %s", self.worker_id, problem)
                        raise Refused(problem) from error
                    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                        self._narrow(error.details() or "")
                    if self._heard and error.code() is not grpc.StatusCode.ABORTED:
                        pause = PAUSE_FIRST_S
                    problem = f"{error.code().name}: {error.details()}"
                    asked = push_back(cast(Metadata, error.trailing_metadata() or ())) or 0.0
                except (NotReachable, NoToken, OSError) as error:
                    problem = str(error)
                level = logging.INFO if self._heard or problem == told else logging.WARNING  # once, not every 10 s
                _log.log(level, "worker %s is disconnected, again in %.1f s: %s", self.worker_id, pause, problem)
                told = problem
                await asyncio.sleep(asked * random.uniform(1, 1 + SPREAD) + random.uniform(pause / 2, pause))
                pause = min(2 * pause, PAUSE_MAX_S)
        finally:
            beat.cancel()
            for job in self._jobs.values():
                job.cancel()
            await asyncio.gather(beat, *self._jobs.values(), return_exceptions=True)
            self._quiet.set()
            self._connect.close()

    async def _talk(self, exchange: Exchange) -> None:
        """One connection, until it ends."""
        self._connection += 1
        self._drain_told = False
        self._returned.clear()  # they went with the connection, or come again
        self._quiet.set()
        self._unsent = dict.fromkeys(self._results)
        for name in self._jobs:
            self._extensions.setdefault(name, _extension(name))  # the answer tells whether it is still ours
        self._something.set()
        responses = exchange(self._requests(self._connection))
        try:
            async for response in responses:
                self._heard = True
                for item in response.items:
                    self._begin(item)
                for name in response.revoked_item_ids:
                    self._drop(name)
                for receipt in response.receipts:
                    self._told(receipt)
        finally:
            if isinstance(responses, aio.Call):
                responses.cancel()
            elif isinstance(responses, AsyncGenerator):
                await responses.aclose()

    async def _requests(self, connection: int) -> AsyncIterator[pb.StreamWorkItemsRequest]:
        """What is to be said, as much as there is in each message."""
        yield pb.StreamWorkItemsRequest(subscribe=self._subscription)
        while True:
            await self._something.wait()
            if connection != self._connection:
                return  # what there is to say is the next connection's
            self._something.clear()
            while (message := self._message()) is not None:
                yield message

    def _message(self) -> pb.StreamWorkItemsRequest | None:
        if not (self._unsent or self._extensions or (self._draining and not self._drain_told)):
            return None
        results: list[Result] = []
        size = 0
        while self._unsent and len(results) < RESULTS_MAX:
            name = next(iter(self._unsent))
            result = self._results[name]
            size += result.ByteSize() + RESULT_FRAME
            if results and size > min(RESULTS_BYTES, self._room):
                break
            del self._unsent[name]
            results.append(result)
        extensions, self._extensions = self._extensions, {}
        self._drain_told = self._draining
        return pb.StreamWorkItemsRequest(
            completions=[each for each in results if isinstance(each, pb.CompleteWorkItemRequest)],
            failures=[each for each in results if isinstance(each, pb.FailWorkItemRequest)],
            extensions=extensions.values(),
            drain=self._draining,
        )

    async def _beat(self) -> None:
        """Keep what is under way."""
        while True:
            await asyncio.sleep(self._lease / BEATS)
            for name in self._jobs:
                self._extensions.setdefault(name, _extension(name))
            self._something.set()

    # -- items --------------------------------------------------------------------------------------------------------

    def _begin(self, leased: pb.LeasedWorkItem) -> None:
        item = leased.item
        name = item.item_id
        if name in self._jobs or name in self._results:
            return  # it was ours before the connection broke, and is
        handler = self._handlers.get(f"{item.spec_id}/{item.task_id}") or self._handlers.get(item.task_id)
        if handler is None or self._draining:
            self._give_back(name)
            return
        job = Job(
            name, item.case_id, item.spec_id, item.task_id, item.attempt, item.data_json or b"{}", leased.redelivered
        )
        self._jobs[name] = asyncio.create_task(self._carry_out(handler, job))

    async def _carry_out(self, handler: _Handler, job: Job) -> None:
        name = job.item_id
        try:
            result = await _result(handler, job)
        except asyncio.CancelledError:
            return
        finally:
            self._jobs.pop(name, None)
        self._extensions.pop(name, None)
        self._results[name] = self._fitting(result)
        self._unsent[name] = None
        self._something.set()

    def _narrow(self, details: str) -> None:
        """A message was too large: the daemon takes less than it would by itself, and says how much."""
        found = _LARGER.search(details)
        if found is not None:
            self._room = min(self._room, _room(int(found[1])))
            self._results = {name: self._fitting(result) for name, result in self._results.items()}

    def _fitting(self, result: Result) -> Result:
        """The result, or that it is too large for any message: else what is behind it would wait for ever."""
        size = result.ByteSize() + RESULT_FRAME
        if size <= self._room:
            return result
        code = OUTPUT_TOO_LARGE if isinstance(result, pb.CompleteWorkItemRequest) else INVALID_FAILURE
        message = f"the result has {size:,} bytes, {self._room:,} fit into a message to the daemon"
        return pb.FailWorkItemRequest(
            item_id=result.item_id, attempt=result.attempt, code=code, message=message, permanent=True
        )

    def _give_back(self, name: str) -> None:
        self._returned.add(name)
        self._extensions[name] = _extension(name, 0)
        self._something.set()

    def _drop(self, name: str) -> None:
        """An item is not ours any more."""
        job = self._jobs.pop(name, None)
        if job is not None:
            job.cancel()

    def _told(self, receipt: pb.WorkItemReceipt) -> None:
        name, refused = receipt.item_id, receipt.HasField("error")
        self._returned.discard(name)
        if receipt.sequence or (refused and name in self._results):
            result = self._results.pop(name, None)
            self._unsent.pop(name, None)
            if result is None:
                pass  # it was sent twice, and this is the second answer
            elif refused and _again(receipt.error):
                self._results[name] = result
                wait = (asked_delay(receipt.error) or PAUSE_FIRST_S) * random.uniform(1, 1 + SPREAD)
                asyncio.get_running_loop().call_later(wait, self._send_again, name)
            elif refused and (failure := _instead(result, receipt.error)) is not None:
                self._results[name] = failure
                self._send_again(name)
            elif refused:
                self.refused += 1
                _log.info("the result of %s is refused: %s", name, receipt.error.message)
            elif isinstance(result, pb.CompleteWorkItemRequest):
                self.completed += 1
            else:
                self.failed += 1
        elif refused:
            self._drop(name)
        self._quiet.set()

    def _send_again(self, name: str) -> None:
        if name in self._results:
            self._unsent[name] = None
            self._something.set()


class _Handler:
    """A function, and how its arguments are made."""

    def __init__(self, function: Handler) -> None:
        self._function = function
        call = function if inspect.isroutine(function) else type(function).__call__
        self._threaded = not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(call)
        hints = typing.get_type_hints(call)
        self._arguments: list[Callable[[Job], object]] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if parameter.default is not parameter.empty:
                continue
            hint = hints.get(parameter.name, dict[str, object])
            self._arguments.append(_argument(hint))

    async def run(self, job: Job) -> bytes:
        """The output as JSON. Raises what the function raises, and Failed when input or output do not fit."""
        try:
            arguments = [make(job) for make in self._arguments]
        except msgspec.MsgspecError as error:
            raise Failed("invalid_input", f"the input does not fit the handler: {error}", permanent=True) from error
        if self._threaded:
            result = await asyncio.to_thread(self._function, *arguments)
        else:
            result = self._function(*arguments)
        if inspect.isawaitable(result):
            result = await cast("Awaitable[object]", result)
        if result is None:
            return b""
        output = result if isinstance(result, bytes) else _encode(result)
        if len(output) > DATA_BYTES_MAX:  # larger than a message, it would break the connection again and again
            too_large = f"the output has {len(output):,} bytes, at most {DATA_BYTES_MAX:,} are taken"
            raise Failed(OUTPUT_TOO_LARGE, too_large, permanent=True)
        if not output.lstrip().startswith(b"{"):
            raise Failed("invalid_output", f"the output is not a JSON object: {output[:80]!r}", permanent=True)
        return output


def _argument(hint: object) -> Callable[[Job], object]:
    if hint is Job:
        return lambda job: job
    if hint is bytes:
        return lambda job: job.data
    decode = msgspec.json.Decoder(cast("type[object]", hint)).decode
    return lambda job: decode(job.data)


def _room(message_bytes: int) -> int:
    """What results may take of a message; the rest is for leases."""
    return message_bytes - message_bytes // 4


def _again(error: Status) -> bool:
    """Whether the same result may be taken later."""
    codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return error.code in [code.value[0] for code in codes]


async def _result(handler: _Handler, job: Job) -> Result:
    """What becomes of an item. Raises nothing but CancelledError, whatever the handler does: an item without a result
    would keep its place for ever."""
    try:
        output = await handler.run(job)
        return pb.CompleteWorkItemRequest(item_id=job.item_id, attempt=job.attempt, output_json=output)
    except Failed as error:
        failure = error
    except Exception as error:  # noqa: BLE001  # whatever a handler raises is the item's failure
        _log.warning("the handler of %s failed at %s", job.task_id, job.item_id, exc_info=error)
        failure = Failed(type(error).__name__, _said(error))
    try:
        return _failure(job, failure)
    except Exception as error:  # noqa: BLE001  # as above: it is the handler that made it
        _log.warning("the failure of %s at %s cannot be told", job.task_id, job.item_id, exc_info=error)
        message = f"the failure cannot be told: {_said(error)}; it was: {_said(failure)}"
        return _failure(job, Failed(INVALID_FAILURE, message, permanent=True))


def _instead(result: Result, error: Status) -> pb.FailWorkItemRequest | None:
    """What is told in place of a result that makes no sense to the daemon, and would not the next time either."""
    if error.code != _NO_SENSE or (isinstance(result, pb.FailWorkItemRequest) and result.code == INVALID_FAILURE):
        return None
    code = "invalid_output" if isinstance(result, pb.CompleteWorkItemRequest) else INVALID_FAILURE
    message = _cut(error.message, MESSAGE_BYTES_MAX)
    return pb.FailWorkItemRequest(
        item_id=result.item_id, attempt=result.attempt, code=code, message=message, permanent=True
    )


def _failure(job: Job, failure: Failed) -> pb.FailWorkItemRequest:
    """Raises ValueError or TypeError when code, data or pause make no sense."""
    data = b"" if failure.data is None else _encode(failure.data)
    if len(data) > DATA_BYTES_MAX:
        raise ValueError(f"its data has {len(data):,} bytes, at most {DATA_BYTES_MAX:,} are taken")
    if data and not data.startswith(b"{"):
        raise ValueError("its data is not a JSON object")
    if _CONTROL.search(failure.code):
        raise ValueError(f"its code {failure.code[:CODE_BYTES_MAX]!r} has control characters")
    return pb.FailWorkItemRequest(
        item_id=job.item_id,
        attempt=job.attempt,
        code=_cut(failure.code, CODE_BYTES_MAX),
        message=_cut(failure.message, MESSAGE_BYTES_MAX),
        permanent=failure.permanent,
        retry_after=None if failure.retry_after is None else _pause(failure.retry_after),
        data_json=data,
    )


def _said(error: Exception) -> str:
    try:
        return str(error)
    except Exception as other:  # noqa: BLE001  # the text of an error may be made by anybody
        return f"its text cannot be made: {type(other).__name__}"


def _cut(text: str, most: int) -> str:
    """Text of at most `most` bytes. What is no Unicode, as in the names of old files, is written as its code."""
    return text[:most].encode(errors="backslashreplace")[:most].decode(errors="ignore")


def _pause(seconds: float) -> Duration:
    if not 0 <= seconds <= PAUSE_ASKED_MAX_S:
        raise ValueError(f"its retry_after is {seconds} s")
    return _duration(seconds)


def _extension(name: str, seconds: float | None = None) -> pb.LeaseExtension:
    attempt = int(name.partition("@")[0].rpartition(".")[2])
    return pb.LeaseExtension(item_id=name, attempt=attempt, lease=None if seconds is None else _duration(seconds))


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


class _Daemon:
    """Connections to the daemon that an endpoint names, each with the newest certificates."""

    def __init__(self, endpoint: Endpoint | Callable[[], Endpoint] | Connect, settled: Callable[[], bool]) -> None:
        """`settled`: whether every result was acknowledged, so that leaving a connection leaves nothing in doubt."""
        self._endpoint = endpoint
        self._settled = settled
        self._known: Endpoint | None = None
        self._ways: Ways | None = None

    def __call__(self) -> AbstractAsyncContextManager[Exchange]:
        found = self._endpoint if isinstance(self._endpoint, Endpoint) else self._endpoint()
        if not isinstance(found, Endpoint):
            return found
        if found != self._known:
            self.close()
            self._ways = Ways(found) if found.secure else None
            self._known = found
        return _plain(found) if self._ways is None else _secure(self._ways, found.token, self._settled)

    def close(self) -> None:
        """Certificates are not followed any more; the next connection begins to again."""
        if self._ways is not None:
            self._ways.close()
        self._ways = self._known = None


_KEEPALIVE: Final = ("grpc.keepalive_time_ms", KEEPALIVE_MS)


@asynccontextmanager
async def _plain(endpoint: Endpoint) -> AsyncIterator[Exchange]:
    async with aio.insecure_channel(endpoint.address, [*channel_options(endpoint), _KEEPALIVE]) as channel:
        stream = pb.WorkItemServiceStub(channel).StreamWorkItems
        yield cast("Exchange", partial(stream, metadata=await _metadata(endpoint.token)))


@asynccontextmanager
async def _secure(ways: Ways, token: TokenSource | None, settled: Callable[[], bool]) -> AsyncIterator[Exchange]:
    """A channel of its own for each connection, which ends when there are newer certificates."""
    way = await asyncio.to_thread(ways.newest)  # the server is checked
    metadata = await _metadata(token)

    async def exchange(requests: AsyncIterator[pb.StreamWorkItemsRequest]) -> AsyncIterator[pb.StreamWorkItemsResponse]:
        call = stream(requests, metadata=metadata)
        leaving = asyncio.create_task(_leave(call, ways, way, settled))
        try:
            async for response in call:
                yield response
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not leaving.done() or (task is not None and task.cancelling()):
                raise
        finally:
            leaving.cancel()
            call.cancel()

    try:
        async with aio.secure_channel(way.target, way.credentials, [*way.options, _KEEPALIVE]) as channel:
            stream = pb.WorkItemServiceStub(channel).StreamWorkItems
            yield exchange
    finally:
        ways.lost(way)


async def _metadata(token: TokenSource | None) -> tuple[tuple[str, str], ...]:
    """What a connection tells about who we are besides its certificate; asking a source may block."""
    return () if token is None else (await asyncio.to_thread(header_of, token),)


async def _leave(call: aio.Call, ways: Ways, way: Way, settled: Callable[[], bool]) -> None:
    """Ends a call when there are newer certificates than it was made with, at a moment without results on their way."""
    while not ways.moved(way):  # noqa: ASYNC110  # files tell nobody
        await asyncio.sleep(LOOK_SECONDS)
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while not settled():  # noqa: ASYNC110  # a few milliseconds
                await asyncio.sleep(SETTLE_LOOK_S)
    call.cancel()
