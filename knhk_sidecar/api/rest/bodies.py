"""The few request bodies that are friendlier than the contract's JSON: one entry per call, everything else is left as
it is.

RegisterWorkflow, ValidateWorkflow   the workflow document itself, as JSON or, by its media type, as YAML or XML
ExecutePattern, ExecutePatterns      variables that are not strings; they become case data
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from knhk_sidecar.api.rest.canonical import Json, parse
from knhk_workflow import InvalidInput

_SERVICES: Final = "/knhk.sidecar.v1"
_ENVELOPES: Final = frozenset({"spec", "spec_json", "specJson", "document"})
JSON_TYPES: Final = frozenset({"", "application/json", "text/json", "application/x-www-form-urlencoded", "text/plain"})
"""Read as JSON; the last two are what curl and fetch say when nobody told them."""
DOCUMENT_TYPES: Final[Mapping[str, str]] = {
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
    "application/xml": "",
    "text/xml": "",
}
"""Media types of a bare workflow document, and its format; empty: the sidecar looks."""


def request_body(path: str, media_type: str, raw: bytes) -> Json:
    """The body of a call (`path` is the gRPC path) in the contract's shape. Raises `InvalidInput`, or `KeyError` for a
    media type that this call does not take.
    """
    if media_type in JSON_TYPES or media_type.endswith("+json"):
        value: Json = parse(raw) if raw.strip() else {}
        adapt = _ADAPTERS.get(path)
        return adapt(value) if adapt is not None else value
    if path not in DOCUMENT_CALLS:
        raise KeyError(media_type)
    format_ = DOCUMENT_TYPES[media_type]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput.field("document", f"is not UTF-8 (byte {error.start})", "send it as UTF-8") from error
    return {"document": text, "format": format_}


def _document(value: Json) -> Json:
    """A workflow document without an envelope gets one. A document has none of the envelope's names at its top."""
    if isinstance(value, Mapping) and not _ENVELOPES & value.keys():
        return {"spec": value}
    return value


def _execution(value: Json) -> Json:
    if not isinstance(value, Mapping):
        return value
    variables, data = value.get("variables"), value.get("data")
    if not isinstance(variables, Mapping) or all(isinstance(each, str) for each in variables.values()):
        return value
    if not isinstance(data, Mapping | None):
        return value  # refused with its path by whoever reads it
    typed = {name: each for name, each in variables.items() if not isinstance(each, str)}
    texts = {name: each for name, each in variables.items() if isinstance(each, str)}
    return {**value, "variables": texts, "data": {**typed, **(data or {})}}


def _executions(value: Json) -> Json:
    if not isinstance(value, Mapping):
        return value
    found = value.get("executions")
    if isinstance(found, str) or not isinstance(found, Sequence):
        return value
    return {**value, "executions": [_execution(each) for each in found]}


_ADAPTERS: Final[Mapping[str, Callable[[Json], Json]]] = {
    f"{_SERVICES}.WorkflowService/RegisterWorkflow": _document,
    f"{_SERVICES}.WorkflowService/ValidateWorkflow": _document,
    f"{_SERVICES}.PatternService/ExecutePattern": _execution,
    f"{_SERVICES}.PatternService/ExecutePatterns": _executions,
}
DOCUMENT_CALLS: Final = frozenset(path for path, adapt in _ADAPTERS.items() if adapt is _document)
"""Calls whose body may be a workflow document in a media type of its own."""
