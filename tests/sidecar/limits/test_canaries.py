"""Secrets and sensitive data, each a random word of its own, put where they may be, and looked for everywhere else.

Where they may be: the files that they came in, the store (a case's data live there), and the answers that give data to
whoever works with a case. Everything else that the daemon and `knhk` say is collected here and searched.
"""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import grpc
import httpx2
import pytest
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.cli.root import run
from knhk_sidecar.pipeline import Refusal
from knhk_sidecar.telemetry.log import Log
from tests.cli.daemon import Daemon, knhk, running
from tests.sidecar.pipeline.road import METHODS, Road

SECONDS = 60.0
SENSITIVE = ("card", "pin")


class Quoting(BaseHTTPRequestHandler):
    """A service that fails, and quotes in its answer everything that it was sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
        answer = json.dumps({"error": f"cannot charge {body}", "headers": dict(self.headers), "body": body}).encode()
        self.send_response(422)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def quoting() -> Iterator[str]:
    """The service's base address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Quoting)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Canaries:
    """Each secret's own word, and everything that was said, by where."""

    words: dict[str, str] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)

    def word(self, name: str) -> str:
        """The word of a secret, the same every time."""
        return self.words.setdefault(name, f"canary{secrets.token_hex(8)}")

    def hear(self, where: str, text: str | bytes) -> None:
        self.said.append((where, text if isinstance(text, str) else text.decode("utf-8", "replace")))

    def found(self) -> list[str]:
        """Every secret that was said somewhere, in plain or as base64 or JSON would have it."""
        leaks = []
        for name, word in self.words.items():
            forms = {word, word.encode().hex()} | {
                base64.b64encode(b"x" * shift + word.encode())[4:-4].decode() for shift in range(3)
            }
            leaks += [f"{name} in {where}" for where, text in self.said if any(form in text for form in forms)]
        return leaks


def document(base: str) -> dict[str, object]:
    """Work for people, a guard that may fail, and a connector's call that is refused."""
    return {
        "id": "charge",
        "sensitive": list(SENSITIVE),
        "data_schema": {"properties": {"card": {"type": "string"}, "amount": {"type": "number"}}},
        "tasks": {
            "check": {"required_roles": ["clerk"], "in": {"holder": "data.card", "amount": "data.amount"}},
            "choose": {"split": "xor", "join": "xor"},
            "pay": {
                "connector": "bank",
                "request": {"method": "POST", "url": base + "/charge", "body": "{'pan': data.card, 'pin': data.pin}"},
                "retry": 1,
            },
            "other": {"required_roles": ["clerk"]},
        },
        "flows": [
            {"from": "start", "to": "check"},
            {"from": "check", "to": "choose"},
            {"from": "choose", "to": "pay", "when": "data.route[data.card] == 'pay'"},
            {"from": "choose", "to": "other", "default": True},
            {"from": "pay", "to": "end"},
            {"from": "other", "to": "end"},
        ],
    }


class Drive:
    """Everything that callers do to the daemon."""

    def __init__(self, daemon: Daemon, canaries: Canaries, base: str) -> None:
        self.daemon, self.canaries, self.base = daemon, canaries, base
        self.token = canaries.word("token of a gRPC call")
        self.stubs = [
            pb.WorkflowServiceStub(channel := daemon.channel()),
            pb.CaseServiceStub(channel),
            pb.WorkItemServiceStub(channel),
            pb.AdminServiceStub(channel),
            pb.ScheduleServiceStub(channel),
        ]
        self.channel = channel

    def call(self, name: str, request: Message, *, silent: bool = False) -> Message | None:
        """One unary call; what it answers is heard unless it gives data to who works with them."""
        stub = next(stub for stub in self.stubs if hasattr(stub, name))
        metadata = (("authorization", f"Bearer {self.token}"), ("cookie", f"session={self.token}"))
        try:
            answer = cast(Message, getattr(stub, name)(request, timeout=SECONDS, metadata=metadata))
        except grpc.RpcError as error:
            told = cast(grpc.Call, error)
            self.canaries.hear(f"error of {name}", f"{told.details()} {told.trailing_metadata()!r}")
            return None
        if not silent:
            self.canaries.hear(f"answer of {name}", MessageToJson(answer) + repr(answer))
        return answer

    def stream(self, name: str, request: Message, count: int) -> None:
        """The first messages of a response stream."""
        stub = next(stub for stub in self.stubs if hasattr(stub, name))
        responses = getattr(stub, name)(request, timeout=SECONDS)
        for number, response in enumerate(responses):
            raw = getattr(response, "chunk", b"")
            self.canaries.hear(f"stream {name}", raw or repr(response))
            if number + 1 >= count:
                break
        responses.cancel()

    def knhk(self, *arguments: str) -> None:
        """One command, whatever becomes of it."""
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            run((*arguments, "--data-dir", str(self.daemon.data_dir)))
        assert said.getvalue()
        self.canaries.hear(f"knhk {' '.join(arguments[:2])}", said.getvalue())


