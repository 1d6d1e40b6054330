"""Every error of the engine, drawn as a tree.

    WorkflowError
    |-- InvalidInput            what the caller sent cannot be understood        caller, no retry
    |   |-- InvalidDocument     a workflow document with all its problems
    |   `-- RequestMismatch     a request id was used before with another body
    |-- NotFound                no such case, workflow, work item, pattern
    |-- AlreadyExists           the id is taken
    |-- WrongState              the thing exists but is not in a state for this
    |   |-- Stale               the caller decided on an older state             read, then retry
    |   `-- Unsound             registration refused by verification
    |-- LimitExceeded           a documented limit would be passed
    |-- Busy                    the engine has too much to do right now           retry later
    |-- Unsupported             a feature that this version does not execute
    |-- Expired                 a resume token is older than what is kept
    |-- DeadlineExceeded        the caller's deadline passed before the commit point
    `-- StoreError              the store below
        |-- StoreUnavailable    nothing was written, try again                    retry
        |   |-- StoreFull       no space left; comes back by itself
        |   `-- Fenced          another owner holds the shard, or a write failed
        |-- StoreLocked         another process has the directory
        |-- StoreFormat         made by a newer version, or not a store of ours
        |-- StoreCorrupt        a checksum, the chain or the head does not agree
        |-- ExpectationFailed   another writer was first (store/store.py)            retry
        `-- OutcomeUnknown      written or not: the request id tells (store/store.py)

An error but OutcomeUnknown is raised before the first change. `reason` is stable (UPPER_SNAKE), `retry` tells whether
the same call may succeed later without anything being mended, and the fields of each class say what, where, what was
expected and how to mend it. Mapping to gRPC and HTTP is one table in the sidecar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with an input: where (`path`, like `tasks.approve.join`), what, and how to mend it."""

    path: str
    code: str
    message: str
    severity: str = "error"  # error | warning
    hint: str = ""
    trace: tuple[str, ...] = ()  # counterexample: task names in order

    def __str__(self) -> str:
        return f"{self.path or '(document)'}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class WorkflowError(Exception):
    """Base of all. `details` are plain strings for machines; `str(error)` is one sentence for people."""

    reason: ClassVar[str] = "INTERNAL"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, str] = details


class InvalidInput(WorkflowError):
    """An argument is malformed. `problems` names every field with what was expected."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, problems: Sequence[Problem] = (), **details: str) -> None:
        super().__init__(message, **details)
        self.problems: tuple[Problem, ...] = tuple(problems)

    @classmethod
    def field(cls, path: str, message: str, hint: str = "", code: str = "invalid") -> InvalidInput:
        """An error about one field."""
        return cls(f"{path}: {message}", (Problem(path, code, message, hint=hint),))


class InvalidDocument(InvalidInput):
    """A workflow document that cannot be registered; all problems at once."""

    reason = "INVALID_DOCUMENT"


class RoleRequired(WorkflowError):
    """The task asks for one of `needed`, and the caller is something else in workflows."""

    reason = "ROLE_REQUIRED"

    def __init__(self, kind: str, name: str, needed: Sequence[str]) -> None:
        told = ", ".join(needed)
        super().__init__(f"{kind} {name!r} is for {told} only", kind=kind, name=name, needed=told)
        self.needed = tuple(needed)


class RequestMismatch(InvalidInput):
    """`request_id` was used within its window with a different command."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was already used for a different request; use a new id for a new request",
            (Problem("request_id", "reused", "was already used for a different request", hint="use a new id"),),
            request_id=request_id,
        )


class NotFound(WorkflowError):
    """There is no `kind` named `name` for this tenant."""

    reason = "NOT_FOUND"

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"{kind} {name!r} does not exist" + (f"; {hint}" if hint else ""), kind=kind, name=name)
        self.kind = kind
        self.name = name


class AlreadyExists(WorkflowError):
    """A `kind` named `name` exists already."""

    reason = "ALREADY_EXISTS"

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"{kind} {name!r} exists already" + (f"; {hint}" if hint else ""), kind=kind, name=name)
        self.kind = kind
        self.name = name


class WrongState(WorkflowError):
    """`kind` `name` is `actual`, but the operation needs `expected`."""

    reason = "WRONG_STATE"

    def __init__(self, kind: str, name: str, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(
            f"{kind} {name!r} is {actual}, but this needs it to be {expected}" + (f"; {hint}" if hint else ""),
            kind=kind,
            name=name,
            expected=expected,
            actual=actual,
        )
        self.kind = kind
        self.name = name
        self.expected = expected
        self.actual = actual


class Stale(WrongState):
    """The caller decided on an older state: read again and repeat."""

    reason = "STALE"
    retry = True


class Unsound(WrongState):
    """Verification says that the workflow cannot always end properly; `findings` say why, with a trace."""

    reason = "UNSOUND_WORKFLOW"

    def __init__(self, spec_id: str, findings: Sequence[Problem]) -> None:
        super().__init__("workflow", spec_id, "sound", "unsound", "mend the findings or set allow_unsound")
        self.findings: tuple[Problem, ...] = tuple(findings)


class LimitExceeded(WorkflowError):
    """A documented limit would be passed: `limit` is its name, `maximum` its value, `actual` what was asked for."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, limit: str, maximum: int, actual: int, hint: str = "") -> None:
        super().__init__(
            f"{limit} is limited to {maximum}, this would need {actual}" + (f"; {hint}" if hint else ""),
            limit=limit,
            maximum=str(maximum),
            actual=str(actual),
        )


class Busy(WorkflowError):
    """The engine's queue is full. Nothing was executed; try again after `retry_after_ms`."""

    reason = "BUSY"
    retry = True

    def __init__(self, what: str, retry_after_ms: int = 100) -> None:
        super().__init__(f"{what} is full; try again in {retry_after_ms} ms", what=what)
        self.retry_after_ms = retry_after_ms


class Unsupported(WorkflowError):
    """`feature` is part of the contract but this version does not execute it."""

    reason = "UNIMPLEMENTED_FEATURE"

    def __init__(self, feature: str, hint: str = "") -> None:
        super().__init__(f"{feature} is not available in this version" + (f"; {hint}" if hint else ""), feature=feature)
        self.feature = feature


class Expired(WorkflowError):
    """A resume token points before what is kept."""

    reason = "RESUME_EXPIRED"


class DeadlineExceeded(WorkflowError):
    """The caller's deadline passed before the command reached the journal; nothing was changed."""

    reason = "DEADLINE_EXCEEDED"
    retry = True


class StoreError(WorkflowError):
    """The store below failed."""

    reason = "STORE_ERROR"


class StoreUnavailable(StoreError):
    """Nothing of this call was written; the store works on coming back."""

    reason = "STORE_UNAVAILABLE"
    retry = True


class StoreFull(StoreUnavailable):
    """No space (or nearly none) on the volume; writes resume by themselves when there is space again."""

    reason = "STORE_FULL"


class Fenced(StoreUnavailable):
    """An expectation about the shard's lease or a case's head did not hold, or an earlier write failed."""

    reason = "FENCED"


class StoreLocked(StoreError):
    """Another process (or another handle in this process) has the directory open."""

    reason = "STORE_LOCKED"


class StoreFormat(StoreError):
    """The directory is not a store of ours, is incomplete, or was made by a newer version."""

    reason = "STORE_FORMAT"


class StoreCorrupt(StoreError):
    """Stored bytes do not match their checksum, the chain is broken, or records are missing."""

    reason = "STORE_CORRUPT"
