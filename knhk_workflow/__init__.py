"""KNHK workflow: a durable workflow engine as a library.

    async with WorkflowEngine(StateStore("./workflow_db")) as engine:
        await engine.register_workflow({"id": "hello", "tasks": {"greet": {"required_roles": ["clerk"]}},
                                        "flows": [{"from": "start", "to": "greet"}, {"from": "greet", "to": "end"}]})
        case = await engine.run_case("hello", {"name": "Ada"})
        await engine.complete_work_item(case.work[0].item_id, {"greeted": True})

Everything public is named here; the modules below are the engine's own affair.
"""

from __future__ import annotations

from knhk_workflow.connectors.allowance import Allowance
from knhk_workflow.connectors.breaker import BreakerRule
from knhk_workflow.connectors.connector import Answer, Call, CallFailed, Connector, PoolState
from knhk_workflow.connectors.connector import Delivery as ConnectorDelivery
from knhk_workflow.connectors.secrets import Secret, Vault, scrubbed
from knhk_workflow.connectors.settings import Factory as ConnectorFactory
from knhk_workflow.connectors.settings import Settings as ConnectorSettings
from knhk_workflow.connectors.settings import Surroundings
from knhk_workflow.connectors.settings import parse as parse_settings
from knhk_workflow.core.explanation import GuardReading, InstanceCount, TaskExplanation, TokenPath, Wait
from knhk_workflow.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    Expired,
    Fenced,
    InvalidDocument,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Problem,
    RequestMismatch,
    RoleRequired,
    Stale,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    Unsound,
    Unsupported,
    WorkflowError,
    WrongState,
)
from knhk_workflow.fortune5.config import (
    Environment,
    Fortune5Config,
    KmsConfig,
    MultiRegionConfig,
    PromotionConfig,
    SloConfig,
    SpiffeConfig,
)
from knhk_workflow.fortune5.slo import Fortune5Integration, SloMetrics
from knhk_workflow.model.document import strict_json, strict_yaml
from knhk_workflow.model.fields import duration as parse_duration
from knhk_workflow.model.verify import VerifyBudget
from knhk_workflow.runtime.audit_export import AuditProof, prove_audit
from knhk_workflow.runtime.audit_store import check_store as check_store_audit
from knhk_workflow.runtime.audit_stream import DENIALS as AUDIT_DENIALS
from knhk_workflow.runtime.audit_stream import Like, shortened
from knhk_workflow.runtime.audit_trail import AuditEntry, AuditFilter
from knhk_workflow.runtime.births import RunRequest
from knhk_workflow.runtime.checkpoint import Checkpoint, read_checkpoints
from knhk_workflow.runtime.checkpoint import signed as checkpoint_signed
from knhk_workflow.runtime.clock import Clock, Ids, SeededIds, SkippingClock, SystemClock, SystemIds, VirtualClock
from knhk_workflow.runtime.connectors import ConnectorConfig, ConnectorSetup
from knhk_workflow.runtime.dispatch import Delivery, LeasedItem, WorkSession, WorkSubscription
from knhk_workflow.runtime.engine import AuditCounts, WorkflowEngine
from knhk_workflow.runtime.export import Proof
from knhk_workflow.runtime.export import prove as prove_export
from knhk_workflow.runtime.integrity import Examination, Finding, LogEnd
from knhk_workflow.runtime.meta import DEFAULT_TENANT, LOCAL, CallMeta, Witness
from knhk_workflow.runtime.occurrences import CATCH_UPS, OVERLAPS
from knhk_workflow.runtime.parts import EngineLimits
from knhk_workflow.runtime.receipts import EntryProof, Receipt, ReceiptVerdict, prove_receipt
from knhk_workflow.runtime.records import Operation, ScheduleRun, ScheduleSpec
from knhk_workflow.runtime.restoration import Moment, Restored, check_backup, restore_store, verify_store
from knhk_workflow.runtime.results import CompleteRequest, FailRequest
from knhk_workflow.runtime.retention import PurgeRequest, PurgeView, RetentionPolicy
from knhk_workflow.runtime.signature import SigningKey
from knhk_workflow.runtime.signature import fingerprint as key_fingerprint
from knhk_workflow.runtime.signature import public_key as read_public_key
from knhk_workflow.runtime.skipping import TimeView
from knhk_workflow.runtime.state_store import StateStore
from knhk_workflow.runtime.upgrade import UpgradePlan, plan_upgrade
from knhk_workflow.runtime.views import (
    CaseCounts,
    CaseFilter,
    CaseView,
    ConnectorView,
    CountsView,
    DeadLetterView,
    EngineStatus,
    Explanation,
    HistoryEvent,
    IncidentView,
    InstancesView,
    MessageView,
    Page,
    PatternExecutionContext,
    PatternResult,
    PatternView,
    ScheduleView,
    Stimulus,
    TriggerDelivery,
    Validation,
    WorkflowView,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.store import JournalLimits, OutcomeUnknown
from knhk_workflow.store.backup import Archive, Piece
from knhk_workflow.store.mending import Mending
from knhk_workflow.store.mending import mendings as store_mendings
from knhk_workflow.store.merkle import consistent as checkpoints_consistent

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_TENANT",
    "LOCAL",
    "Allowance",
    "AlreadyExists",
    "AUDIT_DENIALS",
    "AuditCounts",
    "AuditEntry",
    "AuditFilter",
    "AuditProof",
    "Checkpoint",
    "EntryProof",
    "Like",
    "Operation",
    "Receipt",
    "ReceiptVerdict",
    "Witness",
    "check_store_audit",
    "checkpoint_signed",
    "checkpoints_consistent",
    "prove_audit",
    "prove_receipt",
    "read_checkpoints",
    "shortened",
    "Answer",
    "BreakerRule",
    "Busy",
    "Call",
    "CallFailed",
    "CallMeta",
    "CaseCounts",
    "CaseFilter",
    "CaseView",
    "Clock",
    "CompleteRequest",
    "Connector",
    "ConnectorConfig",
    "ConnectorFactory",
    "ConnectorSettings",
    "ConnectorSetup",
    "ConnectorView",
    "ConnectorDelivery",
    "CountsView",
    "DeadLetterView",
    "PoolState",
    "Secret",
    "Surroundings",
    "Vault",
    "parse_settings",
    "scrubbed",
    "DeadlineExceeded",
    "Delivery",
    "EngineLimits",
    "SpiffeConfig",
    "SloMetrics",
    "SloConfig",
    "PromotionConfig",
    "MultiRegionConfig",
    "KmsConfig",
    "Fortune5Integration",
    "Fortune5Config",
    "Environment",
    "EngineStatus",
    "Expired",
    "Explanation",
    "FailRequest",
    "Fenced",
    "GuardReading",
    "HistoryEvent",
    "Ids",
    "IncidentView",
    "InstanceCount",
    "InstancesView",
    "InvalidDocument",
    "InvalidInput",
    "JournalLimits",
    "LeasedItem",
    "LimitExceeded",
    "MessageView",
    "NotFound",
    "OutcomeUnknown",
    "Page",
    "PatternExecutionContext",
    "PatternResult",
    "PatternView",
    "Problem",
    "PurgeRequest",
    "PurgeView",
    "RequestMismatch",
    "RoleRequired",
    "RetentionPolicy",
    "RunRequest",
    "ScheduleRun",
    "ScheduleSpec",
    "ScheduleView",
    "CATCH_UPS",
    "OVERLAPS",
    "SeededIds",
    "SkippingClock",
    "SigningKey",
    "key_fingerprint",
    "read_public_key",
    "Stale",
    "StateStore",
    "Stimulus",
    "StoreCorrupt",
    "StoreError",
    "StoreFormat",
    "StoreFull",
    "StoreLocked",
    "StoreUnavailable",
    "SystemClock",
    "SystemIds",
    "TaskExplanation",
    "TimeView",
    "TokenPath",
    "TriggerDelivery",
    "Unsound",
    "Unsupported",
    "Validation",
    "VerifyBudget",
    "VirtualClock",
    "Wait",
    "WorkItemFilter",
    "WorkItemView",
    "WorkSession",
    "WorkSubscription",
    "WorkflowEngine",
    "WorkflowError",
    "WorkflowView",
    "WrongState",
    "Archive",
    "Examination",
    "Finding",
    "LogEnd",
    "Mending",
    "Moment",
    "Piece",
    "Proof",
    "Restored",
    "check_backup",
    "parse_duration",
    "plan_upgrade",
    "UpgradePlan",
    "prove_export",
    "restore_store",
    "store_mendings",
    "strict_json",
    "strict_yaml",
    "verify_store",
    "__version__",
]
