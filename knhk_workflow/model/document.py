"""Text from outside, read strictly: JSON and YAML into plain values, or InvalidInput that says where and what.

Both readers yield the same: dict with text keys, list, str, int within int64, finite float, bool, None; no value
occurs inside itself. Refused are what JSON libraries let through: duplicate keys (two readers would see different
documents), NaN and infinity, integers beyond 64 bits, half surrogates, bytes that are not UTF-8, nesting beyond
DEPTH_MAX (recursion in C crashes the process), trailing text.

YAML is read by the rules of its version 1.2 with JSON's scalars: only `true` and `false` are booleans, `no`, `on` and
dates stay texts, keys are always texts. Aliases are expanded within a budget; merge keys and tags are refused.

Measured for an object of 60 bytes: 2 us when it is compact already, 6 us otherwise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Final, NoReturn

import msgspec
import yaml

from knhk_workflow.errors import InvalidInput, Problem

DEPTH_MAX: Final = 64  # nesting; what expressions may yield as well
DATA_MAX: Final = 2 * 1024 * 1024  # bytes of case data, of one output, one trigger
DOCUMENT_MAX: Final = 5 * 1024 * 1024  # bytes of a workflow document: 10,000 tasks with descriptions are about 2 MB
NODES_MAX: Final = 500_000  # values in a YAML document after aliases; 10,000 tasks and 50,000 flows have 400,000

_INT64_MAX: Final = 2**63 - 1
_INT64_MIN: Final = -(2**63)
_INT_DIGITS_MAX: Final = 20  # an int64 with its sign; longer ones are not even converted (that is quadratic)
_LONG_NUMBER: Final = re.compile(rb"\d{19}")
_SHOWN: Final = 40  # characters of a wrong text in a message
_SHOWN_STEPS: Final = 12  # of a path

_decoder: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


def strict_json(data: bytes, *, max_bytes: int = DATA_MAX, max_depth: int = DEPTH_MAX, path: str = "") -> object:
    """The value of JSON text. `path` leads the paths of problems, for example the name of a request's field."""
    return _read(data, max_bytes, max_depth, path)[0]


def json_object(
    data: bytes, *, max_bytes: int = DATA_MAX, max_depth: int = DEPTH_MAX, path: str = "data_json"
) -> tuple[dict[str, object], bytes]:
    """(value, compact form) of `data`, verified to be one JSON object. Nothing at all stands for `{}`."""
    if not data:
        return {}, b"{}"
    value, compact = _read(data, max_bytes, max_depth, path)
    if not isinstance(value, dict):
        raise InvalidInput.field(
            path or "(document)", f"must be a JSON object, this is {_kind(value)}", 'for example {"amount": 250}'
        )
    return value, compact


def _read(data: bytes, max_bytes: int, max_depth: int, path: str) -> tuple[object, bytes]:
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes, path)
    try:
        value = _decoder.decode(data)
        compact = _encoder.encode(value)
    except (ValueError, RecursionError):  # the slow reader says what it is and where
        return _read_slowly(data, max_depth, path)
    # Text that comes back unchanged had no duplicate keys, no spaces and no odd numbers.
    if compact != data or _LONG_NUMBER.search(data):
        return _read_slowly(data, max_depth, path)
    if data.count(b"{") + data.count(b"[") > max_depth and _deeper_than(value, max_depth):
        raise _too_deep(max_depth, path)
    return value, compact


class _Refused(ValueError):
    """Raised inside the JSON scanner, which does not know where it is; `_locate` finds out."""

    def __init__(self, code: str, what: str, hint: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.hint = hint


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("duplicate_key", "", "")
    return found


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _INT_DIGITS_MAX else _INT64_MAX + 1
    if not _INT64_MIN <= number <= _INT64_MAX:
        shown = digits[:_SHOWN]
        raise _Refused("number_range", f"the integer {shown} does not fit into 64 bits", "send it as a text")
    return number


def _decimal(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Refused(
            "number_range", f"the number {digits[:_SHOWN]} is beyond what a double holds", "send it as a text"
        )
    return number


def _constant(name: str) -> NoReturn:
    raise _Refused("not_a_number", f"{name} is not JSON", "leave the key out or use null")


_slow: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_decimal, parse_constant=_constant
)


def _read_slowly(data: bytes, max_depth: int, path: str) -> tuple[object, bytes]:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        what = f"is not UTF-8: byte {data[problem.start]:#04x} at offset {problem.start}"
        raise InvalidInput.field(path or "(document)", what, code="encoding") from None
    try:
        value = _slow.decode(text)
        compact = _encoder.encode(value)
    except RecursionError:
        raise _too_deep(max_depth, path) from None
    except _Refused as refused:
        raise _located(refused, text, path) from None
    except json.JSONDecodeError as problem:
        shown = text[problem.pos : problem.pos + _SHOWN].split("\n")[0]
        what = f"is not JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}"
        what += f", before {shown!r}" if shown else ", at the end"
        raise InvalidInput.field(path or "(document)", what, code="syntax") from None
    except UnicodeEncodeError:
        what = "a text holds half of a surrogate pair"
        raise InvalidInput.field(path or "(document)", what, "write \\ud83d\\ude00 as a pair", "encoding") from None
    if _deeper_than(value, max_depth):
        raise _too_deep(max_depth, path)
    return value, compact


def _too_large(size: int, limit: int, path: str) -> InvalidInput:
    what = f"has {size:,} bytes, the limit is {limit:,}"
    return InvalidInput.field(path or "(document)", what, code="too_large")


def _too_deep(max_depth: int, path: str) -> InvalidInput:
    return InvalidInput.field(path or "(document)", f"is nested deeper than {max_depth}", code="depth")


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            element
            for container in level
            for element in (
                container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()
            )
            if type(element) is dict or type(element) is list
        ]
        if not level:
            return False
    return True


