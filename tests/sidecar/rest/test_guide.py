"""The three calls of the deployment guide as they stand there, and health."""

from __future__ import annotations

import httpx2
import pytest


@pytest.mark.parametrize("root", ["/api/v1", ""])
def test_the_guides_three_calls(http: httpx2.Client, root: str) -> None:
    workflow = {"spec": {"id": "workflow-123", "name": "My Workflow", "tasks": [], "conditions": []}}
    registered = http.post(f"{root}/workflows", json=workflow)
    assert registered.status_code == 200
    assert registered.json()["spec_id"] == "workflow-123"

    created = http.post(f"{root}/cases", json={"spec_id": "workflow-123", "data": {"key": "value"}})
    assert created.status_code == 200
    assert created.json()["data"] == {"key": "value"}
    assert created.json()["state"] == "CASE_STATE_CREATED"

    executed = http.post(f"{root}/patterns/1/execute", json={"variables": {"key": "value"}})
    assert executed.status_code == 200
    assert executed.json()["success"] is True
    assert executed.json()["variables"] == {"key": "value"}

    done = http.post(f"{root}/cases/{created.json()['case_id']}/execute")
    assert done.json()["case"]["state"] == "CASE_STATE_COMPLETED"


def test_tasks_and_conditions_may_be_maps_or_missing(http: httpx2.Client) -> None:
    for spec in ({"id": "bare"}, {"id": "maps", "tasks": {}, "conditions": {}}):
        assert http.post("/workflows", json={"spec": spec}).status_code == 200


def test_health(http: httpx2.Client) -> None:
    health = http.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "Healthy"
    assert {"service", "version", "components"} <= health.json().keys()
    assert health.json()["components"]["store"]["status"] == "Healthy"
    for path in ("/health/live", "/live", "/healthz", "/api/v1/health/live"):
        assert http.get(path).json() == {"alive": True}
    for path in ("/health/ready", "/ready", "/readyz", "/api/v1/health/ready"):
        assert http.get(path).json() == {"ready": True}
