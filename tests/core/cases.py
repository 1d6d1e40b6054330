"""A case in a test: a document, the core, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, encode_state, item_ref
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.explain import explain
from knhk_workflow.core.explanation import TaskExplanation
from knhk_workflow.core.step import Step
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import parse_spec

Document = dict[str, object]
Action = Literal["retry", "skip", "complete", "fail_case"]
WORK: Document = {"required_roles": ["worker"]}

_event = msgspec.msgpack.Decoder(e.EventType)


class Played:
    """A case being played. Every step is also replayed from its encoded events, and the two must agree."""

    def __init__(self, document: Document, data: object = None, *, start: bool = True) -> None:
        self.model = compile_spec(parse_spec({"id": "test", **document}), 1, b"digest")
        self.now = 1_000
        command = c.CreateCase(
            "default", "case", "test", 1, b"digest", b"salt", msgspec.json.encode(data or {}), start=start
        )
        self.history: list[e.Event] = []
        self.shadow: Case | None = None
        step = create(self.model, command, self.now)
        self.case = step.case
        self.events: list[e.Event] = []
        self._took(step)

    def do(self, command: c.Command) -> list[e.Event]:
        """One command and the slices after it; the events of all."""
        self.now += 1
        self.events = []
        self._took(decide(self.case, self.model, command, self.now))
        return self.events

    def refused(self, command: c.Command) -> None:
        """Carry out a command that is going to raise; the case must be untouched by it."""
        before = encode_state(self.case)
        try:
            decide(self.case, self.model, command, self.now + 1)
        finally:
            assert encode_state(self.case) == before

    def ref(self, task: str, nth: int = 0) -> c.ItemRef:
        """The n-th open work item of a task, oldest first."""
        found = [item_ref(activation, run) for activation, run in self.case.open_work() if activation.task == task]
        return found[nth]

    def complete(self, task: str, output: object = None) -> list[e.Event]:
        """Complete the oldest work item of a task."""
        body = b"" if output is None else msgspec.json.encode(output)
        return self.do(c.CompleteItem(self.ref(task), body))

    @property
    def data(self) -> object:
        """The case's data."""
        return msgspec.json.decode(self.case.root.data)

    @property
    def open(self) -> list[str]:
        """Tasks with open work, oldest first."""
        return [activation.task for activation, _ in self.case.open_work()]

    @property
    def incidents(self) -> list[str]:
        """Kinds of the open incidents."""
        return [incident.kind for incident in self.case.incidents.values()]

    def resolve(
        self, action: Literal["retry", "skip", "complete", "fail_case"], data: object = None, incident: int = 0
    ) -> list[e.Event]:
        """Resolve an incident, the last one unless named."""
        body = b"" if data is None else msgspec.json.encode(data)
        return self.do(c.ResolveIncident(incident or max(self.case.incidents), action, body))

    def explained(self, task: str) -> TaskExplanation:
        """Why a task is where it is."""
        return next(found for found in explain(self.case, self.model) if found.task_id == task)

    def _took(self, step: Step) -> None:
        while True:
            self.events.extend(step.events) if self.history else None
            self.history.extend(step.events)
            recorded = [_event.decode(msgspec.msgpack.encode(event)) for event in step.events]
            self.shadow = replay(self.shadow, step.now, recorded) if recorded else self.shadow
            assert self.shadow is not None
            assert encode_state(self.shadow) == encode_state(self.case)
            if not self.case.ready or self.case.state != "running":
                return
            step = decide(self.case, self.model, c.Continue(), self.now)


def flow(source: str, target: str, when: str | None = None, *, default: bool = False) -> Document:
    """One flow."""
    return {"from": source, "to": target} | ({"when": when} if when else {}) | ({"default": True} if default else {})


def path(*stations: str) -> list[Document]:
    """Flows from each station to the next."""
    return [flow(source, target) for source, target in pairwise(stations)]