def run_cases(drive: Drive) -> None:
    """A case that reaches the connector, one whose guard fails, one whose work fails, and refusals."""
    card, pin = drive.canaries.word("card"), drive.canaries.word("pin")
    hidden: dict[str, object] = {"card": card, "pin": {"digits": [pin]}, "amount": 5, "n": [{"card": [card]}]}
    for case_id, data in (
        ("pays", {**hidden, "card": "visa", "route": {"visa": "pay"}}),
        ("stuck", {**hidden, "route": {}}),  # the guard looks for a key that is the card's number, and says which
        ("fails", hidden),
    ):
        request = pb.RunCaseRequest(spec_id="charge", case_id=case_id, data_json=json.dumps(data).encode())
        drive.call("RunCase", request, silent=True)
        item = cast(pb.ListWorkItemsResponse, drive.call("ListWorkItems", pb.ListWorkItemsRequest(case_id=case_id)))
        item_id = item.items[0].item_id
        drive.call("GetWorkItem", pb.GetWorkItemRequest(item_id=item_id), silent=True)
        if case_id == "fails":
            message = f"card {card} with {pin} was declined"
            failure = pb.FailWorkItemRequest(item_id=item_id, code="declined", message=message)
            failure.data_json = json.dumps({"quoted": [message], "card": card}).encode()
            drive.call("FailWorkItem", failure)
        else:
            output = json.dumps({"pin": {"digits": [pin]}}).encode()
            drive.call("CompleteWorkItem", pb.CompleteWorkItemRequest(item_id=item_id, output_json=output))
    wrong = json.dumps({"card": [card], "pin": pin, "amount": "much"}).encode()
    drive.call("RunCase", pb.RunCaseRequest(spec_id="charge", data_json=wrong))
    signal = json.dumps({"card": card}).encode()
    drive.call("TriggerCase", pb.TriggerCaseRequest(case_id="stuck", name="nobody", data_json=signal))
    drive.call("UpdateCaseData", pb.UpdateCaseDataRequest(case_id="stuck", data_json=signal), silent=True)
    drive.call("SuspendCase", pb.SuspendCaseRequest(case_id="stuck", reason=f"{card} was stolen"), silent=True)
    spec = pb.ScheduleSpec(spec_id="charge", every="0 9 * * *", data_json=json.dumps(hidden).encode())
    schedule = pb.CreateScheduleRequest(schedule_id="daily", spec=spec, paused=True)
    drive.call("CreateSchedule", schedule, silent=True)
    until = time.monotonic() + SECONDS
    while not cast(pb.ListDeadLettersResponse, drive.call("ListDeadLetters", pb.ListDeadLettersRequest())).dead_letters:
        assert time.monotonic() < until, "the connector's call was not given up"
        time.sleep(0.05)


def ask(drive: Drive) -> None:
    """Everything that tells."""
    for case_id in ("pays", "stuck", "fails"):
        drive.call("GetCaseHistory", pb.GetCaseHistoryRequest(case_id=case_id))
        drive.call("ExplainCase", pb.ExplainCaseRequest(case_id=case_id))
        drive.call("ListIncidents", pb.ListIncidentsRequest(case_id=case_id))
        drive.stream("WatchCase", pb.WatchCaseRequest(case_id=case_id), 5)
        drive.stream("ExportCase", pb.ExportCaseRequest(case_id=case_id), 1_000)
    for name, request in (
        ("ListCases", pb.ListCasesRequest()),
        ("ListWorkItems", pb.ListWorkItemsRequest()),
        ("GetWorkflow", pb.GetWorkflowRequest(spec_id="charge")),
        ("ListSchedules", pb.ListSchedulesRequest()),
        ("ListConnectors", pb.ListConnectorsRequest(probe=True)),
        ("GetConfig", pb.GetConfigRequest()),
        ("GetStatus", pb.GetStatusRequest()),
        ("GetCase", pb.GetCaseRequest(case_id="nothing")),
        ("ListAudit", pb.ListAuditRequest()),
    ):
        drive.call(name, request)
    token = drive.canaries.word("token of a REST request")
    payload = base64.urlsafe_b64encode(json.dumps({"sub": token}).encode()).decode().rstrip("=")
    shown = {"x-api-key": token, "cookie": f"session={token}"}
    with httpx2.Client(base_url=drive.daemon.http, timeout=SECONDS) as http:
        paths = ["/api/v1/cases/stuck/history", "/api/v1/cases/stuck/explain", "/api/v1/cases", "/api/v1/nothing"]
        paths += ["/health", "/api/v1/cases/none", "/openapi.json", f"/api/v1/cases?access_token={token}"]
        codes = set()
        for credentials in ({}, {"authorization": f"Bearer {token}"}, {"authorization": f"Bearer e30.{payload}.e30"}):
            for path in paths:
                answer = http.get(path, headers={**shown, **credentials})
                codes.add(answer.status_code)
                drive.canaries.hear(f"REST {path.partition('?')[0]}", answer.text + repr(answer.headers))
        assert {200, 401, 404} <= codes
        answer = http.post("/api/v1/cases", content=b"{", headers={"content-type": "application/json"})
        drive.canaries.hear("REST error", answer.text)
        metrics = httpx2.get(f"http://{drive.daemon.ready['metrics']}/metrics")
        drive.canaries.hear("metrics", metrics.text)
    for case_id in ("pays", "stuck", "fails"):
        for command in ("show", "history", "explain"):
            drive.knhk("case", command, case_id)
            drive.knhk("case", command, case_id, "-o", "json")
    drive.knhk("case", "list")
    drive.knhk("work", "list")
    drive.knhk("schedule", "show", "daily")
    drive.knhk("schedule", "list", "-o", "json")
    drive.knhk("connector", "list")
    drive.knhk("connector", "list", "-o", "json")
    drive.knhk("dead-letter", "list", "-o", "json")
    drive.knhk("audit", "list", "-o", "json")
    trail = drive.daemon.data_dir / "trail.json"
    drive.knhk("audit", "export", "--out", str(trail))
    drive.canaries.hear("the exported audit", trail.read_bytes())
    drive.knhk("doctor")
    drive.knhk("case", "show", "nothing")


