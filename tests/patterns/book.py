"""What a reader of a story sees: names for the work, and sentences for what happened.

The first enabling of task B is called `B`, the second `B(2)`; inside a sub-net that task R carries out, `R.B`. The
outcome of a step is what changed for somebody outside; what goes without saying (tokens, sub-nets, merged data) is left
out.
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


class Known(msgspec.Struct):
    """A work item as a story knows it."""

    label: str
    task: str
    ref: ItemRef
    open: bool = True


Event = tuple[str, Told]
_NTH = re.compile(r"\(\d+\)")
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
        self._prefix: dict[int, str] = {root: ""}
        self._given: Counter[tuple[int, str]] = Counter()

    def read(self, history: Iterable[HistoryEvent]) -> list[str]:
        """The sentences for one step, in order."""
        step: list[Event] = []
        for event in history:
            assert event.sequence == self.sequence + 1, "the history has a gap"
            self.sequence = event.sequence
            step.append((event.event_type, msgspec.json.decode(event.data, type=Told)))
        seen: dict[str, set[int]] = {}
        for kind, told in step:
            seen.setdefault(kind, set()).add(told.activation)
        sentences: list[str] = []
        for kind, told in step:
            self._note(kind, told)
            sentence = self._sentence(kind, told, seen)
            if sentence:
                sentences.append(sentence)
        return sentences

    def item(self, name: str) -> Known | None:
        """The work that a story names: exactly that label, else the oldest open one of the task, else the last."""
        label = name.removesuffix("(1)")
        exact = [item for item in self.items if item.label == label]
        if "(" in name or "." in name:
            return exact[-1] if exact else None
        same = [item for item in self.items if item.task == name]
        return next((item for item in same if item.open), same[-1] if same else None)

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
        elif kind == "net_started" and told.net != self.root and told.activation:
            self._prefix[told.net] = self._labels[told.activation] + "."
        elif kind == "item_offered":
            ref = ItemRef(told.activation, told.instance, told.attempt)
            self.items.append(Known(self._labels[told.activation], told.task, ref))
        elif kind in ("item_completed", "item_failed", "item_skipped", "item_withdrawn", "item_terminated"):
            for item in self.items:
                if item.ref.activation == told.activation:
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

    def _sentence(self, kind: str, told: Told, seen: dict[str, set[int]]) -> str:
        if kind == "net_completed":
            return "case completed" if told.net == self.root != 1 else ""
        if kind == "state_changed":
            if told.state == "completed":
                return "case completed" if self.root == 1 else ""
            return "" if told.before == "created" else f"case {told.state}"
        if kind == "incident_resolved":
            return f"incident closed: {told.action}"
        if told.task in self.hidden or (told.net < self.root and not told.activation and kind != "incident_raised"):
            return ""
        if told.net < self.root:
            return ""
        label = self._labels.get(told.activation, "the net")
        now = told.activation
        if kind == "incident_raised":
            return f"incident {told.kind} at {label}"
        if kind == "task_enabled":
            return f"{label} started" if now in seen.get("net_started", ()) else ""
        if kind == "task_completed":
            return "" if now in seen.get("item_skipped", ()) else f"{label} completed"
        if kind == "task_cancelled":
            shown = now in seen.get("item_withdrawn", ()) or now in seen.get("item_terminated", ())
            return "" if shown else f"{label} cancelled"
        if kind == "item_offered":
            return f"{label} offered" if told.attempt == 1 else f"{label} offered again"
        if kind == "item_started":
            ended = ("item_completed", "item_failed", "item_skipped")
            return "" if any(now in seen.get(end, ()) for end in ended) else f"{label} started"
        if kind == "item_completed":
            return "" if now in seen.get("task_completed", ()) else f"{label} done"
        if kind == "item_allocated":
            return f"{label} allocated to {told.owner}"
        words = {
            "item_released": "offered again",
            "item_failed": "failed",
            "item_skipped": "skipped",
            "item_withdrawn": "withdrawn",
            "item_terminated": "terminated",
        }
        return f"{label} {words[kind]}" if kind in words else ""


def counted(sentences: Iterable[str]) -> list[str]:
    """The sentences without instance numbers and paths, each once with how often it was said, in order."""
    counts: Counter[str] = Counter(_plain(sentence) for sentence in sentences)
    return [f"{sentence} x{count}" if count > 1 else sentence for sentence, count in counts.items()]


def _plain(sentence: str) -> str:
    return _NTH.sub("", _PATH.sub("", sentence))
