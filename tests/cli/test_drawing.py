"""Nets as pictures."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from knhk_sidecar.cli.drawing import drawing_of

WIDTH = 120


def drawn(document: object) -> str:
    return drawing_of(json.dumps(document).encode(), WIDTH)


def flows(*pairs: str) -> list[dict[str, str]]:
    return [dict(zip(("from", "to"), pair.split(), strict=True)) for pair in pairs]


def test_a_diamond() -> None:
    document = {
        "tasks": {"A": {}, "B": {}, "C": {"required_roles": ["clerk"]}, "D": {"join": "and"}},
        "flows": flows("start A", "A B", "A C", "B D", "C D", "D end"),
    }
    assert drawn(document).splitlines() == [
        "                        ┌───────────┐",
        "                    ┌──▶│     B     │─┐",
        "  ┌───────┐   ┌───┐ │   └───────────┘ │     ┌──────────┐   ┌─────┐",
        "  │ start │──▶│ A │─┤                 └─┬──▶│    D     │──▶│ end │",
        "  └───────┘   └───┘ │                   │   │ and-join │   └─────┘",
        "                    │   ┌───────────┐   │   └──────────┘",
        "                    └──▶│     C     │───┘",
        "                        │ for clerk │",
        "                        └───────────┘",
    ]


def test_what_leads_back_and_guards_stand_below() -> None:
    document = {
        "tasks": {"A": {}, "B": {}},
        "flows": [*flows("start A", "A B", "B end"), {"from": "B", "to": "A", "when": "data.again"}],
    }
    assert drawn(document).splitlines()[-2:] == ["  B -> A  when data.again", "  B -> A  leads back"]


def test_what_undoes_a_task_stands_in_its_box() -> None:
    picture = drawn({"tasks": {"A": {"compensate": "U"}, "U": {}}, "flows": flows("start A", "A end")})
    assert "undone by U" in picture


def test_sub_nets_follow() -> None:
    document = {
        "tasks": {"A": {"net": "inner"}},
        "flows": flows("start A", "A end"),
        "nets": {"inner": {"tasks": {"B": {}}, "flows": flows("start B", "B end")}},
    }
    assert "\n\nnet inner\n" in drawn(document)


def test_a_net_that_is_too_wide_is_listed() -> None:
    names = [f"task-{number}" for number in range(40)]
    chain = ["start", *names, "end"]
    pairs = [f"{left} {right}" for left, right in pairwise(chain)]
    text = drawn({"tasks": {name: {} for name in names}, "flows": flows(*pairs)})
    assert text.splitlines()[0] == "  start -> task-0"


NAMES = [f"t{number}" for number in range(7)]


@given(st.lists(st.tuples(st.sampled_from(["start", *NAMES]), st.sampled_from([*NAMES, "end"])), max_size=14))
def test_every_net_is_drawn_with_all_its_tasks(pairs: list[tuple[str, str]]) -> None:
    document = {"tasks": {name: {} for name in NAMES}, "flows": [{"from": left, "to": right} for left, right in pairs]}
    text = drawn(document)
    if "┌" in text:
        assert all(f" {name} " in text for name in NAMES)
        assert max(map(len, text.splitlines())) <= WIDTH
    else:
        assert len(text.splitlines()) == len(pairs)
