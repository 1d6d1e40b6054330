"""Where an engine of a test keeps its bytes, so that another engine can be opened over them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Final

from knhk_workflow import (
    CallMeta,
    CaseView,
    EngineLimits,
    StateStore,
    StoreUnavailable,
    VirtualClock,
    WorkflowEngine,
    WorkItemView,
)
from knhk_workflow.store import Expectation, MemoryStore, Store, Write
from tests.inside import parts

KINDS: Final = ("memory", "leveldb")
CLERK: Final = ["clerk"]

ONE: Final[Mapping[str, object]] = {
    "id": "one",
    "tasks": {"sign": {"required_roles": CLERK}},
    "flows": [{"from": "start", "to": "sign"}, {"from": "sign", "to": "end"}],
}
LINE: Final[Mapping[str, object]] = {
    "id": "line",
    "tasks": {"first": {"required_roles": CLERK}, "second": {"required_roles": ["boss"]}},
    "flows": [{"from": "start", "to": "first"}, {"from": "first", "to": "second"}, {"from": "second", "to": "end"}],
}
RIVALS: Final[Mapping[str, object]] = {
    "id": "rivals",
    "tasks": {"left": {"required_roles": CLERK}, "right": {"required_roles": CLERK}},
    "flows": [
        {"from": "start", "to": "left"},
        {"from": "start", "to": "right"},
        {"from": "left", "to": "end"},
        {"from": "right", "to": "end"},
    ],
}
DOCUMENTS: Final = (ONE, LINE, RIVALS)


def doubling(levels: int) -> Mapping[str, object]:
    """A workflow of routing tasks alone: 2 ** levels - 1 firings, then a person."""
    tasks: dict[str, object] = {f"t{level}": {} for level in range(levels)}
    flows: list[dict[str, str]] = [{"from": "start", "to": "t0"}]
    conditions: list[str] = []
    for level in range(levels - 1):
        for side in "ab":
            place = f"{side}{level}"
            conditions.append(place)
            flows += [{"from": f"t{level}", "to": place}, {"from": place, "to": f"t{level + 1}"}]
    return {"id": f"doubling-{levels}", "tasks": tasks, "flows": flows, "conditions": conditions}


LOOP: Final[Mapping[str, object]] = {
    "id": "loop",
    "tasks": {"turn": {}, "rest": {}, "sign": {"required_roles": CLERK}},
    "flows": [
        {"from": "start", "to": "turn"},
        {"from": "turn", "to": "rest"},
        {"from": "rest", "to": "turn", "when": "data.turning"},
        {"from": "rest", "to": "sign", "default": True},
        {"from": "sign", "to": "end"},
    ],
}
"""Turns until the data says otherwise."""


class KeptStore(MemoryStore):
    """Memory that outlives the engines that close it."""

    kind = "memory"

    async def close(self) -> None:
        """Nothing: the next engine opens it."""


class Gate(KeptStore):
    """Memory whose commits wait while it is shut, and fail while it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.open = asyncio.Event()
        self.open.set()
        self.arrived = asyncio.Event()

    async def commit(self, writes: Sequence[Write], expect: Sequence[Expectation], durable: bool) -> None:
        """Once the gate is open."""
        self.arrived.set()
        await self.open.wait()
        if self.full:
            raise StoreUnavailable("there is no space")
        await super().commit(writes, expect, durable)

    async def given_up(self, call: Coroutine[object, object, object]) -> None:
        """A call whose caller goes away when its commit is on the way; the gate is left shut."""
        self.open.clear()
        self.arrived.clear()
        task = asyncio.create_task(call)
        await self.arrived.wait()
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()


class Place:
    """One place, for several engines one after the other."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.path = directory / "store"
        self.memory = KeptStore()
        self.clock = VirtualClock()

    def state_store(self) -> StateStore:
        """The place as the engine takes it."""
        return StateStore.over(self.memory) if self.kind == "memory" else StateStore(str(self.path))

    def engine(self, *, cached_cases: int = 10_000) -> WorkflowEngine:
        """An engine over it, with a clock that stands still."""
        return WorkflowEngine(self.state_store(), clock=self.clock, limits=EngineLimits(cached_cases=cached_cases))


async def becomes(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is so that happens by itself."""
    async with asyncio.timeout(60):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


def at_rest(engine: WorkflowEngine) -> int:
    """How many of those who wait for a case or watch one have read everything and do nothing until it changes."""
    return sum(bool(event._waiters) for event in parts(engine).watching._of_cases)


async def registered(engine: WorkflowEngine, *documents: Mapping[str, object], tenant: str = "default") -> None:
    """Register documents (all small ones when none is named)."""
    for document in documents or DOCUMENTS:
        await engine.register_workflow(document, meta=CallMeta(tenant=tenant))


def store_of(engine: WorkflowEngine) -> Store:
    """The open store below an engine."""
    return parts(engine).store


async def damage(engine: WorkflowEngine, key: bytes) -> None:
    """Turn a bit of a stored value, behind the engine's back."""
    store = store_of(engine)
    value = await store.get(key)
    assert value is not None
    await store.commit([(key, value[:-1] + bytes((value[-1] ^ 1,)))], (), True)


def item_of(case: CaseView, task: str) -> WorkItemView:
    """The only open item of a task."""
    [found] = [item for item in case.work if item.task_id == task]
    return found


def body(data: bytes) -> object:
    """JSON as a value."""
    return json.loads(data)
