"""Every order in which the outside can do its work: all interleavings of starts, completions and signals.

Two cases in the same situation have the same future, so the orders are found over situations rather than over
sequences of moves; each situation is reached through the same core as everything else. In each of them the case must
equal its own replay, and at the end it must be completed, with nothing left.
"""

from __future__ import annotations

import msgspec

from knhk_workflow.core import commands as c
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, NetInstance, decode_state, encode_state, item_ref
from knhk_workflow.core.decide import create, decide
from knhk_workflow.core.step import Step
from knhk_workflow.errors import WrongState
from knhk_workflow.model.net import Model
from tests.patterns.players import Document, born, model_of

SITUATIONS_MAX = 20_000  # a net for which this is too little is no small net

Orders = frozenset[tuple[str, ...]]


def told(document: Document, data: bytes, signals: tuple[str, ...] = ()) -> str:
    """All orders of completions, and how many situations there were. Each of `signals` comes once, at any time."""
    model = model_of(document)
    step = create(model, born(model, data), 1)
    first = completions(step)
    search = Search(model)
    orders = sorted(first + order for order in search.orders(step.case, signals))
    texts = [" ".join(order) for order in orders]
    ends = " or ".join(sorted(search.ends))
    return f"{' | '.join(texts)}; every one of the {len(search.known)} situations is sound, the end is {ends}"


def completions(step: Step) -> tuple[str, ...]:
    """The tasks that a step completed, and the single instances of those that have several."""
    several = {name for net in step.model.nets.values() for name, node in net.tasks.items() if node.many is not None}
    names: list[str] = []
    for event in step.events:
        if isinstance(event, e.TaskCompleted):
            names.append(event.task)
        elif isinstance(event, e.ItemCompleted) and event.task in several:
            names.append(f"{event.task}#{event.instance}")
    return tuple(names)


class Search:
    """The situations seen, each with the orders that are possible from it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[bytes, Orders] = {}
        self.ends: set[str] = set()

    def orders(self, case: Case, signals: tuple[str, ...] = ()) -> Orders:
        """Every order of completions from here on, with these signals still to come."""
        key = situation(case) + msgspec.msgpack.encode(signals)
        if key not in self.known:
            assert len(self.known) < SITUATIONS_MAX
            found = {
                completions(step) + rest
                for step, left in self._steps(case, signals)
                for rest in self.orders(step.case, left)
            }
            if not found:
                self._ended(case)
                found = {()}
            self.known[key] = frozenset(found)
        return self.known[key]

    def _steps(self, case: Case, signals: tuple[str, ...]) -> list[tuple[Step, tuple[str, ...]]]:
        """Everything that can happen next, with the signals that are left then."""
        moves: list[tuple[c.Command, tuple[str, ...]]] = []
        for activation, run in case.open_work():
            ref = item_ref(activation, run)
            moves.append((c.CompleteItem(ref) if run.state == "started" else c.StartItem(ref), signals))
        if case.state == "running":
            moves.extend(
                (c.Signal(signals[index]), signals[:index] + signals[index + 1 :])
                for index in {signals.index(name) for name in signals}
            )
            if case.timers:  # time passes: the nearest timer is due
                nearest = min(case.timers.values(), key=lambda timer: (timer.due, timer.number))
                moves.append((c.FireTimer(nearest.number), signals))
        steps: list[tuple[Step, tuple[str, ...]]] = []
        before = encode_state(case)
        for command, left in moves:
            try:
                due = case.timers[command.timer].due if isinstance(command, c.FireTimer) else 0
                step = decide(decode_state(before), self.model, command, max(case.now + 1, due))
            except WrongState:
                continue  # somebody else holds its lock
            assert not step.case.ready, "a small net settles in one slice"
            again = replay(decode_state(before), step.now, step.events)
            assert encode_state(again) == encode_state(step.case), "the replay differs"
            steps.append((step, left))
        return steps

    def _ended(self, case: Case) -> None:
        kinds = sorted(incident.kind for incident in case.incidents.values())
        self.ends.add(f"{case.state} ({', '.join(kinds)})" if kinds else case.state)
        if case.state == "completed":
            assert not case.activations
            assert not case.incidents
            assert not case.tokens()
            assert not case.locks
            assert not case.signals


def situation(case: Case) -> bytes:
    """What decides the future of a case: markings, live work and data, not how it got there."""
    nets = sorted((net.name, net.depth, _held(net), net.data, net.incident > 0) for net in case.nets.values())
    work = sorted(
        (
            case.nets[activation.net].name,
            case.nets[activation.net].depth,
            activation.task,
            activation.inputs,
            (activation.started, activation.released, activation.closed, activation.signalled, activation.count),
            sorted((run.number, run.state) for run in activation.instances.values()),
        )
        for activation in case.activations.values()
    )
    locks = sorted((name, lock.waiting) for name, lock in case.locks.items())
    timers = [
        (timer.kind, timer.task, timer.instance)
        for timer in sorted(case.timers.values(), key=lambda timer: (timer.due, timer.number))
    ]
    signals = [(kept.name, kept.data) for kept in case.signals]
    return msgspec.msgpack.encode((case.state, nets, work, locks, signals, timers))


def _held(net: NetInstance) -> list[object]:
    """The marking of a net and the books of its joins."""
    return [sorted(held.items()) for held in (net.marking, net.seen, net.expected, net.dead)]