_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def _located(refused: _Refused, text: str, path: str) -> InvalidInput:
    """The refusal with the path of its cause: the first duplicate key, or the first number that is refused."""
    where: list[str | int] = []
    seen: list[set[str] | None] = []
    expect_key = False
    for match in _JSON_TOKEN.finditer(text):
        word = match.group()
        if word in "{[":
            seen.append(set() if word == "{" else None)
            where.append("" if word == "{" else 0)
            expect_key = word == "{"
        elif word in "}]":
            seen and seen.pop()
            where and where.pop()
            expect_key = False
        elif word == ",":
            expect_key = bool(seen) and seen[-1] is not None
            if where and isinstance(where[-1], int):
                where[-1] += 1
        elif word[0] == '"':
            if not (expect_key and seen and seen[-1] is not None):
                continue
            expect_key = False
            key = str(json.loads(word))
            where[-1] = key
            if refused.code == "duplicate_key" and key in seen[-1]:
                at = _dotted(path, where)
                return InvalidInput.field(at, f"the key {key!r} occurs twice", "keep one of them", "duplicate_key")
            seen[-1].add(key)
        elif word != ":" and refused.code != "duplicate_key" and _is_refused(word):
            return InvalidInput.field(_dotted(path, where), refused.what, refused.hint, refused.code)
    return InvalidInput.field(path or "(document)", refused.what or "a key occurs twice", refused.hint, refused.code)


def _is_refused(token: str) -> bool:
    try:
        _slow.decode(token)
    except _Refused:
        return True
    except ValueError:
        return False
    return False


def _dotted(path: str, where: list[str | int]) -> str:
    for step in where[:_SHOWN_STEPS]:
        if step != "":
            path += f"[{step}]" if isinstance(step, int) else f".{step[:_SHOWN]}" if path else step[:_SHOWN]
    return (path or "(document)") + ("..." if len(where) > _SHOWN_STEPS else "")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}[
        type(value)
    ]


# ------------------------------------------------------------------------------------------------------------- YAML

_YAML_NULL: Final = frozenset({"", "~", "null"})
_YAML_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_YAML_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_YAML_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9]")
_YAML_NOT_A_NUMBER: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_YAML_TAGS: Final = {
    f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")
}


