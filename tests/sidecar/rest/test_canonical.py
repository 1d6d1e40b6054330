"""Every message of the contract survives its JSON, and what leaves is what other readers expect."""

from __future__ import annotations

import json
from typing import cast

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest.canonical import dump, parse, read, read_query
from knhk_workflow import InvalidInput

DEPTH = 3  # of messages in messages
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = [descriptor for file in pb.FILES for descriptor in file.message_types_by_name.values()]


def fill(data: st.DataObject, message: Message, depth: int = DEPTH) -> None:
    """Sets some fields of a message to values of their types."""
    descriptor = cast(Descriptor, message.DESCRIPTOR)
    used: set[str] = set()
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if (oneof is not None and oneof.name in used) or not data.draw(st.booleans()):
            continue
        if oneof is not None:
            used.add(oneof.name)
        inner = field.message_type
        if inner is not None and inner.full_name == "google.rpc.Status":
            continue  # only ever sent
        if inner is not None and inner.GetOptions().map_entry:
            for _ in range(data.draw(st.integers(0, 2))):
                key = value_of(data, inner.fields_by_name["key"])
                getattr(message, field.name)[key] = value_of(data, inner.fields_by_name["value"])
        elif inner is not None and field.is_repeated:
            for _ in range(data.draw(st.integers(0, 2)) if depth else 0):
                fill_message(data, getattr(message, field.name).add(), depth - 1)
        elif inner is not None:
            if depth:
                getattr(message, field.name).SetInParent()
                fill_message(data, getattr(message, field.name), depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(value_of(data, field) for _ in range(data.draw(st.integers(0, 2))))
        else:
            setattr(message, field.name, value_of(data, field))


def fill_message(data: st.DataObject, message: Message, depth: int) -> None:
    match message.DESCRIPTOR.full_name:
        case "google.protobuf.Timestamp" | "google.protobuf.Duration":
            message.MergeFrom(
                type(message)(seconds=data.draw(st.integers(0, 2**33)), nanos=data.draw(st.integers(0, 999_999_999)))
            )
        case _:
            fill(data, message, depth)


def value_of(data: st.DataObject, field: FieldDescriptor) -> object:
    if field.type in INTEGERS:
        return data.draw(st.integers(*INTEGERS[field.type]))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return data.draw(st.booleans())
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return data.draw(st.floats(allow_nan=False, allow_infinity=False))
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return data.draw(st.sampled_from([each.number for each in field.enum_type.values]))
    if field.type == FieldDescriptor.TYPE_BYTES and field.name.endswith("_json"):
        return json.dumps(data.draw(VALUES), ensure_ascii=False, separators=(",", ":")).encode()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return data.draw(TEXT.filter(bool)).encode() if field.name == "document" else data.draw(st.binary(max_size=8))
    return data.draw(TEXT)


@given(st.data())
def test_every_message_survives_its_json(data: st.DataObject) -> None:
    descriptor: Descriptor = data.draw(st.sampled_from(MESSAGES), "message")
    kind = message_factory.GetMessageClass(descriptor)
    original, back = kind(), kind()
    fill(data, original)
    text = dump(original)
    read(parse(text), back)
    assert back == original, text


def test_what_leaves_is_what_protobufs_own_reader_takes() -> None:
    """Where there are no JSON fields, the text is canonical JSON of protobuf."""
    original = pb.LiveTask(task_id="a", activation=2**60, status="offered", open_instances=2)
    assert json_format.Parse(dump(original).decode(), pb.LiveTask()) == original
    assert b'"activation":"1152921504606846976"' in dump(original)
    assert b'"activation":7' in dump(pb.LiveTask(activation=7))


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"), [('"1.5s"', 1, 500_000_000), ("2", 2, 0), ("0.25", 0, 250_000_000), ('"3"', 3, 0)]
)
def test_durations_are_read_leniently(text: str, seconds: int, nanos: int) -> None:
    message = pb.WaitCaseRequest()
    read(parse(f'{{"timeout": {text}}}'.encode()), message)
    assert (message.timeout.seconds, message.timeout.nanos) == (seconds, nanos)


