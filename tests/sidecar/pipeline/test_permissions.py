"""The table of permissions is complete: an RPC without an entry is nobody's, and fails here."""

from __future__ import annotations

from knhk_sidecar.api import pb
from knhk_sidecar.api.health import SERVICE as HEALTH
from knhk_sidecar.api.reflection import NAME_OF_TODAY
from knhk_sidecar.api.reflection import SERVICE as REFLECTION
from knhk_sidecar.pipeline.call import methods_of
from knhk_sidecar.pipeline.permissions import PERMISSIONS, Permission


def test_the_table_has_every_rpc_and_no_other() -> None:
    offered = {path for service in (*pb.SERVICES, HEALTH, REFLECTION) for path in methods_of(service)}
    offered |= set(methods_of(REFLECTION, NAME_OF_TODAY))
    assert set(PERMISSIONS) == offered


def test_health_is_the_only_service_for_everybody() -> None:
    open_to_all = {path for path, permission in PERMISSIONS.items() if permission is Permission.HEALTH}
    assert open_to_all == set(methods_of(HEALTH))


def test_whoever_may_only_read_changes_nothing() -> None:
    reading = {Permission.PATTERN_READ, Permission.WORKFLOW_READ, Permission.CASE_READ, Permission.WORK_READ}
    writes = [
        method.path
        for service in pb.SERVICES
        for method in methods_of(service).values()
        if method.has_request_id and method.permission in reading
    ]
    assert writes == []
