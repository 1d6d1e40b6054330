"""The process that works, and dies: `python -m tests.sweep.workload` with the shim preloaded.

Reads one plan per line, forks a child for each and answers with its reports, one JSON value per line: `["ack", case,
index]` for each operation that was acknowledged, `["resumed", ms, why]` for each that had to be tried again (from its
first refusal to its success), and at the end `["end", status]`, where status is 0 or the negative signal.

The child runs the same script every time: some cases beside each other, each a fixed row of operations with request
ids, the store closed and opened again in between. So the number of a point means the same in every run, nearly.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final, ParamSpec

import msgspec

from knhk_workflow import CallMeta, StateStore, StoreError, StoreUnavailable, WorkflowEngine
from knhk_workflow.store.leveldb import LevelDBLimits, LevelDBStore
from knhk_workflow.store.store import Expectation, OutcomeUnknown, Write
from tests.sweep.shim import MODES, Plan

LIMITS: Final = LevelDBLimits(
    write_buffer_bytes=64 * 1024,  # the least that LevelDB takes: logs are changed and tables made after some 20 steps
    chunk_bytes=4 * 1024,  # one value of the workload is longer
    reserve_bytes=64 * 1024,
    reader_threads=1,
)
CASES: Final = 6
BESIDE: Final = 3  # cases that are worked on at once
RESUME_S: Final = 60.0  # after space has returned; what was promised is less (tests/store/test_journal.py)
STOPPED_S: Final = 0.15  # longer than the head file waits to be synced
PAUSE_S: Final = 0.02
PRINCIPAL: Final = "system:sweep"
P = ParamSpec("P")
SPEC: Final = {
    "id": "order",
    "tasks": {
        "take": {"required_roles": ["clerk"]},
        "split": {"split": "and"},
        "pack": {"required_roles": ["clerk"]},
        "bill": {"required_roles": ["clerk"]},
        "close": {"join": "and"},
    },
    "flows": [
        {"from": "start", "to": "take"},
        {"from": "take", "to": "split"},
        {"from": "split", "to": "pack"},
        {"from": "split", "to": "bill"},
        {"from": "pack", "to": "close"},
        {"from": "bill", "to": "close"},
        {"from": "close", "to": "end"},
    ],
}
STEPS: Final = ("run", "claim take", "take", "update", "suspend", "resume", "pack", "bill")


class Careless(LevelDBStore):
    """The store without durable commits: what the sweep must find."""

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        await super().commit(writes, expect, False)


async def opened(directory: str, sync: bool = True) -> WorkflowEngine:
    """An engine over the workload's kind of store."""
    store = await (LevelDBStore if sync else Careless).open(directory, limits=LIMITS)
    engine = WorkflowEngine(StateStore.over(store))
    try:
        return await engine.open()
    except BaseException:
        await engine.close()
        raise


def fill(case: int, step: int) -> str:
    """Text that does not compress; long once."""
    return Random(case * 100 + step).randbytes(6_000 if (case, step) == (1, 2) else 700).hex()


async def carry_out(engine: WorkflowEngine, number: int, index: int) -> None:
    """One step of one case; the same again changes nothing."""
    case_id, step = f"case-{number}", STEPS[index]
    meta = CallMeta(principal=PRINCIPAL, request_id=f"{case_id}/{index}")
    data = {f"step{index}": index, "fill": fill(number, index)}
    if step == "run":
        await engine.run_case("order", data, case_id=case_id, business_key=f"key-{number % 2}", meta=meta)
    elif step == "claim take":
        await engine.claim_work_item(f"1.1.1@{case_id}", "ada", meta=meta)
    elif step == "update":
        await engine.update_case_data(case_id, data, meta=meta)
    elif step == "suspend":
        await engine.suspend_case(case_id, "a pause", meta=meta)
    elif step == "resume":
        await engine.resume_case(case_id, meta=meta)
    else:
        activation = {"take": 1, "pack": 3, "bill": 4}[step]
        await engine.complete_work_item(f"{activation}.1.1@{case_id}", data, "ada", meta=meta)


class Child:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    async def run(self) -> None:
        half = len(STEPS) // 2
        for steps in (range(half), range(half, len(STEPS))):
            engine = await self._patiently_opened()
            await self._patiently(engine.register_workflow, SPEC)
            report("ack", "", 0)
            place = asyncio.Semaphore(BESIDE)
            await asyncio.gather(*(self._case(engine, number, steps, place) for number in range(CASES)))
            try:
                await engine.close()
            except (StoreError, OSError):
                if self.plan.mode != "fail":
                    raise

    async def _patiently_opened(self) -> WorkflowEngine:
        began = time.monotonic()
        tries = 0
        while True:
            try:
                engine = await opened(self.plan.directory, self.plan.sync)
            except (StoreError, OSError) as error:
                tries += 1
                if self.plan.mode != "fail" or time.monotonic() - began > RESUME_S + self.plan.hold_ms / 1000:
                    raise
                last = error
                await asyncio.sleep(PAUSE_S)
            else:
                if tries:
                    report("resumed", round((time.monotonic() - began) * 1000), str(last))
                return engine

    async def _case(self, engine: WorkflowEngine, number: int, steps: range, place: asyncio.Semaphore) -> None:
        async with place:
            for index in steps:
                await self._patiently(carry_out, engine, number, index)
                report("ack", f"case-{number}", index)

    async def _patiently(self, work: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Repeat what a failing volume refuses, as a caller with a request id does."""
        began = time.monotonic()
        last: Exception | None = None
        while True:
            try:
                await work(*args, **kwargs)
            except (StoreUnavailable, OutcomeUnknown) as error:
                last = error
                if self.plan.mode != "fail" or time.monotonic() - began > RESUME_S + self.plan.hold_ms / 1000:
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                if last is not None:
                    report("resumed", round((time.monotonic() - began) * 1000), type(last).__name__)
                return


def report(*what: str | int) -> None:
    """One line to whoever reads."""
    os.write(1, msgspec.json.encode(what) + b"\n")


def main() -> None:
    shim = ctypes.CDLL(None)
    for line in sys.stdin:
        plan = msgspec.json.decode(line, type=Plan)
        child = os.fork()
        if not child:
            armed = shim.sweep_arm(
                plan.directory.encode(),
                plan.trace.encode(),
                ctypes.c_long(plan.point),
                MODES[plan.mode],
                plan.error,
                ctypes.c_long(plan.count),
                ctypes.c_long(plan.hold_ms),
                plan.cut,
            )
            assert armed == 0, os.strerror(armed)
            status = 1
            try:
                asyncio.run(Child(plan).run())
                status = 0
            except Exception as error:  # noqa: BLE001  # the reader is told, and judges
                report("failed", repr(error))
            finally:
                shim.sweep_points.restype = ctypes.c_long
                report("points", shim.sweep_points())
                os._exit(status)
        _, ended = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(ended):
            time.sleep(STOPPED_S)
            os.kill(child, signal.SIGCONT)
            _, ended = os.waitpid(child, 0)
        report("end", os.waitstatus_to_exitcode(ended))


if __name__ == "__main__":
    main()
