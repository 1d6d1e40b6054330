"""Documents into specs: the corpus with all its problems, the schema beside the parser, warnings, bounds in time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import cast

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.errors import InvalidDocument, InvalidInput, Problem
from knhk_workflow.model.document import strict_json, strict_yaml
from knhk_workflow.model.net import compile_spec
from knhk_workflow.model.parse import canonical, document_schema, findings, parse_spec, spec_digest, unsupported
from knhk_workflow.model.spec import Assignment, Flow, Instances, Join, Spec, Split, Timer, Trigger
from tests.model.corpus import INVALID, VALID, Bad

SCHEMA = jsonschema.Draft202012Validator(cast("Mapping[str, object]", json.loads(document_schema())))


def parsed(text: str) -> Spec:
    return parse_spec(strict_yaml(text))


def problems_of(document: object) -> list[Problem]:
    with pytest.raises(InvalidDocument) as caught:
        parse_spec(document)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", VALID)
def test_a_valid_document_parses_compiles_and_fits_the_schema(name: str) -> None:
    document = strict_yaml(VALID[name])
    spec = parse_spec(document)
    assert list(SCHEMA.iter_errors(document)) == []
    assert parse_spec(strict_json(canonical(document))) == spec, "what is stored reads the same"
    assert compile_spec(spec, 1, spec_digest(canonical(document))).root.name == ""


@pytest.mark.parametrize("bad", INVALID, ids=lambda bad: bad.name)
def test_every_problem_is_reported_at_once_with_its_path(bad: Bad) -> None:
    document = strict_yaml(bad.text)
    found = problems_of(document)
    assert [(problem.path, problem.code) for problem in found] == list(bad.problems)
    assert all(problem.message and problem.severity == "error" for problem in found)
    assert bad.shape == (not SCHEMA.is_valid(document)), "schema and parser disagree about the shape"


def test_the_schema_is_one_and_its_examples_parse() -> None:
    schema = json.loads(document_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    for example in schema["examples"]:
        assert parse_spec(example).id == example["id"]


def test_hints_name_what_was_probably_meant() -> None:
    found = {problem.path: problem.hint for problem in problems_of(strict_yaml(INVALID[9].text))}
    assert found["taskz"] == "did you mean 'tasks'?"
    assert found["tasks.a.role"] == "did you mean 'required_roles'?"
    assert "known here: default" in found["flows[0].if"]
    found = {
        problem.path: problem.hint
        for problem in problems_of({"id": "x", "tasks": ["approve"], "flows": [{"from": "start", "to": "approv"}]})
    }
    assert found["flows[0].to"] == "did you mean 'approve'?"


def test_constructs_become_what_they_say() -> None:
    root = parsed(VALID["every construct"]).nets[0]
    tasks = {task.id: task for task in root.tasks}
    assert tasks["a"].split == Split("or")
    assert tasks["a"].instances == Instances(1, "data.n", 1, None, "dynamic", "cancel")
    assert tasks["b"].join == Join("partial", 1, 2, "blocking")
    assert tasks["c"].split == Split("threads", 3)
    assert tasks["d"].join == Join("merge", count=3)
    assert tasks["d"].trigger == Trigger("paid", "transient")
    assert tasks["d"].instances == Instances(3, 3)
    assert tasks["e"].timer == Timer(after=300.0)
    assert tasks["e"].in_ == (
        Assignment("k", "data.a"),
        Assignment("n", "1"),
        Assignment("t", "true"),
        Assignment("z", "null"),
    )
    assert tasks["f"].timeout == 5_400.0
    assert tasks["h"].timeout == 300.0
    assert tasks["h"].request == b'{"url":"https://example.org"}'
    assert root.sections == (("s", ("a", "b")),)


def test_a_guarded_flow_makes_a_choice_and_its_only_bare_flow_the_default() -> None:
    root = parsed(VALID["a choice with one bare flow"]).nets[0]
    assert root.tasks[0].split == Split("xor")
    assert root.flows[1:] == (Flow("a", "b", "data.n > 1"), Flow("a", "c", None, True))


def test_order_means_something_only_in_lists() -> None:
    one = {"id": "x", "tasks": {"b": {}, "a": {"out": {"q": "1", "p": "2"}}}, "flows": {"start": ["a", "b"], "a": "b"}}
    other = {
        "flows": {"a": "b", "start": ["a", "b"]},
        "tasks": {"a": {"out": {"p": "2", "q": "1"}}, "b": {}},
        "id": "x",
    }
    assert canonical(one) == canonical(other)
    assert parse_spec(one) == parse_spec(other)
    assert spec_digest(canonical(one)) != spec_digest(canonical({**one, "flows": {"start": ["b", "a"], "a": "b"}}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{id: x, tasks: [a, b], flows: {start: a}}", [("tasks.b", "unreachable_task")]),
        (
            "{id: x, tasks: [a, b], flows: {start: a, a: b, b: a}}",
            [("tasks.a", "no_path_to_end"), ("tasks.b", "no_path_to_end")],
        ),
        ("{id: x, termination: explicit, tasks: [a], flows: {start: a}}", [("termination", "end_unreachable")]),
        (
            "{id: x, tasks: {a: {required_roles: r}, b: {}}, flows: {start: [a, b]}}",
            [("tasks.b", "automatic_in_deferred_choice")],
        ),
        ("{id: x, tasks: {a: {required_roles: r}, b: {timer: 5m}}, flows: {start: [a, b]}}", []),
        (
            "{id: x, tasks: {s: {}, a: {out: {k: '1'}}, b: {out: {k: '2'}}}, flows: {start: s, s: [a, b]}}",
            [("tasks.b.out.k", "shared_output")],
        ),
        (
            "{id: x, tasks: {s: , a: {out: {k: 1}}, b: {out: {k: 2}}}, flows: {start: s, s: [b, {to: a, when: 1<2}]}}",
            [],
        ),
        ("{id: x, nets: {n: {tasks: {a: {net: n}, b: {}}, flows: {start: [a, b]}}}}", [("nets.n", "unused_net")]),
    ],
)
def test_findings_warn(text: str, expected: list[tuple[str, str]]) -> None:
    found = findings(parsed(text))
    assert [(problem.path, problem.code) for problem in found] == expected
    assert all(problem.severity == "warning" for problem in found)


def test_every_construct_is_either_executed_or_listed() -> None:
    listed = unsupported(parsed(VALID["every construct"]))
    assert all(problem.code == "unsupported_construct" and problem.severity == "error" for problem in listed)
    paths = {problem.path for problem in listed}
    assert {"tasks.g.workflow", "tasks.g.allocation"} <= paths
    assert (
        not {
            "sections",
            "tasks.a.split",
            "tasks.a.instances",
            "tasks.d.join",
            "tasks.f.net",
            "tasks.e.in",
            "tasks.e.timer",
            "tasks.f.timeout",
        }
        & paths
    )


def test_a_document_that_holds_itself_is_refused() -> None:
    document: dict[str, object] = {"id": "x"}
    document["tasks"] = document
    assert [problem.code for problem in problems_of(document)] == ["depth"]
    flows: list[object] = []
    flows.append(flows)
    assert [problem.code for problem in problems_of({"id": "x", "flows": flows})] == ["depth"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, object(), {1: 2}, (1,), "\ud800", {"\udfff": 1}])
def test_what_is_not_json_is_refused(value: object) -> None:
    assert len(problems_of({"id": "x", "tasks": {"a": {"request": value}}})) == 1


def test_too_much_is_refused() -> None:
    found = problems_of({"id": "x", "nets": {f"n{i}": {} for i in range(257)}})
    assert [(problem.path, problem.code) for problem in found] == [("nets", "too_many")]
    found = problems_of({"id": "x", "tasks": [f"t{i}" for i in range(10_001)]})
    assert [(problem.path, problem.code) for problem in found] == [("tasks", "too_many")]
    found = problems_of({"id": "x", "flows": ["x"] * 10_000})
    assert len(found) == 501
    assert found[-1].message == "9,500 more problems are not listed"


def test_the_largest_documents_take_seconds_not_minutes() -> None:
    names = [f"zz{i}" for i in range(20)]
    tasks = {f"t{i}": {"required_roles": ["a"], "cancels": names} for i in range(10_000)}
    began = time.process_time()
    assert len(problems_of({"id": "x", "tasks": tasks})) == 501
    flows = [{"from": f"t{i}", "to": f"t{(i * 7 + j) % 10_000}"} for i in range(10_000) for j in range(1, 5)]
    spec = parse_spec({"id": "x", "tasks": [f"t{i}" for i in range(10_000)], "flows": flows})
    assert len(findings(spec)) == 10_000, "nothing leads from start to any of them"
    assert time.process_time() - began < 20, "measured: 3 s"


# ------------------------------------------------------------------------------------------------------ random input

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a", "b", "start", "end", "a->b", "and", "xor", "or", "data.x > 1", "true", "5m", "n"]),
)
_WORDS = """
id name tasks conditions flows nets from to when default join split partial merge threads need of mode instances min max
threshold until for_each collect cancels completes closes reads trigger timer loop while net workflow in out retry
timeout required_roles connector request result deadline on_error mutex sections termination a b n
"""
_KEYS = st.one_of(st.sampled_from(_WORDS.split()), st.text(max_size=4))
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=5)),
    max_leaves=25,
)
_TASKS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.dictionaries(_KEYS, _JSON, max_size=3), max_size=3)
_FLOWS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["start", "a", "b", "p"]), "to": st.sampled_from(["end", "a", "b", "p"])},
        optional={"when": st.sampled_from(["data.x > 1", True, "data.", 1]), "default": st.booleans()},
    ),
    max_size=5,
)
_DOCUMENTS = st.fixed_dictionaries(
    {"id": st.just("x")},
    optional={"tasks": st.one_of(_TASKS, _JSON), "flows": st.one_of(_FLOWS, _JSON), "conditions": _JSON, "nets": _JSON},
)


@given(st.one_of(_JSON, _DOCUMENTS))
def test_random_documents_are_read_or_refused(document: object) -> None:
    try:
        spec = parse_spec(document)
    except InvalidInput as refused:
        said = refused.problems
    else:
        check_taken(document, spec)
        return
    assert said


def check_taken(document: object, spec: Spec) -> None:
    """What was taken can be worked with, and the schema takes it too."""
    findings(spec)
    unsupported(spec)
    compile_spec(spec, 1, b"")
    assert list(SCHEMA.iter_errors(document)) == [], "the parser took what the schema refuses"


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (strict_json, strict_yaml):
        with contextlib.suppress(InvalidInput):
            parse_spec(read(data))
