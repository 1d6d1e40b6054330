"""A daemon in a process of its own that can be killed, drained and started again on the same directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from knhk_sidecar.api import pb

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0  # a start takes one; the machine may be shared
STOP_SECONDS = 60.0  # a drain takes moments
CALL_SECONDS = 60.0
FREE = "127.0.0.1:0"
LISTENERS = ("grpc", "plain", "http", "metrics")

HELLO = json.dumps(
    {
        "id": "hello",
        "tasks": {"first": {"required_roles": ["clerk"]}, "second": {"required_roles": ["clerk"]}},
        "flows": [{"from": "start", "to": "first"}, {"from": "first", "to": "second"}, {"from": "second", "to": "end"}],
    }
).encode()
"""Two tasks in a row, each done from outside."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment without settings of a daemon."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("KGC_", "KNHK_", "WORKFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def command(*arguments: str, prefix: Sequence[str] = ()) -> list[str]:
    """A command line of `knhk`."""
    return [*prefix, sys.executable, "-m", "knhk_sidecar", *arguments]


def run(
    *arguments: str, extra: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`knhk` to its end, which has to come."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env=environment(extra),
        cwd=cwd,
        check=False,
    )


@dataclass(slots=True)
class Stubs:
    """The services over one channel."""

    channel: grpc.Channel
    patterns: pb.PatternServiceStub = field(init=False)
    workflows: pb.WorkflowServiceStub = field(init=False)
    cases: pb.CaseServiceStub = field(init=False)
    work: pb.WorkItemServiceStub = field(init=False)
    admin: pb.AdminServiceStub = field(init=False)

    def __post_init__(self) -> None:
        self.patterns = pb.PatternServiceStub(self.channel)
        self.workflows = pb.WorkflowServiceStub(self.channel)
        self.cases = pb.CaseServiceStub(self.channel)
        self.work = pb.WorkItemServiceStub(self.channel)
        self.admin = pb.AdminServiceStub(self.channel)


@dataclass(slots=True)
class Sidecar:
    """A daemon in developer mode over one data directory; `ready` is what it wrote when it was ready last."""

    data_dir: Path
    home: Path
    """Where its ready file and its log are: not on the volume that a test may fill."""
    arguments: Sequence[str] = ()
    prefix: Sequence[str] = ()
    root: Path = Path("/")
    """Where its file system is seen from here."""
    ready: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def pid(self) -> int:
        """The running process."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything that any start has written."""
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Starts and waits until ready, on free ports."""
        ready = self.home / "ready.json"
        ready.unlink(missing_ok=True)
        listeners = [part for name in LISTENERS for part in (f"--{name}-address", FREE)]
        line = command(
            *("dev", "--no-samples", "--data-dir", str(self.data_dir), "--ready-file", str(ready)),
            *(*listeners, *self.arguments),
            prefix=self.prefix,
        )
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, env=environment())
        until = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.01)
        self.ready = json.loads(ready.read_text())
        self.starts += 1

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        """Whatever state it is in: gone afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def credentials(self) -> grpc.ChannelCredentials:
        """The developer's certificate."""
        ca, key, cert = ((self.root / self.ready[name].lstrip("/")).read_bytes() for name in ("ca", "key", "cert"))
        return grpc.ssl_channel_credentials(ca, key, cert)

    @contextmanager
    def stubs(self) -> Iterator[Stubs]:
        """The services over mTLS."""
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(self.ready["grpc"], self.credentials(), options) as channel:
            yield Stubs(channel)

    def http(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of one REST call."""
        request = urllib.request.Request(
            f"http://{self.ready['http']}{path}",
            data=body,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def sidecar(
    home: Path, *arguments: str, data_dir: Path | None = None, prefix: Sequence[str] = (), root: Path = Path("/")
) -> Iterator[Sidecar]:
    """A running daemon, gone at the end of the block."""
    made = Sidecar(data_dir or home / "data", home, arguments, prefix, root)
    try:
        made.start()
        yield made
    finally:
        made.end()


def register(stubs: Stubs, document: bytes = HELLO) -> None:
    """Registers a workflow."""
    stubs.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=document), timeout=CALL_SECONDS)


def history(stubs: Stubs, case_id: str) -> Sequence[pb.HistoryEvent]:
    """A case's whole history; its sequence must be dense."""
    events: list[pb.HistoryEvent] = []
    while True:
        request = pb.GetCaseHistoryRequest(case_id=case_id, after_sequence=len(events), page_size=1_000)
        page = stubs.cases.GetCaseHistory(request, timeout=CALL_SECONDS)
        events.extend(page.events)
        if not page.events or len(page.events) < 1_000:
            break
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


def case_ids(stubs: Stubs) -> Sequence[str]:
    """Every case there is."""
    found: list[str] = []
    token = ""
    while True:
        page = stubs.cases.ListCases(pb.ListCasesRequest(page_size=1_000, page_token=token), timeout=CALL_SECONDS)
        found.extend(case.case_id for case in page.cases)
        token = page.next_page_token
        if not token:
            return found


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status of a failed call."""
    return cast("grpc.Call", error).code()  # what a call raises is that call


def reason_of(error: grpc.RpcError) -> str:
    """The reason in ErrorInfo; empty when the error is not the daemon's."""
    for key, value in cast("grpc.Call", error).trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = Status()
            status.ParseFromString(value)
            for detail in status.details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return ""
