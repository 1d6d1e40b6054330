"""What an author wrote, parsed: immutable, complete, without behaviour.

A `Spec` is one version of a workflow. It holds nets; a net holds tasks, conditions and flows. Everything a task can
carry (join, split, instances, cancel set, trigger, ...) is data here; `net.py` compiles it and `core` gives it meaning.
Names are those of the native document. Durations are seconds (float), expressions are CEL source text.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ROOT = ""  # the name of a workflow's top net
START = "start"
END = "end"

JoinKind = Literal["and", "xor", "or", "structured-or", "local-or", "partial", "merge"]
SplitKind = Literal["and", "xor", "or", "threads"]
Termination = Literal["implicit", "explicit"]


class Join(msgspec.Struct, frozen=True):
    """How arriving tokens enable a task. `partial`: `need` of `of` branches; `merge`: `count` tokens of one branch."""

    kind: JoinKind = "xor"  # a task with several incoming flows and no join merges them, as BPMN does
    need: int | str = 1  # a number, or CEL that is asked until the join fires
    of: int = 0  # 0 = the number of incoming flows
    mode: Literal["structured", "blocking", "cancelling"] = "structured"
    count: int = 1


class Split(msgspec.Struct, frozen=True):
    """Which outgoing flows get a token. `threads`: `count` tokens on every flow (WCP-42)."""

    kind: SplitKind = "and"  # parse infers xor when a flow carries `when` or `default`
    count: int = 1


class Instances(msgspec.Struct, frozen=True):
    """Multiple instances of one task (WCP-12..15, 26, 27, 34..36). Numbers may be CEL source."""

    min: int | str = 1
    max: int | str | None = None  # None: as `min` for static creation, the engine's limit for dynamic
    threshold: int | str | None = None
    until: str | None = None
    create: Literal["static", "dynamic"] = "static"
    rest: Literal["continue", "cancel"] = "continue"
    sync: bool = True
    sequential: bool = False


class Trigger(msgspec.Struct, frozen=True):
    """A named signal that a task waits for (WCP-23 transient, WCP-24 persistent)."""

    name: str
    mode: Literal["transient", "persistent"] = "persistent"


class Timer(msgspec.Struct, frozen=True):
    """When a timer task completes: after a duration, at a time, or at the next occurrence of a recurrence, whose cron
    line is told in a time zone. One of the first three is set."""

    after: float | str | None = None  # seconds, or CEL giving seconds or a duration text
    at: str | None = None  # RFC 3339 text or CEL
    every: str | None = None  # cron or ISO 8601 repeating interval
    time_zone: str = ""


class Loop(msgspec.Struct, frozen=True):
    """Structured loop (WCP-21): `while_` is tested before each run, `until` after it."""

    while_: str | None = None
    until: str | None = None


class Retry(msgspec.Struct, frozen=True):
    """Retry of outside work: attempts in all, first and longest back-off in seconds, growth factor."""

    max_attempts: int = 3
    backoff: float = 1.0
    max_backoff: float = 60.0
    factor: float = 2.0


class Assignment(msgspec.Struct, frozen=True):
    """One assignment of an `in` or `out` mapping: key = CEL."""

    key: str
    expression: str


class Task(msgspec.Struct, frozen=True):
    """One task of a net. Without role, connector, net, workflow, trigger, timer it is a routing task."""

    id: str
    name: str = ""
    description: str = ""
    join: Join = Join()
    split: Split = Split()
    instances: Instances | None = None
    for_each: str | None = None  # CEL giving a list: one instance per element, bound to `item`
    collect: str | None = None  # data key that receives the list of instance outputs
    cancels: tuple[str, ...] = ()
    completes: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()  # disablement: dynamic tasks that take no further instances
    trigger: Trigger | None = None
    timer: Timer | None = None
    mutex: str | None = None
    reads: tuple[str, ...] = ()
    loop: Loop | None = None
    net: str | None = None
    workflow: str | None = None  # `id` or `id@version`
    in_: tuple[Assignment, ...] | None = None
    out: tuple[Assignment, ...] | None = None
    required_roles: tuple[str, ...] = ()
    connector: str | None = None
    request: bytes = b""  # JSON object of connector settings; values may be CEL, the connector says which
    result: tuple[Assignment, ...] | None = None
    retry: Retry | None = None
    timeout: float | None = None
    deadline: str | None = None
    on_error: str | None = None  # the flow's target to take instead of raising an incident
    on_timeout: str | None = None
    compensate: str | None = None
    allocation: str = ""
    priority: int = 0


class Condition(msgspec.Struct, frozen=True):
    """An explicit place. `start` and `end` are implied and never listed."""

    id: str
    name: str = ""


class Flow(msgspec.Struct, frozen=True):
    """An arc. Between two tasks it implies a condition `source->target`."""

    source: str
    target: str
    when: str | None = None
    default: bool = False


class Net(msgspec.Struct, frozen=True):
    """A net: the root (`name` = ROOT) or a named sub-net."""

    name: str
    tasks: tuple[Task, ...] = ()
    conditions: tuple[Condition, ...] = ()
    flows: tuple[Flow, ...] = ()
    termination: Termination = "implicit"
    sections: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Spec(msgspec.Struct, frozen=True):
    """One workflow as its author wrote it. `nets[0]` is the root."""

    id: str
    name: str
    nets: tuple[Net, ...]
    data_schema: bytes = b""
    on_incident: Literal["keep", "fail"] = "keep"
    description: str = ""
    sensitive: tuple[str, ...] = ()  # data fields that are masked wherever a case is told about (veil.py)
