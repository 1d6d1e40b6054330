"""A case's history for readers: each event with its number, time, name and content as JSON.

The event type is the event's class name in snake case; it is part of the contract and never changes. The content names
tasks and work items the way other calls name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from knhk_workflow.core import events as e
from knhk_workflow.core.explain_times import time_text
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.model.veil import Veil
from knhk_workflow.runtime.records import CommitRecord
from knhk_workflow.runtime.views import HistoryEvent

_HIDDEN = frozenset({"salt", "digest", "tenant", "case_id"})
_JSON = frozenset({"data", "patch", "output", "element"})
_PLAIN: Mapping[str, object] = {
    "count": 1,
    "threshold": 0,
    "elements": (),
    "dead": (),
    "consumed": (),
    "replace": False,
    "expires": 0,
    "again": 0,
    "failed": (),
    "lease": 0,
}
"""What a field says where the construct that it belongs to is not used: left out."""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


EVENT_TYPES: Mapping[type[e.Event], str] = {kind: _snake(kind.__name__) for kind in e.EventType.__args__}


def render(case_id: str, first: int, record: CommitRecord, veil: Veil) -> Iterator[HistoryEvent]:
    """The events of one commit record, numbered from `first`, without what the workflow's `veil` hides."""
    for sequence, event in enumerate(record.events, first):
        content = _content(case_id, event, record, veil)
        yield HistoryEvent(case_id, sequence, record.time, EVENT_TYPES[type(event)], content)


def _content(case_id: str, event: e.Event, record: CommitRecord, veil: Veil) -> bytes:
    content: dict[str, object] = {}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name in _HIDDEN or value is None or value == b"" or value == "":
            continue
        if name in _PLAIN and value == _PLAIN[name]:
            continue
        if name == "elements":
            content[name] = [msgspec.Raw(_veiled(veil, event, "element", element)) for element in value]
        elif name == "due":
            content[name] = time_text(value)
        elif name == "lease":
            content[name] = f"{value / NS_PER_S:g}s"
        else:
            content[name] = msgspec.Raw(_veiled(veil, event, name, value)) if name in _JSON else value
    if "attempt" in content:
        content["item_id"] = f"{content['activation']}.{content['instance']}.{content['attempt']}@{case_id}"
    content["by"] = record.principal
    return msgspec.json.encode(content)


def _veiled(veil: Veil, event: e.Event, name: str, data: bytes) -> bytes:
    """The JSON of an event's field as it may be shown."""
    if not veil:
        return data
    if name == "element":
        return veil.element(getattr(event, "task", ""), data)
    return veil.input(event.task, data) if isinstance(event, e.ItemOffered) else veil.json(data)
