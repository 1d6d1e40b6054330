"""What may be sent, and how a mistake is told."""

from __future__ import annotations

import base64
import socket

import httpx2
import pytest

from tests.sidecar.rest.conftest import REVIEW


def problem(answer: httpx2.Response, status: int, reason: str) -> dict[str, object]:
    """The RFC 9457 problem in an answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert isinstance(found, dict)
    assert found["status"] == status
    assert found["reason"] == reason, found
    assert found["type"].endswith(reason)
    return found


def errors(found: dict[str, object]) -> list[dict[str, str]]:
    inner = found["errors"]
    assert isinstance(inner, list)
    return inner


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"spec_id": "rest-review", "spec_id": "x"}', "spec_id", "twice"),
        (b'{"spec_id": "rest-review", "specId": "x"}', "specId", "same as"),
        (b'{"specid": "rest-review"}', "specid", "did you mean 'spec_id'?"),
        (b'{"spec_id": 7}', "spec_id", "expected a string"),
        (b'{"spec_id": "rest-review", "spec_version": -1}', "spec_version", "0 to 4294967295"),
        (b'{"spec_id": "rest-review", "spec_version": 1.5}', "spec_version", "expected an integer"),
        (b'{"spec_id": "rest-review", "data": {"a": NaN}}', "", "NaN"),
        (b'{"spec_id": "rest-review", "data": {"a": 1e999}}', "", "too large"),
        (b'{"spec_id": "rest-review", "data": {"a": "\\ud800"}}', "data", "surrogate"),
        (b'{"spec_id": "rest-review", "data": [1]}', "data", "object"),
        (b'{"spec_id": "rest-review", "data": {"a": 1}, "data_json": {}}', "data", "same as"),
        (b'{"spec_id": "rest-review",}', "", "line 1, column 27"),
        (b'["rest-review"]', "", "expected an object"),
        (b"\xff\xfe{}", "", "UTF-8"),
        (b"[" * 100_000, "", "nested too deeply"),
    ],
)
def test_a_malformed_body_is_refused_with_its_place(http: httpx2.Client, body: bytes, field: str, words: str) -> None:
    found = problem(http.post("/cases", content=body), 400, "INVALID_ARGUMENT")
    told = [error for error in errors(found) if error["field"] == field]
    assert told, found
    assert words in told[0]["message"] + told[0]["hint"]


def test_the_document_may_be_sent_in_several_ways(http: httpx2.Client) -> None:
    text = "id: rest-review\ntasks:\n  write: {required_roles: [author]}\n  review: {required_roles: [editor]}\n"
    text += "flows:\n- {from: start, to: write}\n- {from: write, to: review}\n- {from: review, to: end}\n"
    first = http.post("/workflows", json={"spec": REVIEW}).json()
    for answer in (
        http.post("/workflows", json=REVIEW),
        http.post("/workflows", json={"document": text, "format": "yaml"}),
        http.post("/workflows", content=text, headers={"content-type": "application/yaml"}),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.json()["digest"] == first["digest"]
        assert answer.json()["created"] is False


def test_an_invalid_document_lists_every_problem(http: httpx2.Client) -> None:
    spec = {"id": "broken", "tasks": {"a": {"join": "sometimes"}}, "flows": [{"from": "start", "to": "b"}]}
    found = problem(http.post("/workflows", json={"spec": spec}), 400, "INVALID_DOCUMENT")
    assert len(errors(found)) >= 2


def test_variables_that_are_not_strings_are_data(http: httpx2.Client) -> None:
    answer = http.post("/patterns/1/execute", json={"variables": {"name": "x", "amount": 3, "deep": {"a": [1]}}})
    assert answer.status_code == 200
    assert answer.json()["trace"][0]["data"]["data"] == {"name": "x", "amount": 3, "deep": {"a": [1]}}


def test_names_and_enums_are_read_leniently(http: httpx2.Client) -> None:
    case = http.post("/cases", json={"specId": "rest-review", "caseId": "lenient", "businessKey": "k"}).json()
    assert case["business_key"] == "k"
    for query in (
        "state=created",
        "states=CREATED",
        "states=CASE_STATE_CREATED,running",
        "states=1",
        "filter.states=created",
    ):
        found = http.get(f"/cases?{query}&business_key=k").json()["cases"]
        assert [each["case_id"] for each in found] == ["lenient"], query


def test_unknown_query_parameters_are_refused(http: httpx2.Client) -> None:
    found = problem(http.get("/cases?statt=running"), 400, "INVALID_ARGUMENT")
    assert errors(found)[0]["hint"] == "did you mean 'states'?"


def test_ids_may_hold_any_character(http: httpx2.Client) -> None:
    http.post("/cases", json={"spec_id": "rest-review", "case_id": "a/b c:run%é"})
    answer = http.get("/cases/a%2Fb%20c%3Arun%25%C3%A9")
    assert answer.status_code == 200, answer.text
    assert answer.json()["case_id"] == "a/b c:run%é"
    problem(http.get("/cases/%ff"), 400, "INVALID_ARGUMENT")


def test_path_and_body_must_agree(http: httpx2.Client) -> None:
    problem(http.post("/cases/one/start", json={"case_id": "two"}), 400, "INVALID_ARGUMENT")


def test_the_idempotency_key_is_the_request_id(http: httpx2.Client) -> None:
    headers = {"Idempotency-Key": '"rest-once"'}
    body = {"spec_id": "rest-review"}
    first = http.post("/cases", json=body, headers=headers).json()
    assert http.post("/cases", json=body, headers=headers).json() == first
    assert http.post("/cases", json={**body, "request_id": "rest-once"}).json() == first
    problem(http.post("/cases", json={**body, "data": {"a": 1}}, headers=headers), 422, "REQUEST_ID_REUSED")
    problem(http.post("/cases", json={**body, "request_id": "other"}, headers=headers), 400, "INVALID_ARGUMENT")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(http: httpx2.Client) -> None:
    problem(http.post("/cases", content=b" " * (4 * 1024 * 1024 + 1)), 413, "LIMIT_EXCEEDED")

    def parts() -> object:
        for _ in range(80):
            yield b" " * 65_536

    problem(http.post("/cases", content=parts()), 413, "LIMIT_EXCEEDED")  # type: ignore[arg-type]  # a generator of bytes


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    assert "did you mean /api/v1/cases?" in str(problem(http.get("/case"), 404, "UNKNOWN_PATH")["detail"])
    refused = http.put("/cases")
    problem(refused, 405, "METHOD")
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    problem(http.post("/cases", content=b"<a/>", headers={"content-type": "application/xml"}), 415, "MEDIA_TYPE")


def test_head_is_get_without_its_body(http: httpx2.Client) -> None:
    answer = http.head("/patterns/1")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"host": "evil.example"}])
def test_web_pages_are_kept_out(http: httpx2.Client, headers: dict[str, str]) -> None:
    assert http.get("/cases", headers=headers).status_code == 403
    assert http.get("/health", headers=headers).status_code == 200


def test_a_second_host_is_refused(http: httpx2.Client) -> None:
    place = (http.base_url.host, http.base_url.port or 80)
    with socket.create_connection(place, timeout=10) as connection:
        connection.sendall(b"GET /api/v1/cases HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_columns_are_base64(http: httpx2.Client) -> None:
    column = {"pattern_id": 2, "branch_count": 2, "markings": base64.b64encode((1).to_bytes(8, "little")).decode()}
    answer = http.post("/patterns:decideRoutes", json={"columns": [column]})
    assert answer.status_code in (200, 501), answer.text
    column["markings"] = "?"
    problem(http.post("/patterns:decideRoutes", json={"columns": [column]}), 400, "INVALID_ARGUMENT")


def test_what_comes_later_says_so(http: httpx2.Client) -> None:
    found = problem(http.get("/subscriptions"), 501, "UNIMPLEMENTED_FEATURE")
    assert "feature" in str(found["info"])


def test_nothing_that_is_sent_is_an_accident(http: httpx2.Client) -> None:
    """What no field can hold is the sender's mistake, said as a problem."""
    for answer in (
        http.get("/cases", params={"state": "9" * 5_000}),
        http.put("/admin/promotion", content=b'{"traffic_percent": ' + b"9" * 400 + b"}"),
        http.post("/cases", content=b'{"\\ud800": 1}'),
    ):
        problem(answer, 400, "INVALID_ARGUMENT")
