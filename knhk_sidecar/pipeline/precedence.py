"""Who goes first when there is not enough room for everybody.

    health    is never kept waiting, and has no class here
    FINISH    what brings work that exists to its end: completing, failing, signalling, cancelling; operators too
    START     what makes new work: starting cases, running patterns, registering workflows
    READ      looking: lists, histories, explanations

Finishing goes first because it is what takes load away; a sidecar that starts more than it can finish only grows its
backlog. Timers and whatever else the engine does by itself never queue here at all. No class waits for ever: of the
places that come free, one in FAIR_EVERY goes to whoever has waited longest, and each class may keep its share of the
queue (admission.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from knhk_sidecar.pipeline.permissions import Permission

FINISH: Final = 0
START: Final = 1
READ: Final = 2
CLASSES: Final = (FINISH, START, READ)
NAMES: Final = ("finishing", "starting", "reading")

_P = Permission
_BY_PERMISSION: Final[Mapping[Permission, int]] = {
    _P.CASE_WRITE: FINISH,  # but for those in _STARTING
    _P.CASE_OPERATE: FINISH,
    _P.WORK_WRITE: FINISH,
    _P.WORK_OPERATE: FINISH,
    _P.STATUS: FINISH,  # who has to find out why a sidecar is busy must be able to ask it
    _P.ADMIN_READ: FINISH,
    _P.ADMIN_WRITE: FINISH,
    _P.PATTERN_EXECUTE: START,
    _P.WORKFLOW_WRITE: START,
    _P.SCHEDULE_WRITE: START,
    _P.SUBSCRIPTION_WRITE: START,
}
_STARTING: Final = frozenset({"CreateCase", "StartCase", "ExecuteCase", "RunCase", "RunCases", "StreamRunCase"})


def precedence_of(name: str, permission: Permission | None) -> int:
    """The class of an RPC by its name and permission."""
    if name in _STARTING:
        return START
    return READ if permission is None else _BY_PERMISSION.get(permission, READ)
