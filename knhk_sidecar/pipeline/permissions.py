"""Which class of permission each RPC needs: a closed table.

An RPC that is not in it has no permission and nobody may call it; a test compares the table with the contract, so a new
RPC fails there first. Health is the only class for callers without identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Permission(Enum):
    """What a caller must be allowed to do. Values appear in policies and in the audit: they are stable."""

    HEALTH = "health"
    REFLECT = "reflect"
    PATTERN_READ = "pattern.read"
    PATTERN_EXECUTE = "pattern.execute"
    WORKFLOW_READ = "workflow.read"
    WORKFLOW_WRITE = "workflow.write"
    CASE_READ = "case.read"
    CASE_WRITE = "case.write"
    CASE_OPERATE = "case.operate"
    WORK_READ = "work.read"
    WORK_WRITE = "work.write"
    WORK_OPERATE = "work.operate"
    SCHEDULE_READ = "schedule.read"
    SCHEDULE_WRITE = "schedule.write"
    STATUS = "status"
    ADMIN_READ = "admin.read"
    ADMIN_WRITE = "admin.write"
    SUBSCRIPTION_READ = "subscription.read"
    SUBSCRIPTION_WRITE = "subscription.write"


_P = Permission
_OURS = "knhk.sidecar.v1"
_TABLE: Final[Mapping[str, Mapping[Permission, str]]] = {
    "grpc.health.v1.Health": {_P.HEALTH: "Check List Watch"},
    "grpc.reflection.v1.ServerReflection": {_P.REFLECT: "ServerReflectionInfo"},
    "grpc.reflection.v1alpha.ServerReflection": {_P.REFLECT: "ServerReflectionInfo"},
    f"{_OURS}.PatternService": {
        _P.PATTERN_READ: "ListPatterns GetPattern",
        _P.PATTERN_EXECUTE: "ExecutePattern ExecutePatterns StreamExecutePattern DecideRoutes",
    },
    f"{_OURS}.WorkflowService": {
        _P.WORKFLOW_READ: "ValidateWorkflow GetWorkflow ListWorkflows",
        _P.WORKFLOW_WRITE: "RegisterWorkflow DeleteWorkflow",
    },
    f"{_OURS}.CaseService": {
        _P.CASE_READ: "GetCase WaitCase ListCases ListIncidents GetCaseHistory WatchCase WatchCases ExportCase"
        " ExplainCase PreviewMigration",
        _P.CASE_WRITE: "CreateCase StartCase ExecuteCase RunCase RunCases StreamRunCase TriggerCase UpdateCaseData"
        " SuspendCase ResumeCase CancelCase",
        _P.CASE_OPERATE: "CancelTask PurgeCases MigrateCases ResolveIncident",
    },
    f"{_OURS}.WorkItemService": {
        _P.WORK_READ: "ListWorkItems GetWorkItem",
        _P.WORK_WRITE: "ClaimWorkItem StartWorkItem CompleteWorkItem CompleteWorkItems FailWorkItem SkipWorkItem"
        " SuspendWorkItem ResumeWorkItem ReleaseWorkItem DelegateWorkItem StreamWorkItems",
        _P.WORK_OPERATE: "OfferWorkItem AllocateWorkItem ReallocateWorkItem AddInstance CloseInstances"
        " CompleteInstances CancelInstances",
    },
    f"{_OURS}.ScheduleService": {
        _P.SCHEDULE_READ: "GetSchedule ListSchedules",
        _P.SCHEDULE_WRITE: "CreateSchedule UpdateSchedule DeleteSchedule PauseSchedule ResumeSchedule TriggerSchedule"
        " BackfillSchedule",
    },
    f"{_OURS}.AdminService": {
        _P.STATUS: "GetStatus",
        _P.ADMIN_READ: "GetSlo GetPromotion ListAudit GetCheckpoint GetAuditProof VerifyHistory GetReceipt"
        " ListDeadLetters ListConnectors GetConfig ExplainPolicy ListLegalHolds",
        _P.ADMIN_WRITE: "SetPromotion RetryDeadLetter DiscardDeadLetter PutConnector DeleteConnector SetLogLevel Backup"
        " ExportAudit CreateLegalHold ReleaseLegalHold AdvanceTime",
    },
    f"{_OURS}.SubscriptionService": {
        _P.SUBSCRIPTION_READ: "GetSubscription ListSubscriptions ListDeliveries",
        _P.SUBSCRIPTION_WRITE: "CreateSubscription DeleteSubscription ReplayDeliveries",
    },
}
PERMISSIONS: Final[Mapping[str, Permission]] = {
    f"/{service}/{name}": permission
    for service, classes in _TABLE.items()
    for permission, names in classes.items()
    for name in names.split()
}
"""Permission by RPC path."""


def permission_of(path: str) -> Permission | None:
    """What this RPC needs; None when the table does not know it, which denies it."""
    return PERMISSIONS.get(path)
