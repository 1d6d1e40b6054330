"""Arguments at the engine's border: ids and JSON objects, checked once and trusted inside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from knhk_workflow.core.commands import ItemRef
from knhk_workflow.core.data import EMPTY
from knhk_workflow.errors import InvalidInput, LimitExceeded, Problem
from knhk_workflow.model.document import json_object as parsed_object
from knhk_workflow.model.schema import compiled_schema
from knhk_workflow.model.spec import Spec
from knhk_workflow.model.veil import veil_of

ID_BYTES_MAX: Final = 256  # fits a key, a label and a log line
BATCH_MAX: Final = 1_000  # cases or items in one call; one group commit holds about as many

JsonObject = Mapping[str, object] | bytes | None
"""A JSON object as a mapping or as encoded bytes; None is the empty one."""

_encode = msgspec.json.Encoder().encode
_ITEM = re.compile(r"(\d{1,18})\.(\d{1,18})\.(\d{1,18})", re.ASCII)
_INCIDENT = re.compile(r"(\d{1,18})@(.+)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked_id(value: str, path: str, *, empty: bool = False) -> str:
    """A free-form id: up to 256 bytes without control characters."""
    if not value:
        if empty:
            return value
        raise InvalidInput.field(path, "must not be empty", 'for example "order-17"')
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput.field(path, "is not valid Unicode text") from error
    if size > ID_BYTES_MAX:
        raise InvalidInput.field(path, f"has {size} bytes, at most {ID_BYTES_MAX} are allowed")
    if _CONTROL.search(value):
        raise InvalidInput.field(path, "must not contain control characters")
    return value


def checked_batch(what: str, count: int) -> None:
    """The size of a list that comes in one call. Raises LimitExceeded."""
    if count > BATCH_MAX:
        raise LimitExceeded(f"{what} in one call", BATCH_MAX, count, "split the list")


def json_object(value: JsonObject, path: str) -> bytes:
    """The compact bytes of a JSON object. Raises InvalidInput naming `path` and where inside it."""
    if value is None:
        return EMPTY
    if not isinstance(value, bytes):
        try:
            value = _encode(value)
        except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
            raise InvalidInput.field(path, f"is not a JSON object: {error}", 'for example {"amount": 120}') from error
    return parsed_object(value, path=path)[1]


def checked_schema(spec: Spec, data: bytes) -> None:
    """Check a case's data against the workflow's `data_schema`, if it has one; every violation at once."""
    if not spec.data_schema:
        return
    violations = compiled_schema(spec.data_schema).violations(msgspec.json.decode(data))
    if violations:
        veil = veil_of(spec)
        problems = [
            Problem(".".join(("data", *map(str, where))), "schema", veil.message(message, (data,)))
            for where, message in violations
        ]
        raise InvalidInput(f"the data does not match the data_schema of workflow {spec.id!r}", problems)


def parse_item_id(item_id: str) -> tuple[ItemRef, str]:
    """`activation.instance.attempt@case` taken apart."""
    text, _, case_id = item_id.partition("@")
    ref = _item_ref(text)
    if ref is None or not case_id:
        raise InvalidInput.field(
            "item_id", f"{item_id[:100]!r} is not a work item id", "as listed, for example 3.1.1@order-17"
        )
    return ref, case_id


@lru_cache(4_096)  # the same few in every case: 3.1.1 is its third activation
def _item_ref(text: str) -> ItemRef | None:
    match = _ITEM.fullmatch(text)
    return ItemRef(*map(int, match.groups())) if match is not None else None


def parse_incident_id(incident_id: str) -> tuple[int, str]:
    """`number@case` taken apart."""
    match = _INCIDENT.fullmatch(incident_id)
    if match is None:
        raise InvalidInput.field(
            "incident_id", f"{incident_id[:100]!r} is not an incident id", "as listed, for example 1@order-17"
        )
    return int(match.group(1)), match.group(2)
