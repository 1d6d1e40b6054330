"""Server-sent events: what a browser's EventSource relies on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2

from tests.cli.daemon import running
from tests.sidecar.rest.conftest import REVIEW


def blocks(answer: httpx2.Response) -> Iterator[dict[str, str]]:
    """The events of a stream as their fields."""
    found: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
        elif found:
            yield found
            found = {}


def test_a_watch_tells_past_and_present_and_ends_with_the_case(http: httpx2.Client) -> None:
    http.post("/cases:run", json={"spec_id": "rest-review", "case_id": "sse"})
    with http.stream("GET", "/cases/sse/watch") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        stream = blocks(answer)
        assert json.loads(next(stream)["data"])["event_type"] == "case_created"
        http.post("/cases/sse/cancel", json={"reason": "enough"})
        rest = list(stream)
    assert rest[-1] == {"event": "end", "data": "{}"}
    assert rest[-2]["id"] == str(json.loads(rest[-2]["data"])["sequence"])
    assert json.loads(rest[-2]["data"])["event_type"] == "state_changed"


def test_last_event_id_resumes_and_nothing_left_is_204(http: httpx2.Client) -> None:
    http.post("/cases:run", json={"spec_id": "rest-review", "case_id": "resumed"})
    http.post("/cases/resumed/cancel")
    last = http.get("/cases/resumed").json()["sequence"]
    with http.stream("GET", "/cases/resumed/watch", headers={"last-event-id": str(last - 2)}) as answer:
        assert [block["id"] for block in blocks(answer) if "id" in block] == [str(last - 1), str(last)]
    assert http.get("/cases/resumed/watch", headers={"last-event-id": str(last)}).status_code == 204


def test_an_error_before_the_first_event_has_a_status(http: httpx2.Client) -> None:
    assert http.get("/cases/nobody/watch").status_code == 404


def test_watching_everything_resumes_by_token(http: httpx2.Client) -> None:
    with http.stream("GET", "/cases:watch") as answer:
        stream = blocks(answer)
        start = next(stream)
        assert set(start) == {"id"}  # where this watch began, before anything happens
        http.post("/cases:run", json={"spec_id": "rest-review", "case_id": "all-1"})
        token = next(block["id"] for block in stream if json.loads(block["data"])["case_id"] == "all-1")
    with http.stream("GET", "/cases:watch", headers={"last-event-id": start["id"]}) as answer:
        assert json.loads(next(blocks(answer))["data"])["case_id"] == "all-1"
    with http.stream("GET", "/cases:watch", headers={"last-event-id": token}) as answer:
        events = (json.loads(block["data"]) for block in blocks(answer))
        first = next(events)
        # Tokens stand between commits, so the events of one commit may come again; none may be missing.
        assert (first["case_id"], first["sequence"]) in (("all-1", 1), ("all-1", 2))
        assert first["sequence"] == 2 or next(events)["sequence"] == 2


def test_a_drain_ends_streams_so_that_clients_reconnect(tmp_path: Path) -> None:
    with (
        running(tmp_path / "data", "--no-samples") as daemon,
        httpx2.Client(base_url=daemon.http, timeout=60) as client,
    ):
        client.post("/workflows", json=REVIEW)
        client.post("/cases:run", json={"spec_id": "rest-review", "case_id": "open"})
        with client.stream("GET", "/cases/open/watch") as answer:
            stream = blocks(answer)
            next(stream)
            stopping = threading.Thread(target=daemon.stop)
            stopping.start()
            rest = list(stream)
        stopping.join()
    assert daemon.process.returncode == 0
    assert {"event": "end", "data": "{}"} not in rest