@pytest.mark.parametrize("key", ["abc", "-1", "1.5", "4294967296", ""])
def test_a_numbered_map_has_numbers_for_keys(key: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read({"head_positions": {key: 1}}, pb.VerifyHistoryResponse())
    assert refused.value.problems[0].path == f"head_positions.{key}"


@pytest.mark.parametrize("text", ['"soon"', '"1m"', "true", "{}"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(parse(f'{{"timeout": {text}}}'.encode()), pb.WaitCaseRequest())
    assert refused.value.problems[0].path == "timeout"


def test_null_is_the_default_except_for_json() -> None:
    message = pb.CreateCaseRequest()
    read(parse(b'{"spec_id": null, "data": null}'), message)
    assert (message.spec_id, message.data_json) == ("", b"null")


def test_a_path_names_the_element_that_is_wrong() -> None:
    with pytest.raises(InvalidInput) as refused:
        read(parse(b'{"cases": [{}, {"spec_version": "x"}]}'), pb.RunCasesRequest())
    assert refused.value.problems[0].path == "cases[1].spec_version"


def test_queries_fill_filters_and_lists() -> None:
    message = pb.ListCasesRequest()
    read_query(
        [("state", "running"), ("state", "failed"), ("spec_id", "x"), ("created_after", "2026-01-01T00:00:00Z")],
        message,
    )
    assert list(message.filter.states) == [pb.CASE_STATE_RUNNING, pb.CASE_STATE_FAILED]
    assert (message.filter.spec_id, message.filter.created_after.seconds) == ("x", 1767225600)
    with pytest.raises(InvalidInput):
        read_query([("page_size", "1"), ("page_size", "2")], pb.ListCasesRequest())


@pytest.mark.parametrize(
    ("message", "text", "path"),
    [
        (pb.SetPromotionRequest(), b'{"traffic_percent": ' + b"9" * 400 + b"}", "traffic_percent"),
        (pb.CreateSubscriptionRequest(), '{"secret": "\u00e9\u00e9"}'.encode(), "secret"),
        (pb.CreateCaseRequest(), b'{"\\ud800": 1}', "?"),
        (pb.CreateCaseRequest(), b'{"\\ud800": 1, "\\ud800": 2}', "?"),
        (pb.ExecutePatternRequest(), b'{"variables": {"\\ud800": "x"}}', "variables.?"),
        (pb.WaitCaseRequest(), b'{"timeout": ' + b"9" * 400 + b"}", "timeout"),
        (pb.WaitCaseRequest(), b'{"timeout": 1e300}', "timeout"),
        (pb.ListCasesRequest(), b'{"filter": {"created_after": "99999-01-01T00:00:00Z"}}', "filter.created_after"),
        (pb.ListCasesRequest(), b'{"filter": {"created_after": "9999-12-31T23:59:59-23:59"}}', "filter.created_after"),
    ],
)
def test_what_no_field_can_hold_is_refused_with_its_place(message: Message, text: bytes, path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(parse(text), message)
    assert refused.value.problems[0].path == path


@pytest.mark.parametrize(
    ("message", "name", "text"),
    [
        (pb.ListCasesRequest(), "state", "9" * 5_000),
        (pb.ListCasesRequest(), "page_size", "9" * 5_000),
        (pb.ListCasesRequest(), "page_token", "\ud800"),
        (pb.CreateCaseRequest(), "data", '"\ud800"'),
        (pb.SetPromotionRequest(), "traffic_percent", "9" * 5_000),
    ],
)
def test_a_parameter_that_no_field_can_hold_is_refused(message: Message, name: str, text: str) -> None:
    with pytest.raises(InvalidInput):
        read_query([(name, text)], message)
