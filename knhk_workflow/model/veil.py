"""What must not be shown of a case's data: the fields that a workflow names as `sensitive`.

A name covers every member of that name, at any depth, in the data of the case, of its work and of its signals. A field
that a mapping (`in`, `out`, `result`) makes of a sensitive one is sensitive too, as is whatever `for_each` takes from
one (`item`, wherever it stands then) and all that a connector is sent when its request mentions one.

Whoever works with a case is given its data as they are: GetCase, a work item's input, a connector's request. Everything
that tells about a case shows MASK instead: history, watches, explanations, exports, incidents and other messages, dead
letters. In a message it is the values that are looked for, because nobody knows how they came into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from knhk_workflow.model.spec import Assignment, Spec, Task

MASK: Final = "***"
VALUE_CHARACTERS_MIN: Final = 2  # shorter values are everywhere in a message, and say nothing there
VALUES_MAX: Final = 1_000  # looked for in one message; each look is linear in it

ELEMENT: Final = "item"  # what expressions and an instance's data call the element that it is for
_MASKED: Final = msgspec.json.encode(MASK)


class Veil(msgspec.Struct, frozen=True):
    """The sensitive fields of one workflow; false when there are none."""

    names: frozenset[str] = frozenset()
    elements: frozenset[str] = frozenset()
    """Tasks whose instances are made of a sensitive list."""
    requests: frozenset[str] = frozenset()
    """Tasks whose connector is sent something sensitive."""

    @property
    def listed(self) -> tuple[str, ...]:
        """The names in order."""
        return tuple(sorted(self.names)) if self.names else ()

    def __bool__(self) -> bool:
        return bool(self.names)

    def value(self, found: object) -> object:
        """A JSON value without what is sensitive in it; where nothing is, the value itself and no copy."""
        return self._value(found) if self.names else found

    def _value(self, found: object) -> object:
        if isinstance(found, dict):
            return {key: MASK if key in self.names else self._value(each) for key, each in found.items()}
        if isinstance(found, list):
            return [self._value(each) for each in found]
        return found

    def json(self, data: bytes) -> bytes:
        """JSON text without what is sensitive in it."""
        if not self.names or not data:
            return data
        return msgspec.json.encode(self.value(msgspec.json.decode(data)))

    def input(self, task: str, data: bytes) -> bytes:
        """A task's input; of a connector that is sent something sensitive nothing is left, as it may be in any part."""
        if not data:
            return data
        return _MASKED if task in self.requests else self.json(data)

    def element(self, task: str, data: bytes) -> bytes:
        """The element of a list that an instance of a task is for."""
        return _MASKED if task in self.elements else self.json(data)

    def message(self, text: str, documents: Iterable[bytes]) -> str:
        """`text` without the sensitive values in these data (JSON)."""
        for leaf in self._values(documents):
            text = text.replace(leaf, MASK)
        return text

    def report(self, data: bytes, documents: Iterable[bytes]) -> bytes:
        """What somebody outside says about work, JSON: without sensitive fields, and without the values in `documents`
        wherever they stand, because it may quote what it was sent."""
        if not self.names or not data:
            return data
        values = self._values(documents)

        def clean(found: object) -> object:
            if isinstance(found, dict):
                return {key: clean(each) for key, each in found.items()}
            if isinstance(found, list):
                return [clean(each) for each in found]
            if isinstance(found, str):
                for leaf in values:
                    found = found.replace(leaf, MASK)
            elif str(found) in values:
                return MASK
            return found

        return msgspec.json.encode(clean(self.value(msgspec.json.decode(data))))

    def _values(self, documents: Iterable[bytes]) -> list[str]:
        """The sensitive values in these documents, the longest first."""
        values: set[str] = set()
        if not self.names:
            return []
        for data in documents:
            for leaf in self._hidden(msgspec.json.decode(data), False):
                if len(leaf) >= VALUE_CHARACTERS_MIN:
                    values.add(leaf)
                if len(values) >= VALUES_MAX:
                    break
        return sorted(values, key=len, reverse=True)

    def _hidden(self, found: object, inside: bool) -> Iterator[str]:
        """The sensitive leaves, as a message may have them."""
        if isinstance(found, dict):
            for key, each in found.items():
                yield from self._hidden(each, inside or key in self.names)
                if inside:
                    yield key
        elif isinstance(found, list):
            for each in found:
                yield from self._hidden(each, inside)
        elif inside and found is not None and not isinstance(found, bool):
            if isinstance(found, str):
                yield from {
                    found,
                    repr(found)[1:-1],
                    msgspec.json.encode(found).decode()[1:-1],
                    json.dumps(found)[1:-1],
                }
            else:
                yield str(found)


OPEN: Final = Veil()
"""Nothing is hidden."""


def veil_of(spec: Spec) -> Veil:
    """The sensitive fields of a workflow, with those that its mappings make of them."""
    if not spec.sensitive:
        return OPEN
    names = set(spec.sensitive)
    tasks = [task for net in spec.nets for task in net.tasks]
    while True:
        mentions = _mentioning(names)
        made = {each.key for task in tasks for each in _assignments(task) if mentions.search(each.expression)}
        lists = [task for task in tasks if task.for_each is not None and mentions.search(task.for_each)]
        if lists:
            made.add(ELEMENT)
        if made <= names:
            break
        names |= made
    sent = [task.id for task in tasks if mentions.search(task.request.decode())]
    return Veil(frozenset(names), frozenset(task.id for task in lists), frozenset(sent))


def _assignments(task: Task) -> Iterator[Assignment]:
    for each in (task.in_, task.out, task.result):
        yield from each or ()


def _mentioning(names: Iterable[str]) -> re.Pattern[str]:
    """Whether an expression mentions one of these names."""
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(re.escape(name) for name in sorted(names))})(?![A-Za-z0-9_])")
