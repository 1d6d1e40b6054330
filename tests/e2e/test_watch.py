"""A watcher sees every event once, in order, though the daemon is killed under it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, history, register, sidecar

LOOPS = 40
LOOP = b"""{"id": "loop", "tasks": {"again": {"required_roles": ["clerk"]}, "done": {}},
 "flows": [{"from": "start", "to": "again"}, {"from": "again", "to": "again", "when": "data.count < 40"},
           {"from": "again", "to": "done", "default": true}, {"from": "done", "to": "end"}]}"""
END_SECONDS = 120.0


@pytest.mark.long
def test_watching_goes_on_by_its_token_over_kills(tmp_path: Path) -> None:
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, LOOP)
            stubs.cases.RunCase(
                pb.RunCaseRequest(spec_id="loop", case_id="case", data_json=b'{"count": 0}'), timeout=10
            )
        of_case: list[int] = []
        of_all: list[tuple[str, int]] = []
        problems: list[BaseException] = []
        watchers = [
            threading.Thread(target=guarded, args=(problems, watch_case, daemon, of_case)),
            threading.Thread(target=guarded, args=(problems, watch_all, daemon, of_all)),
        ]
        for watcher in watchers:
            watcher.start()
        await_first(daemon, of_all)
        for count in range(1, LOOPS + 1):
            complete(daemon, count)
            if count % 10 == 5:
                daemon.kill()
                daemon.start()
        for watcher in watchers:
            watcher.join(END_SECONDS)
            assert not watcher.is_alive(), (len(of_case), len(of_all))
        assert problems == []
        with daemon.stubs() as stubs:
            expected = [event.sequence for event in history(stubs, "case")]
        assert of_case == expected
        first = of_all[0][1]  # it began with what happened when it came
        assert of_all == [("case", sequence) for sequence in expected[first - 1 :]]


def await_first(daemon: Sidecar, seen: list[tuple[str, int]]) -> None:
    """Lets things happen until the watcher of all cases has its first token."""
    until = time.monotonic() + END_SECONDS
    with daemon.stubs() as stubs:
        while not seen:
            assert time.monotonic() < until
            stubs.cases.UpdateCaseData(
                pb.UpdateCaseDataRequest(case_id="case", data_json=b'{"seen": false}'), timeout=CALL_SECONDS
            )
            time.sleep(0.05)


def guarded(problems: list[BaseException], watch: object, daemon: Sidecar, seen: object) -> None:
    """Keeps what went wrong in a thread for the test."""
    assert callable(watch)
    try:
        watch(daemon, seen)
    except BaseException as problem:
        problems.append(problem)
        raise


def complete(daemon: Sidecar, count: int) -> None:
    """Completes the open item, as a client with a request id does."""
    request = pb.CompleteWorkItemRequest(
        item_id=f"{count}.1.1@case", output_json=f'{{"count": {count}}}'.encode(), request_id=f"count-{count}"
    )
    with daemon.stubs() as stubs:
        open_item = stubs.work.ListWorkItems(pb.ListWorkItemsRequest(case_id="case"), timeout=CALL_SECONDS).items[0]
        request.item_id = open_item.item_id
        stubs.work.CompleteWorkItem(request, timeout=CALL_SECONDS)


def watch_case(daemon: Sidecar, seen: list[int]) -> None:
    """Follows the case until it has ended."""
    while True:
        try:
            with daemon.stubs() as stubs:
                request = pb.WatchCaseRequest(case_id="case", after_sequence=seen[-1] if seen else 0)
                stream = stubs.cases.WatchCase(request)
                seen.extend(message.event.sequence for message in stream if message.HasField("event"))
                return
        except grpc.RpcError:
            time.sleep(0.05)


def watch_all(daemon: Sidecar, seen: list[tuple[str, int]]) -> None:
    """Follows all cases until one has ended."""
    token = ""
    while True:
        try:
            with daemon.stubs() as stubs:
                for message in stubs.cases.WatchCases(pb.WatchCasesRequest(resume_token=token)):
                    token = message.resume_token or token
                    if message.HasField("event"):
                        seen.append((message.event.case_id, message.event.sequence))
                        if message.event.event_type == "state_changed" and b'"completed"' in message.event.data_json:
                            return
        except grpc.RpcError:
            time.sleep(0.05)
