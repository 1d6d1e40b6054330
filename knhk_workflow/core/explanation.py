"""What an explanation says, as data: one record for each task of each live net."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["incident", "started", "offered", "waiting", "idle"]
WaitKind = Literal["token", "work_item", "sub_net", "trigger", "timer", "section", "milestone", "incident", "resume"]


class GuardReading(msgspec.Struct, frozen=True):
    """One guard with the values that it read and what came out (`true`, `false`, or the error).

    `flow` is the flow that it guards, or `while`, `until` for the conditions of a loop or of instances.
    """

    flow: str
    expression: str
    result: str
    values: dict[str, str]  # what it read, as people write it


class Wait(msgspec.Struct, frozen=True):
    """Something that a task waits for: what kind of thing, which one, and what can be said about it."""

    kind: WaitKind
    name: str  # the condition, work item, net instance, signal, lock or incident
    detail: str = ""


class TokenPath(msgspec.Struct, frozen=True):
    """Why an or-join waits: a live token, the empty input that it can reach, and the tasks on the way."""

    token: str  # the condition that holds it, or the task at work
    input: str
    path: tuple[str, ...]


class InstanceCount(msgspec.Struct, frozen=True):
    """One activation of a task with several instances. `threshold`: so many done let the flow go on, 0 = all."""

    activation: int
    total: int
    done: int
    open: int
    threshold: int
    released: bool  # the flow has gone on, the rest runs behind it
    accepts: bool  # more can be added


class TaskExplanation(msgspec.Struct, frozen=True):
    """Why one task of a live net is or is not enabled.

    `status`: offered (somebody may take it), started (work is going on), incident (a person is needed), waiting (some
    tokens arrived, but the join, a milestone, a signal or a lock keeps it), idle (nothing arrived yet).
    """

    net_instance: int
    net: str
    task_id: str
    status: Status
    sentence: str
    join: str
    arrived: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    waits_for: tuple[Wait, ...] = ()
    guards: tuple[GuardReading, ...] = ()
    paths: tuple[TokenPath, ...] = ()
    items: tuple[str, ...] = ()
    instances: tuple[InstanceCount, ...] = ()
    activations: tuple[int, ...] = ()
