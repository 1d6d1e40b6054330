"""Strict JSON and YAML: what is taken, what is refused, where the refusal points, and how long bombs may burn."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.errors import InvalidInput, Problem
from knhk_workflow.model.document import json_object, strict_json, strict_yaml


def refused_json(data: bytes) -> Problem:
    with pytest.raises(InvalidInput) as caught:
        json_object(data)
    return caught.value.problems[0]


def refused_yaml(text: str | bytes) -> Problem:
    with pytest.raises(InvalidInput) as caught:
        strict_yaml(text)
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("data", "compact"),
    [
        (b"", b"{}"),
        (b"{}", b"{}"),
        (b' { "a" : [ 1 , 2.50 , true , null , "\\u00e9" ] } ', '{"a":[1,2.5,true,null,"é"]}'.encode()),
        (b'{"a":9223372036854775807,"b":-9223372036854775808}', b'{"a":9223372036854775807,"b":-9223372036854775808}'),
        (b'{"a":"\\ud83d\\ude00"}', '{"a":"😀"}'.encode()),
        (b'{"a":' * 64 + b"1" + b"}" * 64, b'{"a":' * 64 + b"1" + b"}" * 64),
        (b'{"a":[[]],"b":[[]],"c":"' + b"[" * 200 + b'"}', b'{"a":[[]],"b":[[]],"c":"' + b"[" * 200 + b'"}'),
    ],
)
def test_an_object_comes_back_compact(data: bytes, compact: bytes) -> None:
    value, text = json_object(data)
    assert text == compact
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("data", "path", "code"),
    [
        (b"[1]", "data_json", "invalid"),
        (b'{"a":{"b":1,"c":[0,{"b":2,"b":3}]}}', "data_json.a.c[1].b", "duplicate_key"),
        (b'{"a":1, "a":1}', "data_json.a", "duplicate_key"),
        (b'{"\\u0061":1,"a":2}', "data_json.a", "duplicate_key"),
        (b"NaN", "data_json", "not_a_number"),
        (b'{"a":{"x":[1,-Infinity]}}', "data_json.a.x[1]", "not_a_number"),
        (b'{"a":1e400}', "data_json.a", "number_range"),
        (b'{"a":9223372036854775808}', "data_json.a", "number_range"),
        (b'{"a":' + b"9" * 100_000 + b"}", "data_json.a", "number_range"),
        (b'{"a":"\xff"}', "data_json", "encoding"),
        (b'{"a":"\\ud800"}', "data_json", "encoding"),
        (b'\xef\xbb\xbf{"a":1}', "data_json", "syntax"),
        (b'{"a":1} x', "data_json", "syntax"),
        (b'{"a":1,}', "data_json", "syntax"),
        (b"{'a':1}", "data_json", "syntax"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "data_json", "depth"),
        (b"[" * 1_000_000, "data_json", "depth"),
        (b'{"a":"' + b"x" * (2 << 20) + b'"}', "data_json", "too_large"),
    ],
)
def test_what_json_libraries_let_through_is_refused(data: bytes, path: str, code: str) -> None:
    problem = refused_json(data)
    assert (problem.path, problem.code) == (path, code)
    assert len(problem.message) < 300


def test_a_syntax_error_says_where() -> None:
    assert "line 2, column 6, before '2}'" in refused_json(b'{"a": 1,\n "b" 2}').message


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=20,
    )
)
def test_every_json_value_survives_both_readers(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, separators=(",", ":"))):
        assert strict_json(text.encode()) == value


def test_yaml_has_the_scalars_of_json() -> None:
    text = "a: [x, 'q', yes, no, on, true, 2020-01-01, 12:30, 007, 1_000, 0x1f, 1.5, 1e3, -3, ~, null, '', 'true']"
    assert strict_yaml(text) == {
        "a": [
            *("x", "q", "yes", "no", "on", True, "2020-01-01", "12:30", "007", "1_000", "0x1f"),
            *(1.5, 1000.0, -3, None, None, "", "true"),
        ]
    }


def test_yaml_keys_are_texts() -> None:
    assert strict_yaml("on: 1\nno: 2\n1: 3\nnull: 4\n2020-01-01: 5") == {
        "on": 1,
        "no": 2,
        "1": 3,
        "null": 4,
        "2020-01-01": 5,
    }


def test_aliases_share_what_they_name() -> None:
    assert strict_yaml("a: &x {b: [1]}\nc: [*x, *x]") == {"a": {"b": [1]}, "c": [{"b": [1]}, {"b": [1]}]}


@pytest.mark.parametrize(
    ("text", "path", "code"),
    [
        ("a:\n  b:\n   - {c: 1, c: 2}", "a.b[0].c", "duplicate_key"),
        ("a: &x [1, *x]", "a[1]", "cycle"),
        ("a: &x {b: {c: *x}}", "a.b.c", "cycle"),
        ("a: *y", "a", "alias"),
        ("<<: {a: 1}", "(document)", "merge_key"),
        ("[a]: 1", "(document)", "key"),
        ("a: !foo 1", "a", "tag"),
        ("!!python/object/apply:os.system ['x']", "(document)", "tag"),
        ("a: !!int x", "a", "tag"),
        ("a: .nan", "a", "not_a_number"),
        ("a: 99999999999999999999", "a", "number_range"),
        ("a: 1\n---\nb: 2", "(document)", "documents"),
        ("a: [", "(document)", "syntax"),
        ("\ta: 1", "(document)", "syntax"),
        ("a: \x01", "(document)", "syntax"),
        ("a: \ud800", "(document)", "encoding"),
        (b"\xff", "(document)", "encoding"),
    ],
)
def test_yaml_surprises_are_refused(text: str | bytes, path: str, code: str) -> None:
    problem = refused_yaml(text)
    assert (problem.path, problem.code) == (path, code)


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{k: *a{i - 1}}}\n" for i in range(1, 200)),
        "[" * 4_900_000,
        "- " * 2_400_000,
        "{a: " * 1_000_000,
        "? " * 2_000_000,
        "- a\n" * 1_200_000,
        "'" * 4_900_001,
        "x" * ((5 << 20) + 1),
    ],
    ids=["aliases", "nested aliases", "lists", "dashes", "maps", "questions", "many", "quotes", "long"],
)
def test_yaml_bombs_burn_out(text: str) -> None:
    began = time.process_time()
    refused_yaml(text)
    assert time.process_time() - began < 10, "measured: 1.5 s at most"
