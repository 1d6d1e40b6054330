"""What REST itself refuses is in the audit as well, and the audit is read by REST as by gRPC."""

from __future__ import annotations

import time

import httpx2

from tests.cli.daemon import Daemon


def test_a_foreign_page_is_in_the_audit(http: httpx2.Client) -> None:
    for _ in range(2):
        assert http.get("/api/v1/cases", headers={"origin": "https://evil.example"}).status_code == 403
    until = time.monotonic() + 60
    found: list[dict[str, str]] = []
    while not found and time.monotonic() < until:
        answer = http.get("/api/v1/admin/audit", params={"outcome": "UNAUTHENTICATED"}).json()
        found = [entry for entry in answer["entries"] if entry["reason"] == "FOREIGN_ORIGIN"]
    assert {(entry["principal"], entry["method"], entry["resource"]) for entry in found} == {("anonymous", "rest", "")}


def test_what_cannot_be_read_is_in_the_audit(http: httpx2.Client, daemon: Daemon) -> None:
    """Under the name of who sent it, like any other refusal; and it is counted."""
    assert http.post("/api/v1/cases", content=b"{").status_code == 400
    until = time.monotonic() + 20
    found: list[dict[str, str]] = []
    while not found and time.monotonic() < until:
        answer = http.get("/api/v1/admin/audit", params={"outcome": "INVALID_ARGUMENT"}).json()
        found = [each for each in answer["entries"] if each["method"].endswith("/CreateCase")]
    assert found[0]["principal"].startswith("spiffe://")
    metrics = httpx2.get(f"http://{daemon.ready['metrics']}/metrics").text
    assert 'method="/knhk.sidecar.v1.CaseService/CreateCase",code="INVALID_ARGUMENT"' in metrics


def test_proofs_by_rest(http: httpx2.Client) -> None:
    (log, *_) = http.get("/api/v1/admin/audit/checkpoint").json()["checkpoints"]
    (entry, *_) = http.get("/api/v1/admin/audit", params={"method": "RegisterWorkflow"}).json()["entries"]
    proof = http.get(f"/api/v1/admin/audit/entries/{entry['audit_id']}/proof").json()
    assert proof["entry"] == entry
    assert proof["checkpoint"]["store_id"] == log["store_id"]
    path = http.get(f"/api/v1/admin/audit/logs/{log['shard']}/proof", params={"first_size": 1})
    assert path.status_code == 200
    assert http.get("/api/v1/admin/audit/entries/0-999999-0/proof").status_code == 404
