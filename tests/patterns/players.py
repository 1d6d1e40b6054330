"""Who plays a story: the pure core, or the engine over a store, closed and opened again as often as one likes.

Both take the core's commands and answer with the history that a step added, so that one reader understands both.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from knhk_workflow import (
    CallMeta,
    Explanation,
    HistoryEvent,
    SeededIds,
    StateStore,
    VirtualClock,
    WorkflowEngine,
)
from knhk_workflow.core import commands as c
from knhk_workflow.core.case import Case
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import Model, compile_spec
from knhk_workflow.model.parse import canonical, parse_spec, spec_digest
from knhk_workflow.runtime import query
from knhk_workflow.runtime.history import render
from knhk_workflow.runtime.records import CommitRecord
from knhk_workflow.store import MemoryStore

CASE = "story"
META = CallMeta(principal="storyteller")
Document = dict[str, object]


class Player(Protocol):
    """Plays one case of one net."""

    async def begin(self, document: Document, data: bytes) -> list[HistoryEvent]:
        """Create and start the case."""
        ...

    async def make(self, command: c.Command) -> list[HistoryEvent]:
        """Carry a command out, to rest. Raises WorkflowError."""
        ...

    async def advance(self, seconds: float) -> list[HistoryEvent]:
        """Let time pass; what is due happens."""
        ...

    async def explain(self) -> Explanation:
        """Why the case is where it is."""
        ...

    async def data(self) -> bytes:
        """The case's data."""
        ...

    async def close(self) -> None:
        """The story is over."""
        ...


def model_of(document: Document) -> Model:
    """A compiled document."""
    text = canonical(document)
    return compile_spec(parse_spec(msgspec.json.decode(text)), 1, spec_digest(text))


def born(model: Model, data: bytes, *, start: bool = True) -> c.CreateCase:
    """The command that creates the story's case."""
    return c.CreateCase("default", CASE, model.spec.id, model.version, model.digest, bytes(16), data, start=start)


