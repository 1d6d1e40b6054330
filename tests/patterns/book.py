"""What a reader of a story sees: names for the work, and sentences for what happened.

The first enabling of task B is called `B`, the second `B(2)`; its instances, when there are several, `B#1`, `B#2`;
inside a sub-net that task R carries out, `R.B`. The outcome of a step is what changed for somebody outside; what goes
without saying (tokens that move on, sub-nets, merged data) is left out:

    B waits                     enabled, and waits for its signal
    t taken by B, t kept, t lost
    B#3 offered, B#3 done       an instance; B completed, when all that are needed are done
    B instance 3 added, B closed, B released (the flow goes on, instances still run)
    section s taken by B, section s free, mutex m taken by B, C waits for mutex m
    D absorbs C->D, D re-armed  a partial join swallows a late token; its next round begins
    B passed over               a false token went past B
    B is due, B takes too long, B is past its deadline, B is tried again
    C->F emptied                a cancel region took the tokens there
    R is undone, U undoes A     a net ended unsuccessfully; what was completed in it is undone, newest first
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from knhk_workflow.core.commands import ItemRef
from knhk_workflow.runtime.views import HistoryEvent


class Told(msgspec.Struct, frozen=True):
    """The fields of history events that outcomes are made of."""

    net: int = 0
    parent: int = 0
    activation: int = 0
    instance: int = 0
    attempt: int = 0
    task: str = ""
    owner: str = ""
    kind: str = ""
    action: str = ""
    incident: int = 0
    before: str = ""
    state: str = ""
    name: str = ""
    outcome: str = ""
    lock: str = ""
    reason: str = ""
    count: int = 1
    condition_met: bool | None = None
    seen: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    produced: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    of: str = ""


class Known(msgspec.Struct):
    """A work item as a story knows it."""

    label: str
    task: str
    ref: ItemRef
    open: bool = True


Event = tuple[str, Told]
Seen = dict[str, set[tuple[int, int]]]
"""What happened in a step: per kind of event the activations, and their instances."""

ENDS = ("item_completed", "item_failed", "item_skipped", "item_withdrawn", "item_terminated", "item_force_completed")
TIMES = {
    "timer": "is due",
    "timeout": "takes too long",
    "deadline": "is past its deadline",
    "retry": "is tried again",
}
_NTH = re.compile(r"\(\d+\)|#\d+")
_PATH = re.compile(r"\b(?:\w+(?:\(\d+\))?\.)+")


class Book:
    """Follows one case. `root` is the net that the story is about: 1, or 2 when it is nested in another one.

    `hidden` tasks are scaffolding around the story's net; completing `hidden[-1]` begins a new round, in which names
    are given anew.
    """

    def __init__(self, root: int = 1, hidden: Sequence[str] = ()) -> None:
        self.root = root
        self.hidden = tuple(hidden)
        self.round = 1
        self.sequence = 0
        self.activations = 0
        self.items: list[Known] = []
        self.incidents: dict[int, tuple[str, int]] = {}  # number -> (label, activation)
        self.state = ""
        self._labels: dict[int, str] = {}
        self._many: set[int] = set()  # activations with several instances from the start
        self._prefix: dict[int, str] = {root: ""}
        self._given: Counter[tuple[int, str]] = Counter()

    def read(self, history: Iterable[HistoryEvent]) -> list[str]:
        """The sentences for one step, in order."""
        step: list[Event] = []
        for event in history:
            assert event.sequence == self.sequence + 1, "the history has a gap"
            self.sequence = event.sequence
            step.append((event.event_type, msgspec.json.decode(event.data, type=Told)))
        seen: Seen = {}
        for kind, told in step:
            seen.setdefault(kind, set()).update(((told.activation, 0), (told.activation, told.instance)))
        sentences: list[str] = []
        for kind, told in step:
            self._note(kind, told)
            sentence = self._sentence(kind, told, seen)
            if sentence:
                sentences.append(sentence)
        return sentences

    def item(self, name: str) -> Known | None:
        """The work that a story names: exactly that label, else the oldest open one of the task, else the last."""
        label = name.replace("(1)", "")
        exact = [item for item in self.items if item.label in (label, label.removesuffix("#1"))]
        if any(mark in name for mark in "(.#"):
            return exact[-1] if exact else None
        same = [item for item in self.items if item.task == name]
        return next((item for item in same if item.open), same[-1] if same else None)

    def activation(self, name: str) -> tuple[str, int]:
        """The task that a story names, and its activation where the name says which one; 0 where it does not."""
        task = _plain(name)
        if task == name:
            return task, 0
        label = name.replace("(1)", "")
        return task, max(number for number, known in self._labels.items() if known == label)

    def incident(self, name: str) -> int:
        """The open incident on a task, or on `net`."""
        for number, (label, activation) in self.incidents.items():
            if name in (label, _plain(label)) or (name == "net" and not activation):
                return number
        raise AssertionError(f"no incident on {name!r}")

    def _note(self, kind: str, told: Told) -> None:
        if kind == "task_enabled":
            self.activations = told.activation
            self._given[told.net, told.task] += 1
            nth = self._given[told.net, told.task]
            label = self._prefix.get(told.net, "") + told.task + (f"({nth})" if nth > 1 else "")
            self._labels[told.activation] = label
            if told.count > 1:
                self._many.add(told.activation)
        elif kind == "net_started" and told.net != self.root and told.activation:
            self._prefix[told.net] = self._label(told) + "."
        elif kind == "item_offered":
            ref = ItemRef(told.activation, told.instance, told.attempt)
            self.items.append(Known(self._label(told), told.task, ref))
        elif kind in ENDS:
            for item in self.items:
                if (item.ref.activation, item.ref.instance) == (told.activation, told.instance):
                    item.open = False
        elif kind == "incident_raised":
            self.incidents[told.incident] = (self._labels.get(told.activation, ""), told.activation)
        elif kind == "incident_resolved":
            del self.incidents[told.incident]
        elif kind == "state_changed":
            self.state = told.state
        elif kind == "task_completed" and self.hidden and told.task == self.hidden[-1]:
            self.round += 1
            self._given.clear()

    def _label(self, told: Told) -> str:
        """The name of what an event is about: an activation, or one instance of it."""
        label = self._labels.get(told.activation, "the net")
        several = told.instance > 1 or (told.instance == 1 and told.activation in self._many)
        return f"{label}#{told.instance}" if several else label

    def _sentence(self, kind: str, told: Told, seen: Seen) -> str:
        if kind == "net_completed":
            return "case completed" if told.net == self.root != 1 else ""
        if kind == "state_changed":
            if told.state == "completed":
                return "case completed" if self.root == 1 else ""
            return "" if told.before == "created" else f"case {told.state}"
        if kind == "incident_resolved":
            return f"incident closed: {told.action}"
        if kind in ("trigger_received", "trigger_taken"):
            by = f"taken by {self._labels.get(told.activation)}"
            return f"{told.name} {by if told.outcome in ('', 'taken') else told.outcome}"
        if kind == "lock_released":
            return f"{_lock(told.lock)} free"
        if told.task in self.hidden or (told.net < self.root and not told.activation and kind != "incident_raised"):
            return ""
        if told.net < self.root:
            return ""
        if kind.startswith("item_"):
            return self._item_sentence(kind, told, seen)
        if kind.startswith("task_"):
            return self._task_sentence(kind, told, seen)
        if kind == "timer_fired":
            return f"{self._label(told)} {TIMES[told.kind]}"
        if kind == "incident_raised":
            return f"incident {told.kind} at {self._label(told)}"
        return self._quiet_sentence(kind, told)

    def _item_sentence(self, kind: str, told: Told, seen: Seen) -> str:
        """About one work item. That the item of a plain task is done shows in the task's completion."""
        label, now = self._label(told), (told.activation, told.instance)
        if kind == "item_offered":
            return f"{label} offered" if told.attempt == 1 else f"{label} offered again"
        if kind == "item_started":
            return "" if any(now in seen.get(end, ()) for end in ENDS[:3]) else f"{label} started"
        if kind == "item_completed":
            plain = label == self._labels[told.activation]
            return "" if plain and (told.activation, 0) in seen.get("task_completed", ()) else f"{label} done"
        if kind == "item_allocated":
            return f"{label} allocated to {told.owner}"
        words = {
            "item_released": "offered again",
            "item_failed": "failed",
            "item_skipped": "skipped",
            "item_withdrawn": "withdrawn",
            "item_terminated": "terminated",
            "item_force_completed": "forced",
        }
        return f"{label} {words[kind]}"

    def _task_sentence(self, kind: str, told: Told, seen: Seen) -> str:
        """About an activation. What its one work item says already is not said again."""
        label, now = self._labels[told.activation], (told.activation, 0)
        if kind == "task_enabled":
            if now in seen.get("net_started", ()):
                return f"{label} started"
            shown = ("item_offered", "incident_raised", "task_completed", "task_cancelled")
            return "" if any(now in seen.get(each, ()) for each in shown) else f"{label} waits"
        if kind == "task_completed":
            if now in seen.get("item_skipped", ()) and told.activation not in self._many:
                return ""
            return f"{label} completed" + (", although its condition is false" if told.condition_met is False else "")
        if kind == "task_cancelled":
            ended = any(now in seen.get(end, ()) for end in ("item_withdrawn", "item_terminated"))
            return "" if ended and told.activation not in self._many else f"{label} {told.reason}"
        return f"{label} released" if kind == "task_released" else ""

    def _quiet_sentence(self, kind: str, told: Told) -> str:
        """About joins, locks, regions and instances."""
        label = self._prefix.get(told.net, "") + told.task
        if kind == "rollback_begun":
            where = self._prefix.get(told.net, "").removesuffix(".")
            return f"{where} is undone" if where else "everything is undone"
        if kind == "compensation_begun":
            return f"{self._labels[told.activation]} undoes {told.of}"
        if kind == "instance_added":
            return f"{self._labels[told.activation]} instance {told.instance} added"
        if kind == "instances_closed":
            return f"{self._labels[told.activation]} closed"
        if kind == "lock_taken":
            return f"{_lock(told.lock)} taken by {label}"
        if kind == "lock_awaited":
            return f"{label} waits for {_lock(told.lock)}"
        if kind == "join_moved":
            absorbs = f"{label} absorbs {' and '.join(told.absorbed)}" if told.absorbed else ""
            return ", ".join(part for part in (absorbs, "" if told.seen else f"{label} re-armed") if part)
        if kind == "tokens_removed":
            return f"{' and '.join(dict.fromkeys(told.conditions))} emptied"
        return f"{label} passed over" if kind == "dead_path_moved" and told.produced else ""


def _lock(name: str) -> str:
    """`section inner/s` as stories call it, whichever net it lies in."""
    kind, _, rest = name.partition(" ")
    return f"{kind} {rest.rpartition('/')[2]}"


def counted(sentences: Iterable[str]) -> list[str]:
    """The sentences without instance numbers and paths, each once with how often it was said, in order."""
    counts: Counter[str] = Counter(_plain(sentence) for sentence in sentences)
    return [f"{sentence} x{count}" if count > 1 else sentence for sentence, count in counts.items()]


def _plain(sentence: str) -> str:
    return _NTH.sub("", _PATH.sub("", sentence))
