"""What a connector is to send, as a task's `request` says it.

Every text in `request` may hold expressions in `${...}`: the value of each is put in its place, a text as it is,
anything else as JSON. `$${` stands for `${`. In `url` and `path` what is put in is percent-encoded, so that data can
never choose another host, path segment or parameter. The members named in EXPRESSIONS are an expression as a whole
instead, when they are a text: their value may be any JSON. Numbers, truth values, lists and maps are what they are,
texts inside them as above. Which members a connector knows is the connector's affair.

Expressions are those of guards: CEL over `data` and, in instances, `item`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from knhk_workflow.model.expression import Expression, ExpressionInvalid, compile_expression

EXPRESSIONS: Final = frozenset({"body", "message", "value", "fields"})
"""Members that are an expression: the content of an HTTP request, a gRPC message, a record of Kafka or Salesforce."""
ENCODED: Final = frozenset({"url", "path"})
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
DEPTH_MAX: Final = 16  # of a request; headers and parameters are two deep

Node = object
"""A compiled part: an Expression, a Text, a list or map of parts, or a plain value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text with expressions in it: `parts` alternate between texts (even places) and expressions (odd ones)."""

    parts: tuple[str | Expression, ...]
    encoded: bool

    def filled(self, data: object, item: object) -> str:
        """The text with the values in place. Raises EvaluationFailed."""
        found: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                found.append(part)
                continue
            value = part.value(data, item)
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            found.append(_encoded(text) if self.encoded else text)
        return "".join(found)


class Request:
    """A compiled `request`. Immutable."""

    __slots__ = ("_members",)

    def __init__(self, members: Mapping[str, Node]) -> None:
        self._members = members

    def evaluated(self, data: object, item: object = None) -> bytes:
        """What is to be sent, a JSON object. Raises EvaluationFailed."""
        return msgspec.json.encode({key: _evaluated(node, data, item) for key, node in self._members.items()})


def compile_request(source: bytes) -> Request:
    """The request of a task; an empty one sends nothing but what the connector itself says. Raises ExpressionInvalid,
    whose `where` names the member."""
    members = msgspec.json.decode(source) if source else {}
    return Request({key: _compiled(value, key, key, 0) for key, value in members.items()})


class RequestInvalid(ExpressionInvalid):
    """An expression in a request that does not compile; `where` is its place, such as `headers.x-id`."""

    def __init__(self, where: str, error: ExpressionInvalid) -> None:
        super().__init__(error.text, error.line, error.column, error.problem, error.hint)
        self.where = where


def _compiled(value: object, key: str, where: str, depth: int) -> Node:
    if depth > DEPTH_MAX:
        raise RequestInvalid(where, ExpressionInvalid("", 0, 0, f"is nested deeper than {DEPTH_MAX}"))
    if isinstance(value, str):
        if depth == 0 and key in EXPRESSIONS:
            return _expression(value, where)
        return _text(value, key in ENCODED, where)
    if isinstance(value, dict):
        return {name: _compiled(each, name, f"{where}.{name}", depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_compiled(each, key, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
    return value


def _expression(text: str, where: str) -> Expression:
    try:
        return compile_expression(text)
    except ExpressionInvalid as error:
        raise RequestInvalid(where, error) from None


def _text(text: str, encoded: bool, where: str) -> Node:
    parts: list[str | Expression] = []
    plain, place = "", 0
    while True:
        opening = text.find("${", place)
        if opening < 0:
            break
        if opening > place and text[opening - 1] == "$":
            plain += text[place : opening - 1] + "${"
            place = opening + 2
            continue
        closing = _closing(text, opening + 2)
        if closing < 0:
            raise RequestInvalid(
                where, ExpressionInvalid(text, 0, 0, "has ${ without its }", "write $${ for ${ itself")
            )
        parts += [plain + text[place:opening], _expression(text[opening + 2 : closing], where)]
        plain, place = "", closing + 1
    rest = plain + text[place:]
    return Text((*parts, rest), encoded) if parts else rest


def _encoded(text: str) -> str:
    """Percent-encoding of everything but what RFC 3986 2.3 calls unreserved."""
    return "".join(chr(byte) if chr(byte) in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


def _closing(text: str, place: int) -> int:
    """Where the expression that begins at `place` ends: braces nest, those in its texts do not count; -1: nowhere."""
    depth, within = 0, ""
    while place < len(text):
        here = text[place]
        if within:
            if here == "\\":
                place += 1
            elif here == within:
                within = ""
        elif here in "\"'":
            within = here
        elif here == "{":
            depth += 1
        elif here == "}":
            if not depth:
                return place
            depth -= 1
        place += 1
    return -1


def _evaluated(node: Node, data: object, item: object) -> object:
    if isinstance(node, Expression):
        return node.value(data, item)
    if isinstance(node, Text):
        return node.filled(data, item)
    if isinstance(node, dict):
        return {name: _evaluated(each, data, item) for name, each in node.items()}
    if isinstance(node, list):
        return [_evaluated(each, data, item) for each in node]
    return node