class CorePlayer:
    """The pure core: no store, no engine, no await that waits."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.model: Model | None = None
        self.case: Case | None = None

    def held(self) -> tuple[Case, Model]:
        """The case and its net."""
        assert self.case is not None
        assert self.model is not None
        return self.case, self.model

    async def begin(self, document: Document, data: bytes) -> list[HistoryEvent]:
        self.model = model_of(document)
        step = create(self.model, born(self.model, data), self.clock.now())
        self.case = step.case
        return self._rested(step)

    async def make(self, command: c.Command) -> list[HistoryEvent]:
        self.clock.advance(1)
        case, model = self.held()
        return [*self._rested(decide(case, model, command, self.clock.now())), *self._fired()]

    async def advance(self, seconds: float) -> list[HistoryEvent]:
        self.clock.advance(seconds)
        return self._fired()

    def _fired(self) -> list[HistoryEvent]:
        """Fire what is due, in order."""
        case, model = self.held()
        found: list[HistoryEvent] = []
        while case.state == "running" and case.timers:
            timer = min(case.timers.values(), key=lambda each: (each.due, each.number))
            if timer.due > self.clock.now():
                break
            found.extend(self._rested(decide(case, model, c.FireTimer(timer.number), self.clock.now())))
        return found

    async def explain(self) -> Explanation:
        return query.explanation(*self.held())

    async def data(self) -> bytes:
        return self.held()[0].root.data

    async def close(self) -> None:
        self.case = None

    def _rested(self, step: Step) -> list[HistoryEvent]:
        """The history of a step and of the slices after it."""
        case, model = self.held()
        found: list[HistoryEvent] = []
        while True:
            record = CommitRecord(step.now, META.principal, "", "", "", tuple(step.events))
            found.extend(render(CASE, case.sequence - len(step.events) + 1, record, model.veil))
            if not case.ready or case.state != "running":
                return found
            step = decide(case, model, c.Continue(), self.clock.now())


class KeptStore(MemoryStore):
    """A store in memory that outlives the engine that closes it."""

    async def close(self) -> None:
        """Nothing: the next engine opens it again."""


class EnginePlayer:
    """The engine's public operations over a store. Every `restart_every` steps (0: never) another engine opens it."""

    def __init__(self, path: str = "", restart_every: int = 0) -> None:
        self.path = path
        self.store = KeptStore()
        self.restart_every = restart_every
        self.clock = VirtualClock()
        self.steps = 0
        self.sequence = 0
        self.engine = self._engine()

    def _engine(self) -> WorkflowEngine:
        state = StateStore(self.path) if self.path else StateStore.over(self.store)
        return WorkflowEngine(state, clock=self.clock, ids=SeededIds(1))

    async def begin(self, document: Document, data: bytes) -> list[HistoryEvent]:
        # some stories are about getting stuck
        await self.engine.register_workflow(document, allow_unsound=True, meta=META)
        await self._restarted()
        await self.engine.run_case(str(document["id"]), data, case_id=CASE, meta=META)
        return await self._news()

    async def make(self, command: c.Command) -> list[HistoryEvent]:
        await self._restarted()
        self.clock.advance(1)
        await self._do(command)
        await self.engine.fire_due_timers()
        return await self._news()

    async def advance(self, seconds: float) -> list[HistoryEvent]:
        await self._restarted()
        self.clock.advance(seconds)
        await self.engine.fire_due_timers()
        return await self._news()

    async def explain(self) -> Explanation:
        return await self.engine.explain_case(CASE, meta=META)

    async def data(self) -> bytes:
        return (await self.engine.get_case(CASE, meta=META)).data

    async def close(self) -> None:
        await self.engine.close()

    async def _restarted(self) -> None:
        self.steps += 1
        if self.restart_every and self.steps % self.restart_every == 0:
            await self.engine.close()
            self.engine = self._engine()
            await self.engine.open()

    async def _do(self, command: c.Command) -> None:
        engine = self.engine
        match command:
            case c.StartItem(item, owner):
                await engine.start_work_item(_id(item), owner, meta=META)
            case c.CompleteItem(item, output, owner):
                await engine.complete_work_item(_id(item), output or None, owner, meta=META)
            case c.FailItem(item, code, message, owner):
                await engine.fail_work_item(_id(item), code, message, owner, meta=META)
            case c.SkipItem(item):
                await engine.skip_work_item(_id(item), meta=META)
            case c.ClaimItem(item, owner):
                await engine.claim_work_item(_id(item), owner, meta=META)
            case c.ReleaseItem(item):
                await engine.release_work_item(_id(item), meta=META)
            case c.SuspendCase(reason):
                await engine.suspend_case(CASE, reason, meta=META)
            case c.ResumeCase():
                await engine.resume_case(CASE, meta=META)
            case c.CancelCase(reason):
                await engine.cancel_case(CASE, reason, meta=META)
            case c.UpdateCaseData(patch, expected):
                await engine.update_case_data(CASE, patch, expected_sequence=expected, meta=META)
            case c.ResolveIncident(incident, action, data):
                await engine.resolve_incident(f"{incident}@{CASE}", action, data or None, meta=META)
            case c.Signal(name, data):
                await engine.trigger_case(name, data or None, case_id=CASE, meta=META)
            case c.AddInstance(task, activation, element):
                await engine.add_instance(CASE, task, element or None, activation=activation, meta=META)
            case c.CloseInstances(task, activation):
                await engine.close_instances(CASE, task, activation=activation, meta=META)
            case c.CompleteInstances(task, activation):
                await engine.complete_instances(CASE, task, activation=activation, meta=META)
            case c.CancelInstances(task, activation):
                await engine.cancel_instances(CASE, task, activation=activation, meta=META)
            case c.CancelTask(task, activation):
                await engine.cancel_task(CASE, task, activation=activation, meta=META)
            case _:
                raise AssertionError(f"a story has no {type(command).__name__}")
        if (await engine.get_case(CASE, meta=META)).state == "running":
            await engine.execute_case(CASE, meta=META)  # a long cascade goes on behind the answer: wait for it

    async def _news(self) -> list[HistoryEvent]:
        found: list[HistoryEvent] = []
        while True:
            page = await self.engine.get_case_history(CASE, after_sequence=self.sequence, page_size=1_000, meta=META)
            if not page.items:
                return found
            found.extend(page.items)
            self.sequence = found[-1].sequence


def _id(item: c.ItemRef) -> str:
    return f"{item.activation}.{item.instance}.{item.attempt}@{CASE}"
