"""What a workflow hides."""

from __future__ import annotations

import json

import pytest

from knhk_workflow import InvalidDocument
from knhk_workflow.model.parse import parse_spec
from knhk_workflow.model.veil import MASK, OPEN, Veil, veil_of


def veil(document: dict[str, object], *names: str) -> Veil:
    flows = [{"from": "start", "to": "a"}, {"from": "a", "to": "end"}]
    return veil_of(parse_spec({"id": "w", "flows": flows, "sensitive": list(names), **document}))


def test_names_cover_every_depth_and_nothing_else() -> None:
    found = veil({"tasks": {"a": {}}}, "card", "ssn")
    data = {"card": {"number": "4111"}, "people": [{"ssn": 12, "name": "Ada"}], "cards": 3, "n": [["ssn"]]}
    assert json.loads(found.json(json.dumps(data).encode())) == {
        "card": MASK,
        "people": [{"ssn": MASK, "name": "Ada"}],
        "cards": 3,
        "n": [["ssn"]],
    }


def test_nothing_named_is_nothing_hidden() -> None:
    found = veil({"tasks": {"a": {}}})
    assert not found
    assert found is OPEN
    assert found.json(b'{"a": 1}') == b'{"a": 1}'
    assert found.message("a", [b"{}"]) == "a"


def test_what_mappings_make_of_it_is_sensitive_too() -> None:
    task = {"required_roles": ["clerk"], "in": {"holder": "data.person.card", "amount": "data.amount"}}
    found = veil({"tasks": {"a": {**task, "out": {"kept": "data.holder", "cardinal": "data.cardinality"}}}}, "card")
    assert found.names == {"card", "holder", "kept"}


def test_lists_and_requests_made_of_it_are_hidden_whole() -> None:
    each = {"a": {"required_roles": ["clerk"], "for_each": "data.cards"}}
    found = veil({"tasks": each}, "cards")
    assert found.element("a", b'"4111"') == b'"***"'
    assert found.element("b", b'{"x":1}') == b'{"x":1}'
    request = {"method": "POST", "url": "/pay", "body": "{'pan': data.card}"}
    found = veil({"tasks": {"a": {"connector": "http", "request": request}}}, "card")
    assert found.input("a", b'{"body":{"pan":"4111"}}') == b'"***"'


def test_an_element_of_a_hidden_list_is_hidden_under_every_name() -> None:
    each = {"required_roles": ["clerk"], "for_each": "data.cards", "out": {"last": "item", "count": "data.count"}}
    found = veil({"tasks": {"a": each}}, "cards")
    assert found.input("a", b'{"item":"4111"}') == b'{"item":"***"}'
    assert found.names == {"cards", "item", "last"}
    assert veil({"tasks": {"a": each}}, "count").names == {"count"}


@pytest.mark.parametrize("value", ["4111-2222", 'quo"te', "ümlaut", 4111222, 12.75, {"deep": ["4111-2222"]}])
def test_messages_are_searched_for_the_values(value: object) -> None:
    found = veil({"tasks": {"a": {}}}, "card")
    leaf = value["deep"][0] if isinstance(value, dict) else value
    data = json.dumps({"card": value, "n": 1}).encode()
    for text in (f"no key {leaf!r} here", f"no {json.dumps(leaf)} here", f"{leaf}"):
        shown = found.message(text, [data])
        assert str(leaf) not in shown
        assert json.dumps(leaf).strip('"') not in shown
        assert MASK in shown


@pytest.mark.parametrize("wrong", [[1, 1], [""], {"a": 1}, ["a\nb"]])
def test_the_list_is_checked(wrong: object) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_spec({"id": "w", "tasks": {}, "flows": [], "sensitive": wrong})
    assert caught.value.problems[0].path.startswith("sensitive")
