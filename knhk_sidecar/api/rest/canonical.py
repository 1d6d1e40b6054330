"""Protobuf messages as JSON, by the rules that the contract states for REST.

* Names are the contract's snake_case names; on input their lowerCamelCase form is accepted too.
* A `bytes` field `x_json` is the plain JSON value under the name `x`. Empty means absent. Input under `x_json` is
  accepted as well.
* `document` is text. Every other `bytes` field is base64.
* Enums are written by name; on input also by number, or by the short name in any case (`running` for
  `CASE_STATE_RUNNING`).
* 64-bit integers are numbers while a double holds them exactly, strings beyond; on input both.
* Timestamps are RFC 3339, durations seconds with an `s` (`1.5s`); on input a duration may be a plain number of seconds.
* Fields without presence are always written, so `false`, `0` and `[]` can be read; absent messages and JSON are left
  out.

Input is strict where leniency would hide a mistake: unknown and duplicate keys, NaN, infinities, numbers out of range
and text that is not UTF-8 are `InvalidInput` naming the field's path and, where there is one, the nearest known name.
"""

from __future__ import annotations

import base64
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NoReturn, TypeAlias, cast

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from knhk_workflow import InvalidInput, Problem

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A parsed JSON value."""

Tree: TypeAlias = bool | int | float | str | msgspec.Raw | list["Tree"] | dict[str, "Tree"] | None
"""What is about to be written; JSON fields stand in it as the text that they are."""

EXACT_MAX = 2**53 - 1  # the largest integer that every JSON reader holds exactly
ENUM_DIGITS_MAX = 10  # of a number that stands for a name: 2^31
SUFFIX = "_json"
TEXT_FIELDS = frozenset({"document"})  # bytes that are text by nature: YAML and XML read better than their base64


class Kind(Enum):
    """How a field travels."""

    BOOL = auto()
    INT = auto()
    FLOAT = auto()
    STRING = auto()
    TEXT = auto()
    JSON = auto()
    BASE64 = auto()
    ENUM = auto()
    TIME = auto()
    DURATION = auto()
    STATUS = auto()
    MESSAGE = auto()


_INT_RANGE: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_MESSAGES: Final[Mapping[str, Kind]] = {
    "google.protobuf.Timestamp": Kind.TIME,
    "google.protobuf.Duration": Kind.DURATION,
    "google.rpc.Status": Kind.STATUS,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message with everything that reading and writing it needs."""

    name: str
    """Its name in the message."""
    public: str
    """Its name in JSON."""
    kind: Kind
    repeated: bool
    is_map: bool
    presence: bool
    descriptor: FieldDescriptor
    value: FieldDescriptor
    """Of a map: the entry's value; otherwise the field itself."""

    @property
    def message(self) -> Descriptor:
        """The type of a field that holds messages."""
        return cast("Descriptor", self.value.message_type)

    @property
    def enum(self) -> EnumDescriptor:
        """The type of a field that holds names."""
        return cast("EnumDescriptor", self.value.enum_type)


