"""One entry of the catalogue, and the small vocabulary that entries are written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec

Category = Literal[
    "Basic Control Flow",
    "Advanced Branching and Synchronization",
    "Multiple Instances",
    "State-based",
    "Cancellation and Force Completion",
    "Iteration",
    "Termination",
    "Trigger",
]

Net = Mapping[str, object]
"""A native workflow document without its id and name."""

OUTSIDE: Final[dict[str, object]] = {"required_roles": ["worker"]}
"""A task that somebody outside starts and completes, so that the two moments lie apart."""


class Move(msgspec.Struct, frozen=True):
    """One move of the outside in a script: what is done to which task, with which JSON object as output."""

    move: str
    task: str = ""
    name: str = ""
    data: bytes = b""


class Pattern(msgspec.Struct, frozen=True):
    """One control-flow pattern.

    `context` is what must hold for the pattern to be meaningful (empty: nothing), `plus` what full support demands,
    `literature` what the source says about it and what was chosen here where it leaves room. `net` is None while the
    construct that carries the pattern cannot be executed. `data` is what the net's guards read when the caller says
    nothing else; `script` runs the net to its end.
    """

    number: int
    name: str
    category: Category
    semantics: str
    construct: str
    context: str
    plus: str
    literature: str
    aliases: tuple[str, ...] = ()
    net: Net | None = None
    data: Mapping[str, object] = {}
    script: tuple[Move, ...] = ()

    @property
    def available(self) -> bool:
        """Whether its net can be executed."""
        return self.net is not None

    @property
    def spec_id(self) -> str:
        """The workflow id of its net."""
        return f"wcp-{self.number:02}"

    @property
    def document(self) -> Mapping[str, object]:
        """Its net as a native document. Only for available patterns."""
        assert self.net is not None
        return {"id": self.spec_id, "name": self.name, **self.net}


def outside(*tasks: str) -> dict[str, object]:
    """Tasks that the outside carries out, without further settings."""
    return dict.fromkeys(tasks, OUTSIDE)


def flow(source: str, target: str, when: str | None = None, *, default: bool = False) -> Mapping[str, object]:
    """One flow of a document."""
    body: dict[str, object] = {"from": source, "to": target}
    if when is not None:
        body["when"] = when
    if default:
        body["default"] = True
    return body


def path(*stations: str) -> list[Net]:
    """Flows from each station to the next."""
    return [flow(source, target) for source, target in pairwise(stations)]


def true(key: str) -> str:
    """A guard that holds when `key` is true, be it a boolean or the text of a variable; an absent key is false."""
    return f'has(data.{key}) && string(data.{key}) == "true"'


def completed(*tasks: str) -> tuple[Move, ...]:
    """The outside completes one task after the other."""
    return tuple(Move("complete", task) for task in tasks)


def moves(*steps: str) -> tuple[Move, ...]:
    """Moves written as `start A`, `complete A(2) {"q": true}`, or `trigger name`."""
    return tuple(_move(step) for step in steps)


def _move(step: str) -> Move:
    words: Sequence[str] = step.split(" ", 2)
    target = words[1] if len(words) > 1 else ""
    data = words[2].encode() if len(words) > 2 else b""
    if words[0] == "trigger":
        return Move(words[0], name=target, data=data)
    task, _, nth = target.removesuffix(")").partition("(")
    return Move(words[0], task, nth, data)
