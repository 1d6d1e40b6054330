"""Purges on a disk that refuses, forgets, doubts and crashes: what was told to be purged is gone, the rest is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, TypeVar

import pytest

from knhk_workflow import (
    CallMeta,
    EngineLimits,
    NotFound,
    PurgeRequest,
    RetentionPolicy,
    SeededIds,
    StateStore,
    StoreError,
    WorkflowEngine,
)
from knhk_workflow.errors import Busy
from knhk_workflow.runtime import retention
from tests.conftest import Budget
from tests.runtime.place import ONE
from tests.simulation.disk import Disk, SimulatedStore
from tests.simulation.fates import COMMIT_FAULTS, Fates
from tests.simulation.loop import SimulatedClock, SimulationLoop

T = TypeVar("T")

STEPS_PER_SEED: Final = 2_000  # a seed takes about as long as this many simulated steps
SEEDS_MIN: Final = 2
CASES: Final = 12
SECRET: Final = b"c0nfidential"
FAULTS: Final = frozenset((*COMMIT_FAULTS, "unreadable", "outage", "slow"))


class Crashed(Exception):
    """This life of the engine is over."""


class Run:
    """Cases are made, ended and purged beside each other, by callers who repeat what they got no answer to."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = SimulatedClock()
        self.disk = Disk(self.random.choice((1, 3)))
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lives = 0
        self.policy = RetentionPolicy(cancelled_s=0.01, every_s=0.05) if seed % 2 else retention.KEEP
        self.told: set[str] = set()
        """Cases whose purge was acknowledged."""
        self.fates = Fates(seed, FAULTS, None, self.faults)
        self.torn: Random | None = None
        self.store: SimulatedStore
        self.engine: WorkflowEngine
        self.opened: asyncio.Event

    async def all(self) -> None:
        self.opened = asyncio.Event()
        keeper = asyncio.ensure_future(self._keep())
        await asyncio.gather(*(self._case(number) for number in range(CASES)))
        self.fates.calm = True
        await asyncio.sleep(30.0)
        await self._judge()
        keeper.cancel()
        await self.engine.close()

    async def _keep(self) -> None:
        """An engine at work, made anew after each crash."""
        while True:
            crashed = asyncio.get_running_loop().create_future()

            def crash(torn: Random | None, over: asyncio.Future[None] = crashed) -> None:
                if not over.done():
                    self.torn = torn
                    over.set_result(None)

            before = set(asyncio.all_tasks())
            self.lives += 1
            opening = asyncio.ensure_future(self._open(crash))
            await asyncio.wait({opening, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if not crashed.done():
                opening.result()
                self.opened.set()
                await crashed
            self.opened.clear()
            self.store.die()
            ours = [task for task in asyncio.all_tasks() - before if "caller" not in task.get_name()]
            for task in ours:
                task.cancel()
            if ours:
                await asyncio.wait(ours)
            self.disk.lose_power(self.torn)

    async def _open(self, crash: Callable[[Random | None], None]) -> None:
        while True:
            self.store = SimulatedStore(
                self.disk, self.fates, lambda _: None, lambda _kind, _writes: None, crash, self.wrong.append
            )
            limits = EngineLimits(retention=self.policy, cached_cases=3)
            ids = SeededIds(self.random.getrandbits(32))
            self.engine = WorkflowEngine(StateStore.over(self.store), clock=self.clock, ids=ids, limits=limits)
            try:
                await self.engine.open()
                await self.engine.register_workflow(ONE)
                return
            except (StoreError, OSError):
                await self.engine.close()
                await asyncio.sleep(0.05)

    async def _ask(self, call: Callable[[WorkflowEngine], Awaitable[T]]) -> T:
        """The answer, in whichever life it comes."""
        while True:
            await self.opened.wait()
            asked: asyncio.Task[T] = asyncio.get_running_loop().create_task(
                self._called(call(self.engine)), name="caller"
            )
            while not asked.done() and self.opened.is_set():
                await asyncio.wait({asked}, timeout=0.05)
            if not asked.done():
                asked.cancel()
                await asyncio.wait({asked})
                continue
            try:
                return asked.result()
            except (StoreError, OSError, Busy, asyncio.CancelledError):
                await asyncio.sleep(0.02)

    @staticmethod
    async def _called(call: Awaitable[T]) -> T:
        return await call

    async def _case(self, number: int) -> None:
        name = f"case-{number}"
        updates = self.random.choice((0, 0, 3, 2 * retention.RECORDS_MAX))

        def meta(step: str) -> CallMeta:
            return CallMeta(request_id=f"{step}-{name}")

        secret = {"secret": SECRET.decode() + name}
        await self._ask(lambda engine: engine.run_case("one", secret, case_id=name, business_key="k", meta=meta("run")))
        for index in range(updates):
            change = {f"f{index}": SECRET.decode()}
            step = f"update-{index}"
            await self._ask(lambda e, change=change, step=step: e.update_case_data(name, change, meta=meta(step)))  # type: ignore[misc]  # bound per turn
        if number % 4 == 3:
            return
        if number % 4 == 2:
            await self._ask(lambda engine: engine.cancel_case(name, meta=meta("cancel")))
            return
        await self._ask(lambda engine: engine.complete_work_item(f"1.1.1@{name}", secret, meta=meta("sign")))
        if number % 4 == 0:
            asked = meta("purge") if self.random.random() < 0.5 else CallMeta()
            await self._ask(lambda engine: engine.purge_cases(PurgeRequest((name,)), meta=asked))
            self.told.add(name)

    async def _judge(self) -> None:
        found = await self.engine.verify_store()
        assert found.intact, found.findings
        assert not self.wrong
        by_policy = {f"case-{number}" for number in range(2, CASES, 4)} if self.policy.purges else set()
        gone = self.told | by_policy
        assert found.purged == len(gone)
        for number in range(CASES):
            name = f"case-{number}"
            if name in gone:
                with pytest.raises(NotFound):
                    await self.engine.get_case(name)
            else:
                assert (await self.engine.get_case(name)).case_id == name
        for key, value in self.disk.bytes.items():
            assert SECRET not in value or not any(f"{name}\0".encode() in key for name in gone), key


@pytest.mark.long
def test_purges_survive_every_fault(budget: Budget) -> None:
    faults: Counter[str] = Counter()
    lives = 0
    for seed in range(max(SEEDS_MIN, budget.steps // STEPS_PER_SEED)):
        run = Run(seed)
        loop = SimulationLoop(run.clock, run.random)
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(run.all())
        except BaseException:
            print(f"seed {seed}")
            raise
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        faults += run.faults
        lives += run.lives
    print(f"{lives} lives, faults {dict(faults)}")