def strict_yaml(
    text: str | bytes, *, max_bytes: int = DOCUMENT_MAX, max_depth: int = DEPTH_MAX, path: str = ""
) -> object:
    """The value of one YAML document. Aliased parts are shared, never cyclic. JSON is YAML, so it is read too."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes, path)
    try:
        source = data.decode()
    except UnicodeDecodeError as problem:
        what = f"is not UTF-8: byte {data[problem.start]:#04x} at offset {problem.start}"
        raise InvalidInput.field(path or "(document)", what, code="encoding") from None
    try:
        return _Composer(source, max_depth, path).document()
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = ", ".join(part for part in (problem.context, problem.problem) if part)
        hint = "YAML indents with spaces" if "cannot start any token" in said else ""
        raise InvalidInput.field(path or "(document)", f"is not YAML: {where}{said}", hint, "syntax") from None
    except yaml.YAMLError as problem:
        said = str(problem).split("\n")[0]
        raise InvalidInput.field(path or "(document)", f"is not YAML: {said}", code="syntax") from None


class _Composer:
    """Events of one document into values. Events come as they are read, so what is refused is not read to its end."""

    def __init__(self, source: str, max_depth: int, path: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(source, Loader=yaml.CSafeLoader)
        self._max_depth = max_depth
        self._path = path
        self._where: list[str | int] = []
        self._anchors: dict[str, tuple[object, int, int] | None] = {}  # value, nodes, height; None while being read
        self._nodes = 0

    def document(self) -> object:
        value: object = None
        count = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > 1:
                    raise self._wrong(event, "documents", "a second document begins here", "send one at a time")
            elif isinstance(event, yaml.NodeEvent):
                value = self._node(event)[0]
        return value

    def _node(self, event: yaml.Event) -> tuple[object, int]:
        """The value that begins with `event`, and its height (0 for a scalar)."""
        if isinstance(event, yaml.CollectionStartEvent) and len(self._where) >= self._max_depth:
            raise self._wrong(event, "depth", f"is nested deeper than {self._max_depth}", "")
        before = self._nodes
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise self._wrong(event, "aliases", f"more than {NODES_MAX:,} values after its aliases are expanded", "")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value, height = self._scalar(event), 0
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self._sequence(event)
        else:
            value, height = self._mapping(event)
        if anchor is not None:
            self._anchors[anchor] = (value, self._nodes - before, height)
        return value, height

    def _alias(self, event: yaml.AliasEvent) -> tuple[object, int]:
        name = event.anchor or ""
        if name not in self._anchors:
            raise self._wrong(event, "alias", f"the alias *{name} has no anchor &{name} before it", "")
        known = self._anchors[name]
        if known is None:
            raise self._wrong(event, "cycle", f"the alias *{name} stands inside its own anchor", "write the part out")
        value, nodes, height = known
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            raise self._wrong(event, "aliases", f"more than {NODES_MAX:,} values after its aliases are expanded", "")
        if len(self._where) + height > self._max_depth:
            raise self._wrong(event, "depth", f"is nested deeper than {self._max_depth}", "")
        return value, height

    def _sequence(self, start: yaml.CollectionStartEvent) -> tuple[object, int]:
        self._check_tag(start, "seq")
        found: list[object] = []
        height = 0
        self._where.append(0)
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            value, below = self._node(event)
            found.append(value)
            height = max(height, below)
            self._where[-1] = len(found)
        self._where.pop()
        return found, height + 1

    def _mapping(self, start: yaml.CollectionStartEvent) -> tuple[object, int]:
        self._check_tag(start, "map")
        found: dict[str, object] = {}
        height = 0
        self._where.append("")
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event)
            self._where[-1] = key
            if key in found:
                raise self._wrong(event, "duplicate_key", f"the key {key!r} occurs twice", "keep one of them")
            found[key], below = self._node(next(self._events))
            height = max(height, below)
        self._where.pop()
        return found, height + 1

    def _key(self, event: yaml.Event) -> str:
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor or "")
            if known is not None and isinstance(known[0], str):
                return known[0]
        if not isinstance(event, yaml.ScalarEvent):
            raise self._wrong(event, "key", "a key must be a plain text", "quote it when it begins with [ or {")
        if event.value == "<<" and not event.style:
            raise self._wrong(event, "merge_key", "merge keys (<<) are not supported", "write the keys out")
        if event.anchor is not None:
            self._anchors[event.anchor] = (event.value, 1, 0)
        return str(event.value)

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text = str(event.value)
        name = None
        if event.tag is not None:
            name = _YAML_TAGS.get(event.tag)
            if name is None or name in ("map", "seq"):
                raise self._wrong(event, "tag", f"the tag {event.tag} is not supported", "leave it out")
        if name == "str" or (name is None and event.style):
            return text
        value = self._plain(event, text)
        kinds = {"int": int, "float": float | int, "bool": bool, "null": type(None)}
        if name is not None and (not isinstance(value, kinds[name]) or (name == "int" and isinstance(value, bool))):
            raise self._wrong(event, "tag", f"{text[:_SHOWN]!r} is not of the kind {name}", "leave the tag out")
        return float(value) if name == "float" and isinstance(value, int) else value

    def _plain(self, event: yaml.Event, text: str) -> object:
        if text in _YAML_NULL:
            return None
        if text in ("true", "false"):
            return text == "true"
        try:
            if _YAML_INT.fullmatch(text):
                return _integer(text)
            if _YAML_FLOAT.fullmatch(text) and not _YAML_LEADING_ZERO.match(text):
                return _decimal(text)
        except _Refused as refused:
            raise self._wrong(event, refused.code, refused.what, refused.hint) from None
        if _YAML_NOT_A_NUMBER.fullmatch(text):
            raise self._wrong(event, "not_a_number", f"{text} is not a number that JSON has", "quote it to have a text")
        return text

    def _check_tag(self, event: yaml.CollectionStartEvent, expected: str) -> None:
        if event.tag is not None and _YAML_TAGS.get(event.tag) != expected:
            raise self._wrong(event, "tag", f"the tag {event.tag} is not supported here", "leave it out")

    def _wrong(self, event: yaml.Event, code: str, what: str, hint: str) -> InvalidInput:
        mark = event.start_mark
        assert mark is not None, "events of a parsed text carry their place"
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        at = _dotted(self._path, self._where)
        return InvalidInput(f"{at}: {place}: {what}", (Problem(at, code, f"{place}: {what}", hint=hint),))
