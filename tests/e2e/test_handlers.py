"""Functions of installed packages carry tasks out inside the daemon."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from knhk_sidecar.api import pb
from tests.e2e.sidecar import CALL_SECONDS, FREE, ROOT, Stubs, history, register, run, sidecar

END_S = 120.0
EXIT_SETTINGS = 2

DOCUMENT = json.dumps(
    {
        "id": "parcel",
        "tasks": {
            "pack": {"required_roles": ["packer"]},
            "ship": {"required_roles": ["packer"], "retry": {"max_attempts": 2, "backoff": 0}},
        },
        "flows": [{"from": "start", "to": "pack"}, {"from": "pack", "to": "ship"}, {"from": "ship", "to": "end"}],
    }
).encode()

MODULE = """
from dataclasses import dataclass
from knhk_sidecar.client import Failed, Job


@dataclass
class Order:
    amount: int


def pack(order: Order) -> dict[str, object]:
    return {"boxes": order.amount * 2}


async def ship(data: dict[str, object], job: Job) -> dict[str, object]:
    if job.attempt == 1:
        raise Failed("rain", "it rains")
    return {"shipped": True}


TASKS = {"ship": ship}
NOTHING = 7
"""


def install(directory: Path, entries: str) -> str:
    """A package with entry points; the path that makes it importable."""
    info = directory / "shop-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[knhk_sidecar.handlers]\n{entries}\n")
    (directory / "shop_work.py").write_text(MODULE)
    return os.pathsep.join((str(ROOT), str(directory)))


@pytest.mark.long
def test_installed_functions_carry_tasks_out_and_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = install(tmp_path / "site", "parcel/pack = shop_work:pack\nmore = shop_work:TASKS")
    monkeypatch.setattr("tests.e2e.sidecar.environment", lambda extra=None: {**os.environ, "PYTHONPATH": path})
    with sidecar(tmp_path) as daemon:
        with daemon.stubs() as stubs:
            register(stubs, DOCUMENT)
            done(daemon_case(stubs, "one"))
        daemon.kill()
        daemon.start()
        with daemon.stubs() as stubs:
            done(daemon_case(stubs, "two"))
            types = [event.event_type for event in history(stubs, "two")]
            assert (types.count("item_started"), types.count("item_failed")) == (3, 1)
        assert daemon.stop() == 0


def daemon_case(stubs: Stubs, name: str) -> pb.Case:
    """A case that nobody but the daemon works on, once it has ended."""
    data = json.dumps({"amount": 2}).encode()
    stubs.cases.RunCase(pb.RunCaseRequest(spec_id="parcel", case_id=name, data_json=data), timeout=CALL_SECONDS)
    until = time.monotonic() + END_S
    while True:
        case = stubs.cases.GetCase(pb.GetCaseRequest(case_id=name), timeout=CALL_SECONDS).case
        if case.state == pb.CASE_STATE_COMPLETED:
            return case
        assert time.monotonic() < until, case
        time.sleep(0.05)


def done(case: pb.Case) -> None:
    """Both functions gave their output."""
    assert json.loads(case.data_json) == {"amount": 2, "boxes": 4, "shipped": True}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("pack = shop_work:nowhere", "cannot be loaded"),
        ("pack = shop_work:NOTHING", "neither a function nor a map"),
        ("ship = shop_work:ship\nmore = shop_work:TASKS", "two handlers"),
    ],
)
def test_what_cannot_be_used_keeps_the_daemon_from_starting(tmp_path: Path, entries: str, told: str) -> None:
    path = install(tmp_path / "site", entries)
    listeners = [part for name in ("grpc", "http", "metrics") for part in (f"--{name}-address", FREE)]
    refused = run("dev", "--data-dir", str(tmp_path / "data"), *listeners, extra={"PYTHONPATH": path})
    assert refused.returncode == EXIT_SETTINGS, refused.stderr
    assert told in refused.stderr + refused.stdout
