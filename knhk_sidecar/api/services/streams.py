"""The two kinds of streams: many calls over one stream, and watching.

`multiplexed` runs what arrives concurrently, in any order, within a bound; an element's failure is its own answer.
`followed` hands events to a reader who may be slow, within a bound; who stays behind too long is cut off and told where
to resume. Both leave nothing behind when the call is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from enum import Enum, auto
from typing import Final, Generic, TypeVar, cast

IN_FLIGHT_MAX = 64  # of one stream: enough to fill a group commit, little enough to share the engine with others
BUFFERED_EVENTS = 1_000  # read ahead for one watch, about 300 KB; the history itself is the real buffer
SLOW_READER_S = 10.0  # the buffer may be full this long
QUIET_S = 15.0  # then a sign of life, so that intermediaries keep the stream open

A = TypeVar("A")
B = TypeVar("B")

Tell = Callable[[B], Awaitable[None]]
"""Sends an answer that is not the last one of its request; waits while too many are not taken yet."""


async def multiplexed(
    requests: AsyncIterator[A], carry_out: Callable[[A, Tell[B]], Awaitable[B]], limit: int = IN_FLIGHT_MAX
) -> AsyncGenerator[B, None]:
    """`carry_out` of every request, answers as they become ready; at most `limit` are under way or not yet taken.

    What `carry_out` tells before its answer comes before it. It turns an element's error into an answer; what it raises
    ends the stream. A change that the engine has begun to commit is finished even when the stream is cancelled.
    """
    room = asyncio.Semaphore(limit)
    buffer = asyncio.Semaphore(BUFFERED_EVENTS)
    answers: asyncio.Queue[asyncio.Task[B] | _Told[B] | None] = asyncio.Queue()
    running: set[asyncio.Task[B]] = set()

    def done(task: asyncio.Task[B]) -> None:
        running.discard(task)
        answers.put_nowait(task)

    async def tell(part: B) -> None:
        await buffer.acquire()
        answers.put_nowait(_Told(part))

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                task = asyncio.ensure_future(carry_out(request, tell))
                running.add(task)
                task.add_done_callback(done)
                await room.acquire()
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    reading = True
    try:
        while reading or running or not answers.empty():
            task = await answers.get()
            if task is None:
                reading = False
                continue
            if isinstance(task, _Told):
                yield task.part
                buffer.release()
                continue
            answer = task.result()
            yield answer
            room.release()
        await reader  # raises what ended the requests, after everything that came before was answered
    finally:
        reader.cancel()
        left = [reader, *running]
        for task in running:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Told(Generic[B]):
    """Something on its way to the reader that is no answer yet."""

    __slots__ = ("part",)

    def __init__(self, part: B) -> None:
        self.part = part


def closed_after(events: AsyncIterator[A]) -> AbstractAsyncContextManager[AsyncIterator[A]]:
    """The engine's events, closed as soon as nobody reads them: that gives their place in the engine back."""
    return aclosing(cast("AsyncGenerator[A, None]", events))


class _Mark(Enum):
    END = auto()
    SLOW = auto()


class Quiet(Enum):
    """What `followed` yields when nothing has happened for QUIET_S."""

    QUIET = auto()


QUIET: Final = Quiet.QUIET


async def followed(
    events: AsyncIterator[A],
    slow: Callable[[], Exception],
    buffered: int = BUFFERED_EVENTS,
    patience_s: float = SLOW_READER_S,
    quiet_s: float = QUIET_S,
) -> AsyncGenerator[A | Quiet, None]:
    """Events in order, signs of life in between. Raises `slow()` once the buffer has been full for `patience_s`."""
    queue: asyncio.Queue[A | _Mark] = asyncio.Queue(buffered)
    failure: list[Exception] = []

    async def pump() -> None:
        try:
            async with closed_after(events) as source:
                async for event in source:
                    if queue.full():
                        async with asyncio.timeout(patience_s):
                            await queue.put(event)
                    else:
                        queue.put_nowait(event)
        except TimeoutError:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(_Mark.SLOW)
        except Exception as error:  # noqa: BLE001  # carried over to the reader, who raises it
            failure.append(error)
            await queue.put(_Mark.END)
        else:
            await queue.put(_Mark.END)

    pumping = asyncio.create_task(pump())
    try:
        while True:
            try:
                event = queue.get_nowait() if not queue.empty() else await asyncio.wait_for(queue.get(), quiet_s)
            except TimeoutError:
                yield QUIET
                continue
            if event is _Mark.SLOW:
                raise slow()
            if event is _Mark.END:
                if failure:
                    raise failure[0]
                return
            assert not isinstance(event, _Mark)
            yield event
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