@pytest.mark.long
def test_no_secret_is_said_anywhere(tmp_path: Path) -> None:
    canaries = Canaries()
    vault = tmp_path / "secrets"
    vault.mkdir()
    (vault / "password").write_text(canaries.word("a connector's secret in a file"))
    settings = tmp_path / "knhk.toml"
    with quoting() as base:
        user = canaries.word("a password in a setting's address")
        settings.write_text(
            f'connector_allow = ["{base}"]\nconnector_networks = ["127.0.0.0/8"]\nconnector_secrets_dir = "{vault}"\n'
            f'kms_vault_url = "https://knhk:{user}@vault.example.org"\nlog_level = "debug"\n'
        )
        extra = {
            "KNHK_SECRET_BANK": canaries.word("a connector's secret in the environment"),
            "KGC_SIDECAR_CONFIG_FILE": str(settings),
        }
        with running(tmp_path / "data", "--no-samples", "--log-level", "debug", extra=extra) as daemon:
            drive = Drive(daemon, canaries, base)
            drive.call("RegisterWorkflow", pb.RegisterWorkflowRequest(spec_json=json.dumps(document(base)).encode()))
            config = {
                "base_url": base,
                "auth": {"bearer": {"env": "KNHK_SECRET_BANK"}},
                "headers": {"x-password": {"file": str(vault / "password")}},
            }
            put = pb.PutConnectorRequest(name="bank", kind="http", config_json=json.dumps(config).encode())
            assert drive.call("PutConnector", put) is not None
            wrong = {**config, "auth": {"bearer": canaries.word("a secret put where a reference belongs")}}
            put.config_json = json.dumps(wrong).encode()
            drive.call("PutConnector", put)
            run_cases(drive)
            ask(drive)
            shown = knhk("config", "show", extra=extra)
            canaries.hear("knhk config show", shown.stdout + shown.stderr)
            drive.channel.close()
            kept = tmp_path / "data"
            for path in (*sorted(kept.rglob("*.key")), kept / "workflow_db" / "SIGNING_KEY"):
                lines = re.findall(r"^[A-Za-z0-9+/=]{20,}$", path.read_text(), re.MULTILINE)
                assert lines, f"{path} holds no key"
                canaries.words |= {f"key {path.name} line {number}": line for number, line in enumerate(lines)}
            code, out, err = daemon.stop()
            canaries.hear("the daemon's output and log", out + err)
            assert code == 0
    assert "debug" in err
    assert len(canaries.said) > 60, "most of it was not heard"
    assert all(text for where, text in canaries.said if where.startswith("answer"))
    assert canaries.found() == []


HOSTILE = '\n{"level":"error","event":"forged"}\r\x1b[31m\u2028\x9b2J\x00%s{x}'


@pytest.mark.parametrize("style", ["json", "console"])
async def test_no_field_of_any_call_makes_a_line_of_its_own(style: str) -> None:
    road = Road(level="debug")
    road.log = Log("debug", style, road.lines)
    seen = 0
    for path, method in METHODS.items():
        if method.client_streaming:
            continue
        request = method.request()
        for name, about in method.request.DESCRIPTOR.fields_by_name.items():
            if about.type == about.TYPE_STRING and not about.is_repeated:
                setattr(request, name, HOSTILE)
        service, _, name = path[1:].partition("/")
        metadata = (("traceparent", HOSTILE), ("user-agent", HOSTILE))
        with suppress(Refusal):
            await road.pipeline.run(road.call(name, service=service, peer=HOSTILE, metadata=metadata), request)
        lines = road.lines.getvalue().split("\n")[seen:-1]
        assert len(lines) == 1, path
        assert lines[0].isascii()
        assert lines[0].isprintable()
        if style == "json":
            assert json.loads(lines[0])["event"] == "call"
        seen += 1
