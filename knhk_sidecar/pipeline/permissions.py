"""Which class of permission each RPC needs: a closed table.

An RPC that is not in it has no permission and nobody may call it; a test compares the table with the contract, so a new
RPC fails there first. Health is the only class for callers without identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from knhk_sidecar.identity.permission import Permission as Permission

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
        " SuspendCase ResumeCase CancelCase CancelTask",
        _P.CASE_OPERATE: "PurgeCases MigrateCases ResolveIncident",
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
        _P.CONNECTOR_READ: "ListConnectors",
        _P.CONNECTOR_WRITE: "PutConnector DeleteConnector",
        _P.DEAD_LETTER_READ: "ListDeadLetters",
        _P.DEAD_LETTER_OPERATE: "RetryDeadLetter DiscardDeadLetter",
        _P.HOLD_READ: "ListLegalHolds",
        _P.HOLD_WRITE: "CreateLegalHold ReleaseLegalHold",
        _P.AUDIT_READ: "ListAudit GetCheckpoint GetAuditProof GetReceipt VerifyHistory",
        _P.POLICY_READ: "ExplainPolicy GetPolicy",
        _P.ADMIN_READ: "GetSlo GetPromotion GetConfig",
        _P.ADMIN_WRITE: "SetPromotion SetLogLevel AdvanceTime",
        _P.BACKUP: "Backup ExportAudit",
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
