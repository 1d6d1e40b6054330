"""The engine alone, without a daemon: on LevelDB and, for comparison, in memory; in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import uvloop

from knhk_workflow import CaseView, RunRequest, StateStore, VirtualClock, WorkflowEngine, WorkflowError
from tests.benchmark.processes import serve_questions
from tests.benchmark.workloads import BATCH, DATA, DOCUMENTS, OUTPUT, ROUTING, STEPWISE, TASKS, WAITING

Place = Literal["leveldb", "memory"]
Work = Literal["outside", "command", "batch"]

RESERVE: Final = "RESERVE"  # 16 MiB that the store keeps free for a full disk: not part of what a case costs
WORKERS: Final = 128


class Open(msgspec.Struct, tag=True):
    """Open both engines; the one on disk keeps everything below `directory`."""

    directory: str


class Run(msgspec.Struct, tag=True):
    """Run `cases` cases, `concurrent` at a time (for `batch`: so many lists of 100)."""

    place: Place
    work: Work
    concurrent: int
    cases: int


class Weigh(msgspec.Struct, tag=True):
    """Run so many cases from outside in an empty directory, and close it."""

    directory: str
    cases: int


class Time(msgspec.Struct, tag=True):
    """Arm so many timers in an empty directory, one durable command each, then fire them."""

    directory: str
    timers: int


class Ran(msgspec.Struct):
    """What was run, how long it took, and this process's processor time; for `Weigh` the bytes on disk, for `Time` the
    seconds for arming, and those for firing."""

    cases: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    firing_seconds: float = 0.0


class Inside:
    """Both engines."""

    def __init__(self) -> None:
        self._engines: dict[Place, WorkflowEngine] = {}
        self._items: tuple[str, ...] = ()

    async def answer(self, question: Open | Run | Weigh | Time) -> Ran:
        """Does what is asked."""
        match question:
            case Open():
                self._engines = {
                    "leveldb": await _opened(question.directory),
                    "memory": await _opened(":memory:"),
                }
                self._items = await item_ids(self._engines["memory"])
                gc.freeze()
                return Ran()
            case Run():
                return await self._run(self._engines[question.place], question)
            case Weigh():
                engine = await _opened(question.directory)
                ran = await self._run(engine, Run("leveldb", "outside", WORKERS, question.cases))
                await engine.close()
                ran.disk_bytes = disk_bytes(Path(question.directory))
                return ran
            case Time():
                return await _timed(question)

    async def close(self) -> None:
        """Releases the stores."""
        for engine in self._engines.values():
            await engine.close()

    async def _run(self, engine: WorkflowEngine, asked: Run) -> Ran:
        if asked.work == "batch":
            one, count = self._batch, -(-asked.cases // BATCH)
        else:
            one, count = (self._outside if asked.work == "outside" else self._command), asked.cases
        gc.collect()
        cpu, start = time.process_time(), time.perf_counter()
        await concurrently(lambda: one(engine), count, asked.concurrent)
        cases = count * BATCH if asked.work == "batch" else count
        return Ran(cases, time.perf_counter() - start, time.process_time() - cpu)

    async def _outside(self, engine: WorkflowEngine) -> None:
        """Six commands, each durable before the next."""
        case = await engine.run_case(STEPWISE, DATA)
        for item in self._items:
            await engine.complete_work_item(f"{item}@{case.case_id}", OUTPUT)

    async def _command(self, engine: WorkflowEngine) -> None:
        case = await engine.run_case(ROUTING, DATA)
        assert case.state == "completed"

    async def _batch(self, engine: WorkflowEngine) -> None:
        for case in await engine.run_cases([RunRequest(ROUTING, DATA)] * BATCH):
            if isinstance(case, WorkflowError):
                raise case


async def _timed(asked: Time) -> Ran:
    clock = VirtualClock()
    async with WorkflowEngine(StateStore(asked.directory), clock=clock) as engine:
        await engine.register_workflow(WAITING)

        async def arm() -> None:
            await engine.run_case("waiting")

        start = time.perf_counter()
        await concurrently(arm, asked.timers, WORKERS)
        armed = time.perf_counter()
        clock.advance(60)
        await engine.fire_due_timers()
        fired = time.perf_counter()
    return Ran(asked.timers, armed - start, 0.0, 0, fired - armed)


async def _opened(directory: str) -> WorkflowEngine:
    engine = await WorkflowEngine(StateStore(directory)).open()
    for text in DOCUMENTS:
        await engine.register_workflow(text)
    return engine


async def item_ids(engine: WorkflowEngine) -> tuple[str, ...]:
    """The item ids of one case in the order of its tasks, without the case: the same in every case."""
    case: CaseView = await engine.run_case(STEPWISE, DATA)
    names: dict[str, str] = {}
    for task in TASKS:
        names |= {item.task_id: item.item_id for item in case.work}
        await engine.complete_work_item(names[task], OUTPUT)
        case = await engine.get_case(case.case_id)
    assert case.state == "completed"
    return tuple(names[task].partition("@")[0] for task in TASKS)


async def concurrently(one: Callable[[], Awaitable[None]], count: int, at_once: int) -> None:
    """`one` so often, at most `at_once` at a time."""
    left = deque(range(count))

    async def work() -> None:
        while left:
            left.popleft()
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, count)):
            group.create_task(work())


def disk_bytes(directory: Path) -> int:
    """Everything below a directory but the store's reserve."""
    total = 0
    for root, _, names in os.walk(directory):
        total += sum((Path(root) / name).stat().st_size for name in names if name != RESERVE)
    return total


async def main() -> None:
    """Runs what the parent says until it closes the pipe."""
    inside = Inside()
    await serve_questions(Open | Run | Weigh | Time, inside.answer)  # type: ignore[arg-type]  # a union is no class to mypy
    await inside.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
