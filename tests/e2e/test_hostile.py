"""Requests that want to hurt: huge, deep, endless. Each is refused by name, and the next call is answered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, Stubs, code_of, reason_of, register, sidecar

DEPTH = 100_000
HUGE = 5 * 1024 * 1024
DATA_MAX = 2 * 1024 * 1024
MEMORY_MAX = 400 * 1024 * 1024  # a fresh daemon has about 100 MB
NEIGHBOUR_SECONDS = 60.0  # alone it takes milliseconds, a bomb that goes off minutes
NEIGHBOURS = 3  # that are answered while a net runs on and on


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One daemon for all of them; it must live through everything."""
    with sidecar(tmp_path_factory.mktemp("hostile")) as found:
        with found.stubs() as stubs:
            register(stubs)
        yield found
        pages = int(Path(f"/proc/{found.pid}/statm").read_text().split()[1])
        assert pages * 4096 < MEMORY_MAX
        assert "Traceback" not in found.log
        assert found.stop() == 0


@pytest.fixture
def stubs(daemon: Sidecar) -> Iterator[Stubs]:
    """Calls of the test; afterwards the daemon still does its work."""
    with daemon.stubs() as found:
        yield found
        found.cases.RunCase(pb.RunCaseRequest(spec_id="hello"), timeout=NEIGHBOUR_SECONDS)


def refused(stubs: Stubs, data: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", data_json=data), timeout=CALL_SECONDS)
    return code_of(error.value), reason_of(error.value)


def test_a_message_of_five_megabytes(daemon: Sidecar, stubs: Stubs) -> None:
    data = json.dumps({"blob": "x" * HUGE}).encode()
    assert refused(stubs, data)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    # curl reads the answer though it has not sent everything.
    answered = subprocess.run(
        ["curl", "-s", "-H", "Expect:", "-H", "Content-Type: application/json", "--data-binary", "@-",
         "-w", "%{http_code}", f"http://{daemon.ready['http']}/api/v1/cases:run"],
        input=b'{"spec_id": "hello", "data": ' + data + b"}", capture_output=True, timeout=CALL_SECONDS, check=False,
    )  # fmt: skip
    assert answered.stdout.endswith(b"413"), answered


def test_data_at_and_above_their_limit(stubs: Stubs) -> None:
    frame = len(b'{"blob":""}')
    largest = b'{"blob":"' + b"x" * (DATA_MAX - frame) + b'"}'
    answer = stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello", data_json=largest), timeout=CALL_SECONDS)
    assert answer.case.state == pb.CASE_STATE_RUNNING
    code, reason = refused(stubs, largest + b" ")
    assert (code.name, reason) in {("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"), ("INVALID_ARGUMENT", "INVALID_ARGUMENT")}


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' * DEPTH + b"1" + b"}" * DEPTH,
        b'{"a":' + b"[" * DEPTH + b"]" * DEPTH + b"}",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[1]",
        b'{"a": 1',
        b'{"a": ' + b"9" * 5_000 + b"}",
    ],
    ids=[
        "objects",
        "arrays",
        "nan",
        "twice",
        "infinite",
        "no text",
        "half a character",
        "a list",
        "cut",
        "long number",
    ],
)
def test_data_that_are_no_json_object(daemon: Sidecar, stubs: Stubs, data: bytes) -> None:
    code, reason = refused(stubs, data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason == "INVALID_ARGUMENT"
    status, _ = daemon.http("/api/v1/cases:run", b'{"spec_id": "hello", "data": ' + data + b"}")
    assert status in (400, 413)


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("yaml", "id: a\ntasks: &t\n  x: *t\n"),
        ("yaml", "id: &a [*a]\n"),
        ("yaml", "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{name}: &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefghij"
        )),
        ("json", '{"id": ' * DEPTH + "1" + "}" * DEPTH),
        ("json", '{"id": "d", "tasks": {"a": {"join": "sideways"}}, "flows": [{"from": "a", "to": "nowhere"}]}'),
        ("json", '{"id": "d", "tasks": {"a": {}}, "flows": [{"from": "start", "to": "a", "when": "1 +"}]}'),
    ],
    ids=["cyclic yaml", "alias in itself", "billion laughs", "deep", "wrong names", "bad guard"],
)  # fmt: skip
def test_documents_that_cannot_be(stubs: Stubs, format_: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stubs.workflows.RegisterWorkflow(
            pb.RegisterWorkflowRequest(document=text.encode(), format=format_), timeout=NEIGHBOUR_SECONDS
        )
    assert code_of(error.value) is grpc.StatusCode.INVALID_ARGUMENT, error.value
    assert reason_of(error.value) in ("INVALID_DOCUMENT", "INVALID_ARGUMENT")


def test_a_net_that_never_rests_becomes_an_incident(stubs: Stubs) -> None:
    document = {
        "id": "endless",
        "tasks": {"a": {}, "b": {}},
        "flows": [
            {"from": "start", "to": "a"},
            {"from": "a", "to": "b"},
            {"from": "b", "to": "a", "when": "true"},
            {"from": "b", "to": "end", "default": True},
        ],
    }
    register(stubs, json.dumps(document).encode())
    for case_id in ("endless", "again", "and again"):  # in case this process was not given the time to ask
        running = stubs.cases.RunCase.future(pb.RunCaseRequest(spec_id="endless", case_id=case_id), timeout=120)
        meanwhile = -1  # the one that is answered when it is over may be seen before that is
        slowest = 0.0
        while not running.done():
            began = time.monotonic()
            stubs.cases.RunCase(pb.RunCaseRequest(spec_id="hello"), timeout=NEIGHBOUR_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
            meanwhile += not running.done()
        assert running.result().case.open_incident_count == 1
        (incident,) = stubs.cases.ListIncidents(
            pb.ListIncidentsRequest(case_id=case_id), timeout=CALL_SECONDS
        ).incidents
        assert incident.kind == "settle_limit"
        print(f"{meanwhile} neighbours meanwhile, the slowest waited {slowest * 1000:.0f} ms")
        if meanwhile >= NEIGHBOURS:
            break
    assert meanwhile >= NEIGHBOURS


def test_a_sub_net_in_itself_becomes_an_incident(stubs: Stubs) -> None:
    document = {
        "id": "mirror",
        "tasks": {"look": {"net": "glass"}},
        "flows": [{"from": "start", "to": "look"}, {"from": "look", "to": "end"}],
        "nets": {
            "glass": {
                "tasks": {"choose": {}, "deeper": {"net": "glass"}},
                "flows": [
                    {"from": "start", "to": "choose"},
                    {"from": "choose", "to": "deeper", "when": "true"},
                    {"from": "choose", "to": "end", "default": True},
                    {"from": "deeper", "to": "end"},
                ],
            }
        },
    }
    register(stubs, json.dumps(document).encode())
    answer = stubs.cases.RunCase(pb.RunCaseRequest(spec_id="mirror"), timeout=CALL_SECONDS)
    assert answer.case.open_incident_count == 1
