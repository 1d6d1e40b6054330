"""Every command against a real daemon."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.bearer import NoToken, TokenFile
from knhk_sidecar.cli.root import run
from tests.cli.daemon import Daemon, environment, knhk, running
from tests.sidecar.identity.tokens import jwk, key, key_set

REVIEW = """
id: cli-review
name: Review
tasks:
  write: {required_roles: [author]}
  review: {required_roles: [editor]}
flows:
  - {from: start, to: write}
  - {from: write, to: review}
  - {from: review, to: end}
"""


@pytest.fixture(scope="module", autouse=True)
def review(daemon: Daemon) -> None:
    """The workflow that these tests run."""
    done = daemon.knhk("workflow", "register", "-", "--format", "yaml", given=REVIEW)
    assert done.returncode == 0, done.stderr


def mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, dict)
    return value


def listed(value: object, name: str) -> Sequence[Mapping[str, object]]:
    found = mapping(value)[name]
    assert isinstance(found, list)
    return found


def test_dev_is_ready_with_samples_and_says_where(daemon: Daemon) -> None:
    ids = [each["spec_id"] for each in listed(daemon.json("workflow", "list"), "workflows")]
    assert {"order-approval", "incident-response", "nested-onboarding"} <= set(ids)
    assert {"grpc", "grpc_plain", "http", "metrics", "ca", "cert", "key", "spiffe_id", "pid"} <= daemon.ready.keys()


@pytest.mark.long
def test_the_life_of_a_case(daemon: Daemon) -> None:
    created = mapping(daemon.json("case", "create", "cli-review", "--id", "life", "--set", "pages=3"))
    assert created["state"] == "CASE_STATE_CREATED"
    assert created["data"] == {"pages": 3}
    assert mapping(daemon.json("case", "execute", "life"))["open_work_items"]
    (item,) = listed(daemon.json("work", "list", "--case", "life"), "items")
    item_id = str(item["item_id"])
    assert mapping(daemon.json("work", "claim", item_id))["state"] == "WORK_ITEM_STATE_ALLOCATED"
    assert mapping(daemon.json("work", "release", item_id))["state"] == "WORK_ITEM_STATE_OFFERED"
    assert mapping(daemon.json("work", "start", item_id))["state"] == "WORK_ITEM_STATE_STARTED"
    daemon.json("work", "complete", item_id, "--data", '{"title": "On rain"}')
    (review,) = listed(daemon.json("work", "list", "--role", "editor", "--case", "life"), "items")
    assert review["task_id"] == "review"
    assert mapping(daemon.json("case", "suspend", "life", "--reason", "lunch"))["state"] == "CASE_STATE_SUSPENDED"
    assert mapping(daemon.json("case", "resume", "life"))["state"] == "CASE_STATE_RUNNING"
    daemon.json("work", "complete", str(review["item_id"]))
    done = mapping(daemon.json("case", "show", "life"))
    assert done["state"] == "CASE_STATE_COMPLETED"
    assert done["data"] == {"pages": 3, "title": "On rain"}
    history = daemon.json("case", "history", "life")
    assert isinstance(history, list)
    assert [event["sequence"] for event in history] == list(range(1, len(history) + 1))
    assert history[0]["event_type"] == "case_created"


@pytest.mark.long
def test_tables_are_for_people(daemon: Daemon) -> None:
    run = daemon.knhk("case", "run", "cli-review", "--id", "table")
    assert re.search(r"#1 +case_created", run.stdout)
    assert "Waiting for:" in run.stdout
    table = daemon.knhk("case", "list", "--workflow", "cli-review", "--state", "running")
    assert re.search(r"^table +cli-review +1 +running", table.stdout, re.MULTILINE)
    explained = daemon.knhk("case", "explain", "table")
    assert "table is running." in explained.stdout
    assert "write is enabled." in explained.stdout
    shown = daemon.knhk("workflow", "show", "cli-review")
    assert re.search(r"│ start │──▶│ +write +│", shown.stdout)
    for text in (run.stdout, table.stdout, explained.stdout, shown.stdout):
        assert "\x1b" not in text  # a pipe is no terminal


def test_what_callers_sent_cannot_drive_a_terminal(daemon: Daemon) -> None:
    evil = "evil\x1b[2J\x9bH"
    made = daemon.knhk("case", "create", "cli-review", "--id", "armed", "--set", f"a={evil}")
    ended = daemon.knhk("case", "cancel", "armed", "--reason", evil)
    for done in (made, ended, daemon.knhk("case", "show", "armed"), daemon.knhk("case", "history", "armed")):
        assert done.returncode == 0, done.stderr
        assert "evil" in done.stdout
        assert not {"\x1b", "\x9b"} & set(done.stdout)
    refused = daemon.knhk("case", "show", "\x1b]0;title\x07")
    assert refused.returncode != 0
    assert not {"\x1b", "\x07"} & set(refused.stderr)


def test_sensitive_data_are_masked_unless_asked_for(daemon: Daemon) -> None:
    document = REVIEW.replace("id: cli-review", "id: cli-secret\nsensitive: [card]")
    daemon.knhk("workflow", "register", "-", "--format", "yaml", given=document)
    ran = daemon.knhk("case", "run", "cli-secret", "--id", "secret", "--set", "card=4711", "--set", "pages=3")
    assert ran.returncode == 0, ran.stderr
    for done in (ran, daemon.knhk("case", "show", "secret"), daemon.knhk("case", "show", "secret", "-o", "json")):
        assert "***" in done.stdout
        assert "4711" not in done.stdout
    assert "4711" in daemon.knhk("case", "show", "secret", "--reveal").stdout


def test_yaml_is_the_same_answer(daemon: Daemon) -> None:
    daemon.knhk("case", "create", "cli-review", "--id", "yaml", "--set", "note=a: b")
    done = daemon.knhk("case", "show", "yaml", "-o", "yaml")
    assert "case_id: yaml\n" in done.stdout
    assert "  note: 'a: b'\n" in done.stdout


@pytest.mark.long
def test_exit_codes(daemon: Daemon, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("id: broken\ntasks: {a: {join: sometimes}}\nflows: [{from: start, to: b}]\n")
    daemon.knhk("case", "create", "cli-review", "--id", "taken")
    for arguments, code, mend in (
        (("case", "show", "nobody"), 3, "knhk case list"),
        (("workflow", "show", "nothing"), 3, "knhk workflow list"),
        (("case", "suspend", "taken"), 5, "knhk case explain"),
        (("case", "create", "cli-review", "--id", "taken"), 5, ""),
        (("workflow", "register", str(broken)), 1, "knhk workflow validate"),
        (("workflow", "validate", str(broken)), 1, "mend the findings"),
        (("pattern", "show", "99"), 3, "1 to 43"),
        (("pattern", "run", "99"), 2, "1 to 43"),
        (("case", "list", "--address", "127.0.0.1:1"), 6, "knhk doctor"),
    ):
        done = daemon.knhk(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert done.stderr.startswith("error: "), arguments
        assert mend in done.stderr, (arguments, done.stderr)


def test_without_a_certificate_the_mtls_port_answers_nothing(daemon: Daemon) -> None:
    done = daemon.knhk("case", "list", "--address", daemon.ready["grpc"], "--timeout", "5")
    assert done.returncode == 6
    assert "Traceback" not in done.stderr


def test_the_mtls_port_with_named_certificates(daemon: Daemon) -> None:
    ready = daemon.ready
    done = daemon.knhk(
        *(
            "case",
            "list",
            "--address",
            ready["grpc"],
            "--ca",
            ready["ca"],
            "--cert",
            ready["cert"],
            "--key",
            ready["key"],
        )
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_request_id_makes_a_repeated_command_harmless(daemon: Daemon) -> None:
    first = mapping(daemon.json("case", "create", "cli-review", "--request-id", "cli-once"))
    again = mapping(daemon.json("case", "create", "cli-review", "--request-id", "cli-once"))
    assert first["case_id"] == again["case_id"]
    other = daemon.knhk("case", "create", "cli-review", "--request-id", "cli-once", "--set", "a=1")
    assert other.returncode == 5
    assert "--request-id" in other.stderr


@pytest.mark.long
def test_watch_follows_a_case_to_its_end(daemon: Daemon) -> None:
    daemon.knhk("case", "run", "cli-review", "--id", "watched")
    watching = subprocess.Popen(
        [sys.executable, "-m", "knhk_sidecar", "case", "watch", "watched", "-o", "json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment({"KGC_SIDECAR_DATA_DIR": str(daemon.data_dir)}),
    )
    daemon.knhk("case", "cancel", "watched", "--reason", "enough")
    out, _ = watching.communicate(timeout=120)
    events = [json.loads(line) for line in out.splitlines()]
    assert watching.returncode == 0
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["event_type"] == "state_changed"


def test_history_export_is_json_lines(daemon: Daemon, tmp_path: Path) -> None:
    daemon.knhk("case", "run", "cli-review", "--id", "kept")
    file = tmp_path / "history.jsonl"
    done = daemon.knhk("history", "export", "kept", "--file", str(file))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert {event["case_id"] for event in events} == {"kept"}
    assert re.search(rf"^{len(events)} events of 1 cases", done.stderr)


def test_patterns_are_listed_drawn_and_run(daemon: Daemon) -> None:
    assert len(listed(daemon.json("pattern", "list"), "patterns")) == 43
    shown = daemon.knhk("pattern", "show", "3")
    assert "Synchronization" in shown.stdout
    assert "and-join" in shown.stdout
    done = daemon.knhk("pattern", "run", "3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"success +yes", done.stdout)
    assert re.search(r"#1 +net_started|#1 +case_created", done.stdout)


@pytest.mark.parametrize("name", ["WCP-19", "wcp19", "Cancel Task", "cancel activity"])
def test_a_pattern_goes_by_its_names(daemon: Daemon, name: str) -> None:
    shown = daemon.knhk("pattern", "show", name)
    assert re.search(r"pattern +19 +Cancel Task", shown.stdout)
    done = daemon.knhk("pattern", "run", name)
    assert done.returncode == 0, done.stderr
    assert "task_cancelled" in done.stdout


def test_a_pattern_that_nobody_knows_is_named(daemon: Daemon) -> None:
    done = daemon.knhk("pattern", "show", "Quantum Join")
    assert (done.returncode, "'Quantum Join'" in done.stderr) == (3, True)


def test_a_pipe_that_closes_early_is_no_error(daemon: Daemon) -> None:
    command = f"{sys.executable} -m knhk_sidecar pattern list | head -1"
    extra = {"KGC_SIDECAR_DATA_DIR": str(daemon.data_dir)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(extra), check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_doctor_finds_a_healthy_daemon(daemon: Daemon) -> None:
    done = daemon.knhk("doctor", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["check"]: each["verdict"] for each in json.loads(done.stdout)}
    assert found["daemon"] == "ok"
    assert found["data directory"] == "ok"


def test_doctor_knows_that_a_degraded_daemon_runs(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--no-samples", extra={"KGC_SIDECAR_DISK_LOW_MB": str(2**40)}) as degraded:
        done = degraded.knhk("doctor", "-o", "json")
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert found["daemon"]["verdict"] == "warning"
    assert "degraded" in found["daemon"]["message"]
    assert "in use by the running daemon" in found["data directory"]["message"]
    assert found["ports"]["message"] == "the running daemon has its ports"
    assert found["limits"]["verdict"] == "ok"
    assert done.returncode == 0, done.stdout


def test_doctor_says_where_certificates_come_from(tmp_path: Path) -> None:
    extra = {
        "KGC_SIDECAR_DATA_DIR": str(tmp_path / "data"),
        "KGC_SIDECAR_SPIFFE_ENABLED": "true",
        "KGC_SIDECAR_SPIFFE_SOCKET": "unix:///run/spire/agent.sock",
    }
    found = json.loads(knhk("doctor", "-o", "json", extra=extra).stdout)
    (certificates,) = [each["message"] for each in found if each["check"] == "certificates"]
    assert "unix:///run/spire/agent.sock" in certificates


def test_doctor_tries_the_issuers(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(key_set(jwk(key("curve", "ES256"), "curve")))
    file = tmp_path / "issuers.toml"
    file.write_text(
        f'[issuers.good]\nissuer = "https://a.example"\naudiences = ["knhk"]\njwks_file = "{tmp_path}/keys.json"\n'
        '[issuers.bad]\nissuer = "http://127.0.0.1:1"\naudiences = ["knhk"]\n'
    )
    extra = {"KGC_SIDECAR_DATA_DIR": str(tmp_path / "data"), "KGC_SIDECAR_ISSUERS_FILE": str(file)}
    done = knhk("doctor", "-o", "json", extra=extra)
    good, bad = (each for each in json.loads(done.stdout) if each["check"] == "issuers")
    assert (good["verdict"], bad["verdict"]) == ("ok", "warning")
    assert "has 1 keys" in good["message"]
    assert "cannot be reached" in bad["message"]


def test_the_agent_of_developer_mode_gives_tokens(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.knhk("token", "spiffe://knhk.dev/sidecar")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "token"
    file.write_text(done.stdout)
    found = daemon.knhk("doctor", "--token-file", str(file), "-o", "json")
    (told,) = [each for each in json.loads(found.stdout) if each["check"] == "daemon"]
    assert "you are spiffe://knhk.dev/dev/client" in told["message"]
    other = daemon.knhk("token", "spiffe://knhk.dev/another").stdout.strip()
    done = daemon.knhk("case", "list", "--token", other)
    assert (done.returncode, other in done.stderr) == (4, False)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("case", "list", "--token", "two tokens"), 2, "--token has no token"),
        (("case", "list", "--token", "x", "--token-file", "f"), 2, "both say who calls"),
        (("case", "list", "--token-file", "/nowhere/token", "--address", "127.0.0.1:1"), 2, "cannot be read"),
        (("case", "list", "--token", "x", "--address", "192.0.2.1:1"), 6, "--token-file"),
        (
            ("case", "list", "--token", "x", "--address", "h:1", "--ca", "a", "--cert", "b", "--key", "c"), 6, "beside",
        ),
        (("token", "x", "--workload-api", "/not/an/endpoint"), 6, "Workload API"),
        (("token", "x", "--workload-api", "unix:///nowhere/agent.sock"), 6, "gave no token"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_sent(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], code: int, words: str
) -> None:
    assert run(arguments) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"two tokens", b"a\nb", b"\xff", b"x" * 8193])
def test_a_file_that_has_no_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(NoToken):
        TokenFile(path)()


@pytest.mark.long
def test_doctor_finds_damage(tmp_path: Path) -> None:
    with running(tmp_path / "data") as daemon:
        for _ in range(3):
            daemon.json("case", "create", "order-approval", "--data", '{"order": "1", "customer": "a", "amount": 1}')
        daemon.process.kill()  # so that the last commits are in the log still
        daemon.process.wait()
    for log in (tmp_path / "data" / "workflow_db").rglob("*.log"):
        log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    done = daemon.knhk("doctor", "-o", "json")
    assert done.returncode == 1
    (found,) = [each for each in json.loads(done.stdout) if each["check"] == "data directory"]
    assert found["verdict"] == "error", found
    assert "backup" in found["mend"]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('[connectors]\nallow = 5\n[connectors.billing]\nknd = "http"\n', "allow: must be a list of texts"),
        ('[connectors.billing]\nkind = "nonsense"\n', "'nonsense' is not a kind of connector"),
    ],
)
def test_dev_says_in_words_what_is_wrong_with_the_connectors(tmp_path: Path, table: str, problem: str) -> None:
    file = tmp_path / "connectors.toml"
    file.write_text(table)
    listeners = [part for name in ("grpc", "plain", "http") for part in (f"--{name}-address", "127.0.0.1:0")]
    extra = {"KGC_SIDECAR_CONNECTORS_FILE": str(file)}
    done = knhk("dev", "--data-dir", str(tmp_path / "data"), "--metrics-address", "off", *listeners, extra=extra)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert problem in done.stderr


def test_two_daemons_on_one_directory_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    done = daemon.knhk("dev", "--data-dir", str(daemon.data_dir), "--ready-file", str(tmp_path / "ready.json"))
    assert done.returncode == 5
    assert "in use" in done.stderr
    assert daemon.knhk("case", "list").returncode == 0


def test_dev_stops_cleanly_and_has_printed_lines_that_work(tmp_path: Path) -> None:
    with running(tmp_path / "data") as daemon:
        curl = f"http://{daemon.ready['http']}/api/v1/cases:run"
        code, out, err = daemon.stop()
    assert code == 0, err
    assert curl in out
    assert f"--data-dir {tmp_path / 'data'}" in out
    assert f"grpcurl -plaintext {daemon.ready['grpc_plain']}" in out
    assert not (tmp_path / "data" / "dev" / "daemon.json").exists()


@pytest.mark.long
def test_what_was_acknowledged_is_there_after_kill_and_restart(tmp_path: Path) -> None:
    with running(tmp_path / "data") as daemon:
        daemon.json(
            "case", "run", "order-approval", "--id", "kept", "--data", '{"order": "1", "customer": "a", "amount": 900}'
        )
        daemon.process.kill()
        daemon.process.wait()
    with running(tmp_path / "data") as daemon:
        assert mapping(daemon.json("case", "show", "kept"))["open_work_item_count"] == 1


@pytest.mark.long
def test_watch_goes_on_after_a_restart_with_a_server_id(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    others = ("plain", "http", "metrics")
    with running(tmp_path / "data", "--grpc-address", address, addresses=others) as daemon:
        daemon.json("case", "run", "order-approval", "--id", "w", "--data", SMALL_ORDER)
        named = [part for name in ("ca", "cert", "key") for part in (f"--{name}", daemon.ready[name])]
        watching = subprocess.Popen(
            [
                *(sys.executable, "-m", "knhk_sidecar", "case", "watch", "w", "-o", "json", "--address", address),
                *(*named, "--server-id", "spiffe://knhk.dev/sidecar"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert watching.stdout is not None
        first = watching.stdout.readline()
        daemon.process.kill()
        daemon.process.wait()
    with running(tmp_path / "data", "--grpc-address", address, addresses=others) as daemon:
        daemon.knhk("case", "cancel", "w")
        out, err = watching.communicate(timeout=30)
    assert watching.returncode == 0, err
    events = [json.loads(line) for line in (first + out).splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["event_type"] == "state_changed"


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_call_whose_connection_breaks_is_made_as_often_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], attempts: int
) -> None:
    calls: list[bytes] = []

    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        calls.append(request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "going")

    handlers = {"ListCases": grpc.unary_unary_rpc_method_handler(refuse)}
    generic = grpc.method_handlers_generic_handler("knhk.sidecar.v1.CaseService", handlers)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[generic])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("KGC_SIDECAR_RETRY_MAX_ATTEMPTS", str(attempts))
    try:
        assert run(["case", "list", "--address", f"127.0.0.1:{port}"]) == 6
    finally:
        server.stop(0).wait()
    assert len(calls) == attempts
    assert "going" in capsys.readouterr().err


SMALL_ORDER = '{"order": "1", "customer": "a", "amount": 900}'
CONSTRUCTS = """
id: cli-constructs
tasks:
  ask: {required_roles: [buyer], instances: {min: 2, max: 3, create: dynamic}}
  pay: {trigger: {name: paid, mode: transient}}
  open: {}
