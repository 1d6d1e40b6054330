"""Nets as a line of text, the way people draw them on paper.

    start -> A; A and-split -> B, C; B, C and-join -> D; D -> end
    A xor-split -> B when p1 | C when data.n > 3 | D otherwise
    A -> (p); (p) -> B, C                                    a place is written in parentheses
    routing: M, N                                            everybody else is carried out by the outside
    M sets n = data.n + 1                                    an `out` mapping (`sets nothing`: an empty one)
    R runs Level with d = int(data.d) - 1                    a sub-net and its `in` mapping
    explicit                                                 the end ends the net
    B is {instances: {min: 3, sync: false}, mutex: m}        anything else of a task, as in a document (flow style YAML)
    net is {sections: {s: [B1, B2]}}                         anything else of the net

A lone word after `when` means that the data key of that name is true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import yaml

from knhk_workflow.patterns.pattern import OUTSIDE, true

Document = dict[str, object]

_WORD = re.compile(r"[A-Za-z_]\w*")


class Sketch:
    """One net in the making."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, object]] = {}
        self.conditions: list[str] = []
        self.flows: list[dict[str, object]] = []
        self.explicit = False
        self.more: dict[str, object] = {}

    def read(self, statement: str) -> None:
        """Add what one statement says."""
        if " is {" in statement:
            name, _, body = statement.partition(" is ")
            (self.more if name == "net" else self.task(name)).update(yaml.safe_load(body))
        elif statement == "explicit":
            self.explicit = True
        elif statement.startswith("routing:"):
            for name in names(statement.partition(":")[2]):
                self.tasks[name] = {key: value for key, value in self.task(name).items() if key not in OUTSIDE}
        elif " runs " in statement:
            name, _, rest = statement.partition(" runs ")
            net, _, mapping = rest.partition(" with ")
            self.tasks[name] = {"net": net.strip()} | ({"in": assignments(mapping)} if mapping else {})
        elif " sets " in statement:
            name, _, mapping = statement.partition(" sets ")
            self.task(name)["out"] = {} if mapping == "nothing" else assignments(mapping)
        else:
            self._flows(*statement.split("->", 1))

    def task(self, name: str) -> dict[str, object]:
        """A task, made when new; it is carried out by the outside until something else is said."""
        return self.tasks.setdefault(name, dict(OUTSIDE))

    def document(self) -> Document:
        """The net as a native document without id."""
        made: Document = {"tasks": self.tasks, "flows": self.flows}
        if self.conditions:
            made["conditions"] = self.conditions
        if self.explicit:
            made["termination"] = "explicit"
        return made | self.more

    def _flows(self, left: str, right: str) -> None:
        left, split = _kind(left, "-split")
        left, join = _kind(left, "-join")
        sources = [self._station(name) for name in names(left)]
        branches = [self._branch(text) for text in right.split("|" if "|" in right else ",")]
        for source in sources:
            if split:
                self.task(source)["split"] = split
            self.flows.extend({"from": source, **branch} for branch in branches)
        if join:
            for branch in branches:
                self.task(str(branch["to"]))["join"] = join

    def _branch(self, text: str) -> dict[str, object]:
        target, when, guard = text.strip().partition(" when ")
        if when:
            guard = guard.strip()
            return {"to": self._station(target), "when": true(guard) if _WORD.fullmatch(guard) else guard}
        if target.endswith(" otherwise"):
            return {"to": self._station(target.removesuffix(" otherwise")), "default": True}
        return {"to": self._station(target)}

    def _station(self, text: str) -> str:
        name = text.strip()
        if name.startswith("("):
            name = name.strip("()")
            if name not in self.conditions:
                self.conditions.append(name)
        elif name not in ("start", "end"):
            self.task(name)
        return name


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def assignments(text: str) -> dict[str, str]:
    """`a = 1, b = 2` as a mapping. Expressions without commas only."""
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in text.split(","))}


def _kind(text: str, ending: str) -> tuple[str, str]:
    words = text.split()
    if words and words[-1].endswith(ending):
        return " ".join(words[:-1]), words[-1].removesuffix(ending)
    return text, ""


def document(name: str, lines: Iterable[str]) -> Document:
    """The document of a net and its sub-nets; lines begin with `net:` or `sub-net Name:`."""
    sketches: dict[str, Sketch] = {}
    for line in lines:
        head, _, body = line.partition(":")
        sketch = sketches.setdefault(head.removeprefix("sub-net").strip() if head != "net" else "", Sketch())
        for statement in body.split(";"):
            if statement.strip():
                sketch.read(statement.strip())
    made = {"id": name, **sketches.pop("").document()}
    if sketches:
        made["nets"] = {name: sketch.document() for name, sketch in sketches.items()}
    return made


def nested(found: Mapping[str, object]) -> Document:
    """The same net as the sub-net of a task that stands between start and end."""
    inner = {key: value for key, value in found.items() if key not in ("id", "name", "nets")}
    outer = Sketch()
    outer.read("wrap runs inner")
    outer.read("start -> wrap")
    outer.read("wrap -> end")
    nets = found.get("nets", {})
    assert isinstance(nets, dict)
    return {"id": f"{found['id']}-nested", **outer.document(), "nets": {"inner": inner, **nets}}


def looped(found: Mapping[str, object], rounds: int) -> Document:
    """The same net with its end led back to its start: it runs `rounds` times, then ends."""
    tasks, flows = found["tasks"], found["flows"]
    conditions = found.get("conditions", [])
    assert isinstance(tasks, dict)
    assert isinstance(flows, list)
    assert isinstance(conditions, list)
    moved = [
        {
            **flow,
            "from": "begin" if flow["from"] == "start" else flow["from"],
            "to": "finish" if flow["to"] == "end" else flow["to"],
        }
        for flow in flows
    ]
    return {
        **found,
        "id": f"{found['id']}-looped",
        "tasks": {**tasks, "enter": {}, "again": {"out": {"round": "data.round + 1"}}},
        "conditions": [*conditions, "begin", "finish"],
        "flows": [
            *moved,
            {"from": "start", "to": "enter"},
            {"from": "enter", "to": "begin"},
            {"from": "finish", "to": "again"},
            {"from": "again", "to": "begin", "when": f"data.round <= {rounds}"},
            {"from": "again", "to": "end", "default": True},
        ],
    }
