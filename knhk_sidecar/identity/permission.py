"""The classes of permission: what a policy allows or denies.

Which call needs which of them is the pipeline's table. The values appear in policies and in the audit: they are stable.
"""

from __future__ import annotations

from enum import Enum


class Permission(Enum):
    """What a caller must be allowed to do."""

    HEALTH = "health"
    REFLECT = "reflect"
    STATUS = "status"
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
    SUBSCRIPTION_READ = "subscription.read"
    SUBSCRIPTION_WRITE = "subscription.write"
    CONNECTOR_READ = "connector.read"
    CONNECTOR_WRITE = "connector.write"
    DEAD_LETTER_READ = "dead_letter.read"
    DEAD_LETTER_OPERATE = "dead_letter.operate"
    HOLD_READ = "hold.read"
    HOLD_WRITE = "hold.write"
    AUDIT_READ = "audit.read"
    POLICY_READ = "policy.read"
    ADMIN_READ = "admin.read"
    ADMIN_WRITE = "admin.write"
    BACKUP = "backup"

    # Members are singletons. Enum's own hash is a function in Python, which a look-up per call would pay for.
    __hash__ = object.__hash__