flows:
  - {from: start, to: open}
  - {from: open, to: ask}
  - {from: open, to: pay}
"""


@pytest.mark.long
def test_signals_instances_and_tasks_are_commanded(daemon: Daemon) -> None:
    daemon.knhk("workflow", "register", "-", "--format", "yaml", given=CONSTRUCTS)
    daemon.json("case", "run", "cli-constructs", "--id", "constructs", "--business-key", "k-1")
    added = mapping(daemon.json("work", "add-instance", "constructs", "ask", "--set", "supplier=acme"))
    assert (added["instance"], added["item_id"]) == (3, "2.3.1@constructs")
    closed = mapping(mapping(daemon.json("work", "close-instances", "constructs", "ask"))["group"])
    assert closed["accepts_instances"] is False
    (delivery,) = listed(
        daemon.json("case", "trigger", "paid", "--business-key", "k-1", "--set", "amount=7"), "deliveries"
    )
    assert (delivery["outcome"], delivery["task_id"]) == ("TRIGGER_OUTCOME_CONSUMED", "pay")
    shown = daemon.knhk("case", "trigger", "paid", "--case", "constructs")
    assert "lost, nobody waits" in shown.stdout
    shown = daemon.knhk("work", "complete-instances", "constructs", "ask")
    assert re.search(r"open\s+0", shown.stdout)
    done = mapping(daemon.json("case", "show", "constructs"))
    assert (done["state"], done["data"]) == ("CASE_STATE_COMPLETED", {"amount": 7})
    daemon.json("case", "run", "cli-constructs", "--id", "cancelled")
    daemon.json("work", "cancel-instances", "cancelled", "ask")
    assert mapping(daemon.json("case", "cancel-task", "cancelled", "pay"))["state"] == "CASE_STATE_COMPLETED"
    assert daemon.knhk("case", "trigger", "paid").returncode == 2


@pytest.mark.long
def test_schedules(daemon: Daemon) -> None:
    made = mapping(
        daemon.json(
            "schedule", "create", "cli-nightly", "cli-review", "--every", "0 2 * * *", "--time-zone", "Europe/Berlin",
            "--set", "pages=3", "--overlap", "buffer-one", "--catch-up", "all", "--catch-up-window", "2d",
        )
    )  # fmt: skip
    spec = mapping(made["spec"])
    assert (spec["overlap"], spec["catch_up"]) == ("SCHEDULE_OVERLAP_BUFFER_ONE", "SCHEDULE_CATCH_UP_ALL")
    assert (spec["data"], spec["catch_up_window"]) == ({"pages": 3}, "172800s")
    times = made["next_times"]
    assert isinstance(times, list)
    assert len(times) == 5
    daemon.json("schedule", "pause", "cli-nightly", "--reason", "holidays")
    assert "holidays" in daemon.knhk("schedule", "show", "cli-nightly").stdout
    triggered = mapping(daemon.json("schedule", "trigger", "cli-nightly", "--set", "pages=4"))
    running_cases = triggered["running_case_ids"]
    assert isinstance(running_cases, list)
    assert [str(case_id).startswith("cli-nightly-") for case_id in running_cases] == [True]
    daemon.json("schedule", "resume", "cli-nightly")
    past = ("--from", "2026-01-01T00:00:00Z", "--until", "2026-01-03T00:00:00Z")
    daemon.json("schedule", "backfill", "cli-nightly", *past, "--overlap", "allow")
    listed_names = [each["schedule_id"] for each in listed(daemon.json("schedule", "list"), "schedules")]
    assert listed_names == ["cli-nightly"]
    assert "cli-nightly" in daemon.knhk("schedule", "list").stdout
    daemon.json("schedule", "create", "cli-nightly", "cli-review", "--every", "R/PT1H", "--replace")
    page = daemon.knhk("schedule", "show", "cli-nightly").stdout
    assert "R/PT1H" in page
    assert "cli-nightly-20260102T010000Z" in page
    daemon.json("schedule", "delete", "cli-nightly", "--yes")
    gone = daemon.knhk("schedule", "show", "cli-nightly")
    assert (gone.returncode, "knhk schedule list" in gone.stderr) == (3, True)
    wrong = daemon.knhk("schedule", "create", "x", "cli-review", "--every", "never")
    assert (wrong.returncode, "cron" in wrong.stderr) == (2, True)


@pytest.mark.long
def test_time_that_can_be_skipped(daemon: Daemon, tmp_path: Path) -> None:
    refused = daemon.knhk("time", "advance", "1d")
    assert (refused.returncode, "--virtual-time" in refused.stderr) == (1, True)
    document = "{id: trial, tasks: {wait: {timer: 14d}}, flows: [{from: start, to: wait}, {from: wait, to: end}]}"
    with running(tmp_path / "first", "--virtual-time", "--no-samples") as other:
        other.knhk("workflow", "register", "-", "--format", "yaml", given=document)
        other.json("case", "run", "trial", "--id", "k")
        assert mapping(other.json("time", "show"))["stop_count"] in (0, "0")
        assert mapping(other.json("time", "advance", "13d"))["stop_count"] in (0, "0")
        assert mapping(other.json("case", "show", "k"))["state"] == "CASE_STATE_RUNNING"
        assert mapping(other.json("time", "advance", "--next"))["stop_count"] in (1, "1")
        assert mapping(other.json("case", "show", "k"))["state"] == "CASE_STATE_COMPLETED"
        assert "nothing is due" in other.knhk("time", "show").stdout
        assert other.knhk("time", "advance", "--until", "2020-01-01T00:00:00Z").returncode == 2


@pytest.mark.long
def test_ended_cases_are_purged_by_command(daemon: Daemon) -> None:
    for name in ("purge-1", "purge-2", "purge-3"):
        daemon.json("case", "run", "cli-review", "--id", name, "--business-key", "purges")
    for name in ("purge-1", "purge-2"):
        daemon.json("case", "cancel", name)
    counted = mapping(daemon.json("case", "purge", "--business-key", "purges", "--dry-run"))
    assert counted["purged_count"] == 2
    done = daemon.knhk("case", "purge", "purge-1", "purge-3", "never")
    assert done.returncode == 0, done.stderr
    assert "1 case purged" in done.stdout
    assert "'purge-3' is running" in done.stdout
    assert "'never' does not exist" in done.stdout
    rest = daemon.knhk("case", "purge", "--business-key", "purges", "--state", "cancelled", "--older-than", "0")
    assert "1 case purged" in rest.stdout, rest.stderr
    assert daemon.knhk("case", "show", "purge-2").returncode == 3
    assert mapping(daemon.json("case", "show", "purge-3"))["state"] == "CASE_STATE_RUNNING"
    again = daemon.knhk("case", "run", "cli-review", "--id", "purge-2")
    assert again.returncode == 5 or "taken" in again.stderr or "exists" in again.stderr, again.stderr
    assert daemon.knhk("case", "purge").returncode == 2


def test_work_is_polled_and_failed_with_a_pause(daemon: Daemon) -> None:
    document = "{id: cli-polled, tasks: {write: {required_roles: [author]}}, "
    document += "flows: [{from: start, to: write}, {from: write, to: end}]}"
    daemon.knhk("workflow", "register", "-", "--format", "yaml", given=document)
    daemon.json("case", "run", "cli-polled", "--id", "polled", "--set", "pages=3")
    (taken,) = listed(
        daemon.json("work", "poll", "cli-polled/write", "--worker", "w", "--lease", "600", "--wait", "60"), "items"
    )
    item = mapping(taken["item"])
    assert (item["case_id"], item["state"], item["data"]) == ("polled", "WORK_ITEM_STATE_STARTED", {"pages": 3})
    assert item["lease_expire_time"] == taken["lease_expire_time"]
    assert "No work items" in daemon.knhk("work", "poll", "cli-polled/write", "--wait", "0.3").stdout
    (again,) = listed(daemon.json("work", "poll", "cli-polled/write", "--worker", "w", "--wait", "60"), "items")
    assert (mapping(again["item"])["item_id"], again["redelivered"]) == (item["item_id"], True)
    failed = mapping(daemon.json("work", "fail", str(item["item_id"]), "--retry-after", "5", "--permanent"))
    assert failed["incident_id"]
    refused = daemon.knhk("work", "poll", "cli-polled/write", "--lease", "5000")
    assert refused.returncode == 2
