"""Case data: whole keys are replaced, null stays null, sub-nets have data of their own."""

from __future__ import annotations

import pytest

from knhk_workflow.core import commands as c
from knhk_workflow.core.data import merge
from tests.core.cases import WORK, Document, Played, flow, path

ONE: Document = {"tasks": {"A": WORK}, "flows": path("start", "A", "end")}


@pytest.mark.parametrize(
    ("data", "patch", "merged"),
    [
        (b"{}", b'{"a":1}', b'{"a":1}'),
        (b'{"a":1}', b"{}", b'{"a":1}'),
        (b'{"a":{"x":1,"y":2}}', b'{"a":{"x":3}}', b'{"a":{"x":3}}'),
        (b'{"a":1,"b":2}', b'{"a":null}', b'{"a":null,"b":2}'),
        (b'{"a":[1,2]}', b'{"a":[3]}', b'{"a":[3]}'),
        (b'{"b":1,"a":2}', b'{"c":3,"b":4}', b'{"b":4,"a":2,"c":3}'),
        (b'{"n":9007199254740993}', b'{"d":1.0}', b'{"n":9007199254740993,"d":1.0}'),
    ],
)
def test_top_level_keys_are_replaced(data: bytes, patch: bytes, merged: bytes) -> None:
    assert merge(data, patch) == merged


def test_an_output_is_merged_into_the_data() -> None:
    played = Played(ONE, {"a": {"x": 1}, "b": 2})
    played.complete("A", {"a": {"y": 1}, "c": None})
    assert played.data == {"a": {"y": 1}, "b": 2, "c": None}


def test_skipped_work_leaves_the_data_and_its_mapping_alone() -> None:
    played = Played({"tasks": {"A": {**WORK, "out": {"x": "data.missing"}}}, "flows": path("start", "A", "end")})
    played.do(c.SkipItem(played.ref("A")))
    assert played.case.state == "completed"
    assert played.data == {}


def test_work_without_output_still_maps_its_data() -> None:
    played = Played({"tasks": {"A": {**WORK, "out": {"x": "data.n"}}}, "flows": path("start", "A", "end")}, {"n": 1})
    played.do(c.CompleteItem(played.ref("A")))
    assert played.data == {"n": 1, "x": 1}


def test_a_routing_task_maps_data() -> None:
    document: Document = {"tasks": {"A": {"out": {"twice": "data.n * 2"}}}, "flows": path("start", "A", "end")}
    assert Played(document, {"n": 4}).data == {"n": 4, "twice": 8}


def test_an_input_is_mapped_when_the_work_is_offered_and_recorded() -> None:
    task = {**WORK, "in": {"total": "data.n * 2"}, "out": {"result": "data.total + data.extra"}}
    played = Played({"tasks": {"A": task}, "flows": path("start", "A", "end")}, {"n": 4})
    played.do(c.UpdateCaseData(b'{"n":100}'))
    played.complete("A", {"extra": 1})
    assert played.data == {"n": 100, "result": 9}


def test_of_parallel_branches_the_last_commit_of_a_key_wins() -> None:
    played = Played(
        {"tasks": {"Fork": {}, "A": WORK, "B": WORK}, "flows": [*path("start", "Fork", "A"), flow("Fork", "B")]}
    )
    played.complete("B", {"x": "b", "b": 1})
    played.complete("A", {"x": "a", "a": 1})
    assert played.data == {"x": "a", "b": 1, "a": 1}


def nested(**mappings: object) -> Document:
    return {
        "tasks": {"S": {"net": "inner", **mappings}, "Z": WORK},
        "flows": path("start", "S", "Z", "end"),
        "nets": {"inner": {"tasks": {"A": WORK}, "flows": path("start", "A", "end")}},
    }


def test_a_sub_net_begins_with_a_copy_and_gives_it_back() -> None:
    played = Played(nested(), {"n": 1})
    played.do(c.UpdateCaseData(b'{"n":5,"later":true}'))
    played.complete("A", {"m": 2})
    assert played.data == {"n": 1, "later": True, "m": 2}


def test_a_sub_net_sees_only_what_is_mapped_in_and_gives_only_what_is_mapped_out() -> None:
    played = Played(nested(**{"in": {"x": "data.n + 1"}, "out": {"y": "data.x * 10"}}), {"n": 1})
    assert played.case.nets[2].data == b'{"x":2}'
    played.complete("A", {"x": 7})
    assert played.data == {"n": 1, "y": 70}


def test_an_empty_mapping_gives_nothing() -> None:
    played = Played(nested(out={}), {"n": 1})
    played.complete("A", {"n": 2})
    assert played.data == {"n": 1}


def test_guards_read_the_output_of_their_own_task() -> None:
    played = Played(
        {
            "tasks": {"A": WORK, "B": WORK, "C": WORK},
            "flows": [*path("start", "A"), flow("A", "B", "data.ok"), flow("A", "C", default=True)],
        },
        {"ok": False},
    )
    played.complete("A", {"ok": True})
    assert played.open == ["B"]
