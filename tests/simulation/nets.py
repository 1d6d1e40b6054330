"""Workflows for the simulation, as native documents: a set that has every construct, and random ones.

Guards read `n0` .. `n3`, small numbers that clients put into the data, sometimes leave out, and change. Random nets are
built from blocks (sequence, parallel, choice, loop, deferred choice, sub-net) and then, sometimes, spoiled by an extra
flow, so that some get stuck, run for ever or end with tokens left.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

from knhk_workflow.patterns.catalogue import PATTERNS

Document = Mapping[str, object]

VARIABLES: Final = ("n0", "n1", "n2", "n3")
SIGNALS: Final = ("go", "t", "stop")
DEPTH_MAX: Final = 3
ROLE: Final = ["clerk"]


def _net(tasks: str, flows: str, conditions: str = "", **more: object) -> dict[str, object]:
    """Tasks as `a! b c&`: `!` is work for a person, `&` joins all. Flows as `a>b[data.n0 > 1] b>c[]`: `[]` default."""
    made: dict[str, object] = {}
    for word in tasks.split():
        body: dict[str, object] = {}
        if "!" in word:
            body["required_roles"] = ROLE
        if "&" in word:
            body["join"] = "and"
        made[word.rstrip("!&")] = body
    arcs: list[dict[str, object]] = []
    for word in flows.split():
        ends, _, guard = word.partition("[")
        source, target = ends.split(">")
        arc: dict[str, object] = {"from": source, "to": target}
        if guard == "]":
            arc["default"] = True
        elif guard:
            arc["when"] = guard.rstrip("]").replace("~", " ")
        arcs.append(arc)
    return {"tasks": made, "flows": arcs, "conditions": [{"id": name} for name in conditions.split()], **more}


def _pump(levels: int) -> dict[str, object]:
    """Each level doubles the tokens: 2 ** levels automatic firings from one."""
    tasks = " ".join(f"t{level}" for level in range(levels))
    conditions = " ".join(f"a{level} b{level}" for level in range(levels))
    flows = ["start>t0"]
    for level in range(levels - 1):
        flows += [f"t{level}>a{level}", f"t{level}>b{level}", f"a{level}>t{level + 1}", f"b{level}>t{level + 1}"]
    return _net(tasks, " ".join(flows), conditions)


FIXED: Final[tuple[Document, ...]] = (
    {"id": "one", **_net("a!", "start>a a>end")},
    {"id": "line", **_net("a! b c! d", "start>a a>b b>c c>d d>end")},
    {"id": "parallel", **_net("s a! b! c j&", "start>s s>a s>b s>c a>j b>j c>j j>end")},
    {"id": "choice", **_net("a! b! c! d", "start>a a>b[data.n0~>~2] a>c[data.n1~>~1] a>d[] b>end c>end d>end")},
    {"id": "loop", **_net("a! b!", "start>a a>b b>a[data.n0~<~3] b>end[]")},
    {"id": "spin", **_net("a b!", "start>a a>a[data.n2~>~0] a>b[] b>end")},
    {"id": "pump", **_pump(5)},
    {
        "id": "pumped",
        **_net("g! t0 t1 t2 t3 w!", "start>g g>t0 t0>a t0>b a>t1 b>t1 t1>c t1>d c>t2 d>t2 t2>t3 t3>w w>end", "a b c d"),
    },
    {"id": "deferred", **_net("a! b! c", "start>a start>b a>c b>c c>end")},
    {"id": "rival", **_net("s x! y m r& z!", "start>s s>p s>y p>x y>m m>q q>r p>r r>end x>end z>end s>z", "p q")},
    {"id": "ending", **_net("s a! b!", "start>s s>a s>b a>end b>end", termination="explicit")},
    {"id": "surplus", **_net("s a! b! j&", "start>s s>a s>b a>a[data.n0~>~4] a>j[] b>j j>end")},
    {"id": "stuck", **_net("s a! b! j&", "start>s s>a[data.n0~>~1] s>b[] a>j b>j j>end")},
    {"id": "broken", **_net("a! b!", "start>a a>b[data.absent.deep~>~1] a>end[] b>end", on_incident="fail")},
    {"id": "hurry", **_net("a! late b!", "start>a start>late a>b late>b b>end")},
    {"id": "patience", **_net("s a! b! c!", "start>s s>a s>c a>end[data.n0~>~2] a>b[] b>end c>end")},
    {
        "id": "nested",
        **_net("a inner b!", "start>a a>inner inner>b b>end"),
        "nets": {"part": _net("x! y!", "start>x start>y x>end y>end")},
    },
    {
        "id": "recursive",
        **_net("a again", "start>a a>again again>end"),
        "nets": {"deep": _net("x! down up", "start>x x>down[data.n3~>~0] x>up[] down>end up>end")},
    },
    {"id": "signalled", **_net("a! late now b!", "start>a a>late a>now late>b now>end b>end")},
    {"id": "called", **_net("told! b!", "start>told told>told[data.n0~>~3] told>b[] b>end")},
    {"id": "undone", **_net("hotel! car! pay! no_hotel! no_car", "start>hotel hotel>car car>pay pay>end")},
    {
        "id": "trip",
        **_net("travel done! sorry!", "start>travel travel>sorry[false] travel>done[] done>end sorry>end"),
        "nets": {
            "journey": _net(
                "h! c! p! no_h! no_c!",
                "start>h h>c c>p p>end",
            )
        },
    },
    {"id": "locked", **_net("s a! b! c d! j&", "start>s s>a s>b s>c s>d a>j b>j c>j d>end j>end")},
    {"id": "many", **_net("list! grow! most! b!", "start>list list>grow grow>most most>b b>end")},
)

CALLING: Final[tuple[Document, ...]] = (
    {"id": "effects", **_net("a! pay b!", "start>a a>pay pay>b b>end")},
    {
        "id": "errands",
        **_net("s x! safe once checked j&", "start>s s>x s>safe s>once s>checked x>j safe>j once>j checked>j j>end"),
    },
    {"id": "sorry", **_net("pay b! c", "start>pay pay>b b>c c>end")},
)
"""Workflows whose tasks are done by the simulated services (outside.py), in the episodes that have them."""

CALLING_IDS: Final = frozenset(str(document["id"]) for document in CALLING)

_BY_ID: Final = {str(document["id"]): document for document in FIXED}
for _name, _task, _net_name, _mapping in (
    ("nested", "inner", "part", {"n0": "data.n0", "n1": "1"}),
    ("recursive", "again", "deep", None),
):
    _tasks = _BY_ID[_name]["tasks"]
    assert isinstance(_tasks, dict)
    _tasks[_task] = {"net": _net_name} | ({"in": _mapping} if _mapping else {})
_TIMES: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "hurry": {"late": {"timer": {"after": "data.n1"}}, "b": {"retry": {"max_attempts": 3, "backoff": 2}}},
    "patience": {
        "a": {"timeout": 5, "on_timeout": "b"},
        "b": {"timeout": 3, "retry": {"max_attempts": 2, "backoff": "500ms"}},
        "c": {"deadline": "2026-01-01T00:00:20Z"},
    },
}
_MORE: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "signalled": {
        "late": {"trigger": {"name": "go"}, "timeout": 20, "on_timeout": "b"},
        "now": {"trigger": {"name": "stop", "mode": "transient"}},
    },
    "called": {"told": {"trigger": {"name": "t"}, "out": {"n1": "1"}}},
    "undone": {
        "hotel": {"compensate": "no_hotel"},
        "car": {"compensate": "no_car", "retry": {"max_attempts": 2, "backoff": 1}},
        "no_car": {"retry": {"max_attempts": 2, "backoff": 1}},
    },
    "trip": {"travel": {"net": "journey", "on_error": "sorry", "timeout": 30, "split": "xor"}},
    "locked": {
        "a": {"mutex": "m"},
        "b": {"mutex": "m", "timeout": 4, "retry": {"max_attempts": 2, "backoff": 1}},
        "c": {"mutex": "m"},
        "d": {"cancels": ["a", "b"]},
    },
    "many": {
        "list": {"for_each": "data.list", "collect": "done"},
        "grow": {"instances": {"min": 1, "max": 4, "create": "dynamic"}, "timeout": 10},
        "most": {"instances": {"min": 3, "max": 3, "threshold": 2, "rest": "cancel"}},
    },
}
for _document in FIXED:
    for _task, _body in {**_TIMES, **_MORE}.get(str(_document["id"]), {}).items():
        _tasks = _document["tasks"]
        assert isinstance(_tasks, dict)
        _tasks[_task] |= _body
_nets = next(document for document in FIXED if document["id"] == "recursive")["nets"]
assert isinstance(_nets, dict)
_nets["deep"]["tasks"]["down"] = {"net": "deep", "in": {"n3": "data.n3 - 1"}}
_nets = _BY_ID["trip"]["nets"]
assert isinstance(_nets, dict)
_nets["journey"]["tasks"]["h"]["compensate"] = "no_h"
_nets["journey"]["tasks"]["c"]["compensate"] = "no_c"

_RETRY: Final[Mapping[str, object]] = {"max_attempts": 4, "backoff": "500ms"}
_CALLS: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "effects": {"pay": {"connector": "safe", "request": {"n": "${string(data.n1)}"}, "retry": _RETRY}},
    "errands": {
        name: {"connector": name, "request": {"what": name}, "retry": _RETRY, "result": {name: "data.status"}}
        for name in ("safe", "once", "checked")
    },
    "sorry": {
        "pay": {"connector": "once", "request": {"what": "pay"}, "timeout": 2, "retry": _RETRY, "on_error": "b"},
        "c": {"connector": "checked", "request": {"what": "c"}},
    },
}
for _document in CALLING:
    for _task, _body in _CALLS[str(_document["id"])].items():
        _tasks = _document["tasks"]
        assert isinstance(_tasks, dict)
        _tasks[_task] |= _body

PATTERN_DOCUMENTS: Final[tuple[Document, ...]] = tuple(pattern.document for pattern in PATTERNS if pattern.available)
"""The nets of the pattern catalogue: every construct at least once."""
PATTERN_DATA: Final[Mapping[str, Mapping[str, object]]] = {
    pattern.spec_id: pattern.data for pattern in PATTERNS if pattern.data
}
"""What their guards read."""


class _Builder:
    """One net in the making."""

    def __init__(self, random: Random, nets: dict[str, object], depth: int) -> None:
        self.random = random
        self.nets = nets
        self.depth = depth
        self.tasks: dict[str, dict[str, object]] = {}
        self.flows: list[dict[str, object]] = []
        self.conditions: list[str] = []

    def task(self, *, route: bool = False, join: str = "") -> str:
        name = f"t{len(self.tasks)}"
        body: dict[str, object] = {}
        if join:
            body["join"] = join
        if not route and self.random.random() < 0.6:
            body["required_roles"] = ROLE
        self.tasks[name] = body
        return name

    def condition(self) -> str:
        name = f"c{len(self.conditions)}"
        self.conditions.append(name)
        return name

    def flow(self, source: str, target: str, when: str = "", default: bool = False) -> None:
        flow: dict[str, object] = {"from": source, "to": target}
        if when:
            flow["when"] = when
        if default:
            flow["default"] = True
        self.flows.append(flow)

    def guard(self) -> str:
        name = self.random.choice(VARIABLES)
        return f"data.{name} {self.random.choice(('>', '<', '=='))} {self.random.randint(0, 4)}"

    def block(self, depth: int) -> tuple[str, str]:
        """First and last task of a block."""
        kind = self.random.choice(("task", "sequence", "parallel", "choice", "loop", "deferred", "net"))
        if depth >= DEPTH_MAX or kind == "task":
            task = self.task()
            return task, task
        if kind == "sequence":
            first, last = self.block(depth + 1)
            for _ in range(self.random.randint(1, 2)):
                next_first, next_last = self.block(depth + 1)
                self.flow(last, next_first)
                last = next_last
            return first, last
        if kind == "net" and self.depth == 0:
            name = f"sub{len(self.nets)}"
            self.nets[name] = {}
            self.nets[name] = build(self.random, self.nets, 1)
            task = self.task(route=True)
            self.tasks[task]["net"] = name
            return task, task
        split = self.task(route=self.random.random() < 0.5)
        join = self.task(route=True, join="and" if kind == "parallel" else "")
        if kind == "loop":
            first, last = self.block(depth + 1)
            self.flow(split, first)
            self.flow(last, join)
            self.flow(join, first, self.guard())
            out = self.task(route=True)
            self.flow(join, out, default=True)
            return split, out
        place = self.condition() if kind == "deferred" else ""
        if place:
            self.flow(split, place)
        branches = self.random.randint(2, 3)
        for index in range(branches):
            first, last = self.block(depth + 1)
            if place:
                self.flow(place, first)
            elif kind == "choice" and index < branches - 1:
                self.flow(split, first, self.guard())
            else:
                self.flow(split, first, default=kind == "choice")
            self.flow(last, join)
        return split, join


def build(random: Random, nets: dict[str, object], depth: int) -> dict[str, object]:
    """A random net; sub-nets go to `nets`."""
    builder = _Builder(random, nets, depth)
    first, last = builder.block(depth)
    builder.flow("start", first)
    builder.flow(last, "end")
    if random.random() < 0.2:  # spoiled: a token more or less than the structure wants
        names = list(builder.tasks)
        source, target = random.choice(names), random.choice(names)
        taken = {(flow["from"], flow["to"]) for flow in builder.flows}
        guarded = {flow["from"] for flow in builder.flows if "when" in flow}
        if (source, target) not in taken and source not in guarded and source != last:
            builder.flow(source, target)
    return {
        "tasks": builder.tasks,
        "flows": builder.flows,
        "conditions": builder.conditions,
        "termination": random.choice(("implicit", "implicit", "explicit")),
    }


def random_document(random: Random, number: int) -> Document:
    """A random workflow `random-<number>`."""
    nets: dict[str, object] = {}
    document = {"id": f"random-{number}", **build(random, nets, 0)}
    if nets:
        document["nets"] = nets
    if random.random() < 0.1:
        document["on_incident"] = "fail"
    return document