@dataclass(frozen=True, slots=True)
class Shape:
    """A message type: its fields in the order of the contract and by every name that input may use."""

    name: str
    fields: tuple[Field, ...]
    by_name: Mapping[str, Field]


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message; the stubs name two classes of which only one exists at run time."""
    return cast("Descriptor", message.DESCRIPTOR)


_SHAPES: dict[str, Shape] = {}  # a message type never changes, so its shape is computed once


def shape_of(descriptor: Descriptor) -> Shape:
    """The shape of a message type."""
    shape = _SHAPES.get(descriptor.full_name)
    if shape is None:
        fields = tuple(_field(each) for each in descriptor.fields)
        by_name: dict[str, Field] = {}
        for field in fields:
            for name in (field.public, field.name, field.descriptor.json_name):
                by_name.setdefault(name, field)
        shape = _SHAPES[descriptor.full_name] = Shape(descriptor.name, fields, by_name)
    return shape


def _field(descriptor: FieldDescriptor) -> Field:
    entry = descriptor.message_type
    is_map = entry is not None and entry.GetOptions().map_entry
    value = entry.fields_by_name["value"] if entry is not None and is_map else descriptor
    kind = _kind(value)
    public = descriptor.name.removesuffix(SUFFIX) if kind is Kind.JSON else descriptor.name
    repeated = descriptor.is_repeated and not is_map
    return Field(descriptor.name, public, kind, repeated, is_map, descriptor.has_presence, descriptor, value)


def _kind(field: FieldDescriptor) -> Kind:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _MESSAGES.get(cast("Descriptor", field.message_type).full_name, Kind.MESSAGE)
    if field.type == FieldDescriptor.TYPE_BYTES:
        if field.name.endswith(SUFFIX):
            return Kind.JSON
        return Kind.TEXT if field.name in TEXT_FIELDS else Kind.BASE64
    if field.type in _INT_RANGE:
        return Kind.INT
    return {
        FieldDescriptor.TYPE_BOOL: Kind.BOOL,
        FieldDescriptor.TYPE_STRING: Kind.STRING,
        FieldDescriptor.TYPE_ENUM: Kind.ENUM,
        FieldDescriptor.TYPE_DOUBLE: Kind.FLOAT,
        FieldDescriptor.TYPE_FLOAT: Kind.FLOAT,
    }[field.type]


# ------------------------------------------------------------------------------------------------------------- writing
def dump(message: Message, member: str = "") -> bytes:
    """A message as JSON text; with `member` only that field of it (google.api.http's `response_body`)."""
    tree = tree_of(message)
    if member:
        chosen = tree.get(member)
        return msgspec.json.encode({} if chosen is None else chosen)
    return msgspec.json.encode(tree)


def tree_of(message: Message) -> dict[str, Tree]:
    """A message as plain values; JSON fields stay the text that they are."""
    result: dict[str, Tree] = {}
    for field in shape_of(descriptor_of(message)).fields:
        if field.presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.is_map:
            result[field.public] = {str(key): _out(field, value[key]) for key in sorted(value)}
        elif field.repeated:
            result[field.public] = [_out(field, each) for each in value]
        elif field.kind is Kind.JSON or field.kind is Kind.TEXT:
            if value:
                result[field.public] = _out(field, value)
        else:
            result[field.public] = _out(field, value)
    return result


def _out(field: Field, value: object) -> Tree:
    match field.kind:
        case Kind.BOOL | Kind.FLOAT | Kind.STRING:
            return cast("bool | float | str", value)
        case Kind.INT:
            number = cast("int", value)
            return number if -EXACT_MAX <= number <= EXACT_MAX else str(number)
        case Kind.JSON:
            return msgspec.Raw(cast("bytes", value))
        case Kind.TEXT:
            return cast("bytes", value).decode("utf-8", "replace")
        case Kind.BASE64:
            return base64.b64encode(cast("bytes", value)).decode("ascii")
        case Kind.ENUM:
            number = cast("int", value)
            known = field.enum.values_by_number.get(number)
            return known.name if known is not None else number
        case Kind.TIME:
            return cast("Timestamp", value).ToJsonString()
        case Kind.DURATION:
            return cast("Duration", value).ToJsonString()
        case Kind.STATUS:
            text = json_format.MessageToJson(cast("Message", value), preserving_proto_field_name=True, indent=None)
            return msgspec.Raw(text.encode())
        case Kind.MESSAGE:
            return tree_of(cast("Message", value))


# ------------------------------------------------------------------------------------------------------------- reading
def parse(text: bytes) -> Json:
    """JSON text, strictly. Raises `InvalidInput` for anything that two readers could understand differently."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 (byte {error.start})", "send JSON as UTF-8") from error
    try:
        return cast("Json", _DECODER.decode(decoded))
    except json.JSONDecodeError as error:
        raise _malformed(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            'for example {"spec_id": "order-approval"}',
        ) from error
    except RecursionError as error:
        raise _malformed("the body is nested too deeply", "use fewer levels") from error
    except ValueError as error:  # int() refuses more digits than anybody means
        raise InvalidInput.field(
            "", f"the body has a number that cannot be read: {error}", "send it as a string"
        ) from error


def _malformed(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, (Problem("", "malformed", message, hint=hint),))


def _pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidInput.field(
                    _whole(key), "the key stands twice in one object", "keep one of them", code="duplicate"
                )
            seen.add(key)
    return result


def _constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not JSON", "send null, or a string that both sides agree on")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _malformed(f"the number {text} is too large", "send it as a string")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def encode(value: Json, path: str) -> bytes:
    """A JSON value as text, as it goes into a `*_json` field."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput.field(path, "contains half of a surrogate pair", "send valid Unicode text") from error
    except RecursionError as error:
        raise InvalidInput.field(path, "is nested too deeply", "use fewer levels") from error


def read(value: Json, message: Message, path: str = "") -> None:
    """Fills `message` from a JSON object.

    Raises `InvalidInput` naming the path of what is wrong; the message is then useless.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput.field(path, f"expected an object, got {_named(value)}", "send {...}")
    shape = shape_of(descriptor_of(message))
    seen: dict[str, str] = {}
    for key, each in value.items():
        field = shape.by_name.get(key)
        if field is None:
            where = _whole(f"{path}.{key}" if path else key)
            raise InvalidInput.field(
                where, f"{shape.name} has no field {key!r}", _nearest(key, shape), code="unknown_field"
            )
        where = f"{path}.{key}" if path else key
        if field.name in seen:
            raise InvalidInput.field(
                where, f"says the same as {seen[field.name]!r}", "send one of them", code="duplicate"
            )
        seen[field.name] = key
        if each is None and field.kind is not Kind.JSON:
            continue  # by the JSON mapping of protobuf null is the default
        _read_field(field, each, message, where)


def _nearest(key: str, shape: Shape) -> str:
    close = difflib.get_close_matches(key, [field.public for field in shape.fields], n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known fields: " + ", ".join(field.public for field in shape.fields)


def _read_field(field: Field, value: Json, message: Message, path: str) -> None:
    if field.is_map:
        if not isinstance(value, Mapping):
            raise InvalidInput.field(path, f"expected an object, got {_named(value)}", "send {...}")
        target = getattr(message, field.name)
        key_kind = cast("Descriptor", field.descriptor.message_type).fields_by_name["key"]
        for key, each in value.items():
            where = _whole(f"{path}.{key}")
            typed = (
                _string(key, where) if key_kind.type == FieldDescriptor.TYPE_STRING else _integer(key_kind, key, where)
            )
            if field.kind is Kind.MESSAGE:
                read(each, target[typed], where)
            else:
                target[typed] = _in(field, each, where)
        return
    if field.repeated:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidInput.field(path, f"expected a list, got {_named(value)}", "send [...]")
        target = getattr(message, field.name)
        for index, each in enumerate(value):
            where = f"{path}[{index}]"
            if field.kind is Kind.MESSAGE:
                read(each, target.add(), where)
            elif field.kind in (Kind.TIME, Kind.DURATION, Kind.STATUS):
                target.add().CopyFrom(_in(field, each, where))
            else:
                target.append(_in(field, each, where))
        return
    if field.kind is Kind.MESSAGE:
        member = getattr(message, field.name)
        member.SetInParent()
        read(value, member, path)
    elif field.kind in (Kind.TIME, Kind.DURATION, Kind.STATUS):
        getattr(message, field.name).CopyFrom(_in(field, value, path))
    else:
        setattr(message, field.name, _in(field, value, path))


def _in(field: Field, value: Json, path: str) -> object:
    match field.kind:
        case Kind.BOOL:
            if isinstance(value, bool):
                return value
            raise InvalidInput.field(path, f"expected true or false, got {_named(value)}")
        case Kind.INT:
            return _integer(field.value, value, path)
        case Kind.FLOAT:
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    return float(value)
                except OverflowError as error:
                    raise InvalidInput.field(path, f"{_named(value)} is too large") from error
            raise InvalidInput.field(path, f"expected a number, got {_named(value)}")
        case Kind.STRING:
            return _string(value, path)
        case Kind.TEXT:
            return _string(value, path).encode()
        case Kind.JSON:
            return encode(value, path)
        case Kind.BASE64:
            return _base64(value, path)
        case Kind.ENUM:
            return _enum(field.enum, value, path)
        case Kind.TIME:
            return _time(value, path)
        case Kind.DURATION:
            return _duration(value, path)
        case Kind.STATUS | Kind.MESSAGE:
            raise InvalidInput.field(path, "cannot be given", "leave it out")


def _string(value: Json, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput.field(path, f"expected a string, got {_named(value)}", 'put it in quotes: "..."')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput.field(path, "contains half of a surrogate pair", "send valid Unicode text") from error
    return value


def _whole(path: str) -> str:
    """A path that can be told: keys that a caller made up may hold half of a surrogate pair."""
    return path if path.isascii() else path.encode("utf-8", "replace").decode("utf-8")


def _integer(field: FieldDescriptor, value: Json, path: str) -> int:
    low, high = _INT_RANGE[field.type]
    number: int | None = None
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if digits.isascii() and digits.isdecimal() and len(digits) <= 20:  # 2^64 has 20 digits
            number = int(value)
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None:
        raise InvalidInput.field(path, f"expected an integer, got {_named(value)}", "for example 1")
    if not low <= number <= high:
        raise InvalidInput.field(path, f"expected an integer from {low} to {high}, got {number}")
    return number


def _base64(value: Json, path: str) -> bytes:
    text = _string(value, path)
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # also for what is not ASCII
        raise InvalidInput.field(path, f"is not base64: {error}", "send the bytes as base64") from error


def _enum(descriptor: EnumDescriptor, value: Json, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value in descriptor.values_by_number:
        return value
    if isinstance(value, str):
        name = value.upper().replace("-", "_")
        for candidate in (name, prefix_of(descriptor) + name):
            known = descriptor.values_by_name.get(candidate)
            if known is not None:
                return known.number
    raise InvalidInput.field(
        path, f"expected one of {', '.join(short_names(descriptor))}, got {json.dumps(value)[:60]}"
    )


def prefix_of(descriptor: EnumDescriptor) -> str:
    """What all names of an enum begin with: `CASE_STATE_`."""
    return descriptor.values[0].name.removesuffix("UNSPECIFIED")


def short_names(descriptor: EnumDescriptor) -> tuple[str, ...]:
    """The names of an enum as people write them: `running`."""
    prefix = prefix_of(descriptor)
    return tuple(each.name.removeprefix(prefix).lower() for each in descriptor.values if each.number != 0)


def _time(value: Json, path: str) -> Timestamp:
    result = Timestamp()
    try:
        result.FromJsonString(_string(value, path))
    except ValueError as error:
        raise InvalidInput.field(
            path, f"is not a time of RFC 3339: {error}", "for example 2026-01-31T12:00:00Z"
        ) from error
    return result


def _duration(value: Json, path: str) -> Duration:
    result = Duration()
    text = f"{value}s" if isinstance(value, int | float) and not isinstance(value, bool) else _string(value, path)
    try:
        result.FromJsonString(text if text.endswith("s") else f"{text}s")
    except ValueError as error:
        raise InvalidInput.field(path, f"is not a duration: {error}", "seconds with an s, for example 1.5s") from error
    return result


def _named(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"[:60]
        case str():
            return f"the string {value[:40]!r}"
        case Mapping():
            return "an object"
        case _:
            return "a list"


# --------------------------------------------------------------------------------------------------------------- query
def read_query(pairs: Iterable[tuple[str, str]], message: Message) -> None:
    """Fills `message` from query parameters: `page_size=10`, `filter.spec_id=x`, and the filter's fields without
    `filter.`.

    A list is the parameter repeated, or for enums also separated by commas; its singular is understood (`state` for
    `states`).
    """
    given: dict[str, list[str]] = {}
    for key, text in pairs:
        given.setdefault(key, []).append(text)
    for key, texts in given.items():
        target, field = _query_field(key, message)
        for text in texts:
            if field.repeated:
                for part in text.split(",") if field.kind is Kind.ENUM else (text,):
                    _read_field(field, [_typed(field, part)], target, key)
            elif len(texts) > 1:
                raise InvalidInput.field(key, "is given more than once", "give it once", code="duplicate")
            else:
                _read_field(field, _typed(field, text), target, key)


def _query_field(key: str, message: Message) -> tuple[Message, Field]:
    target = message
    *parents, name = key.split(".")
    for parent in parents:
        step = shape_of(descriptor_of(target)).by_name.get(parent)
        if step is None or step.kind is not Kind.MESSAGE or step.repeated or step.is_map:
            raise _unknown_parameter(key, message)
        target = getattr(target, step.name)
    found = _named_field(name, target)
    if found is None and not parents:
        inner = shape_of(descriptor_of(message)).by_name.get("filter")
        if inner is not None and inner.kind is Kind.MESSAGE:
            target = getattr(message, inner.name)
            found = _named_field(name, target)
    if found is None or found.is_map or (found.kind is Kind.MESSAGE):
        raise _unknown_parameter(key, message)
    return target, found


def _named_field(name: str, message: Message) -> Field | None:
    by_name = shape_of(descriptor_of(message)).by_name
    found = by_name.get(name)
    if found is None:
        plural = by_name.get(f"{name}s")
        found = plural if plural is not None and plural.repeated else None
    return found


def _unknown_parameter(key: str, message: Message) -> InvalidInput:
    known = query_names(descriptor_of(message))
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known: " + (", ".join(known) or "none")
    return InvalidInput.field(key, f"there is no query parameter {key!r} here", hint, code="unknown_field")


def query_names(descriptor: Descriptor) -> tuple[str, ...]:
    """The query parameters that fill a message."""
    names: list[str] = []
    for field in shape_of(descriptor).fields:
        if field.kind is Kind.MESSAGE:
            if field.name == "filter":
                names += [inner.public for inner in shape_of(field.message).fields]
        elif not field.is_map:
            names.append(field.public)
    return tuple(names)


_WORDS: Final[Mapping[str, bool]] = {
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "yes": True,
    "no": False,
    "": True,
}


def _typed(field: Field, text: str) -> Json:
    """The JSON value that a parameter's text stands for."""
    match field.kind:
        case Kind.BOOL:
            return _WORDS.get(text.lower(), text)
        case Kind.FLOAT:
            try:
                number = float(text)
            except ValueError:
                return text  # refused with the field's path by the reader
            return number if math.isfinite(number) else text
        case Kind.JSON:
            return parse(_string(text, field.public).encode())
        case Kind.ENUM:
            return int(text) if text.isascii() and text.isdecimal() and len(text) <= ENUM_DIGITS_MAX else text
        case _:
            return text
