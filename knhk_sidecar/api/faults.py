"""What an error looks like from outside: one table from error classes to a gRPC code and an HTTP status.

Over gRPC every error is a google.rpc.Status with ErrorInfo{reason, domain, metadata} and the details that fit it:

    BadRequest           every field that is wrong: path in the request, what was expected, how to mend it
    PreconditionFailure  the thing exists but is in the wrong state; for an unsound workflow one violation per finding
    QuotaFailure         which limit
    RetryInfo            when the same call may work, for refusals that mend themselves
    ResourceInfo         what is missing or taken

Over REST the same facts are an RFC 9457 problem. Only the text that an error carries for its caller leaves the process:
an exception that is no WorkflowError becomes INTERNAL with a random id, and the log keeps the rest under that id.

UNAVAILABLE promises "nothing was executed", because clients repeat such a call by themselves; the classes mapped to it
guarantee so. Errors of the daemon itself (who is calling, and may they) live here too, as the engine knows neither.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, NamedTuple, TypedDict

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from knhk_workflow import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    Expired,
    Fenced,
    InvalidDocument,
    InvalidInput,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
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

DOMAIN: Final = "sidecar.knhk.org"

MESSAGE_BYTES_MAX = 700  # percent-encoded it may triple; with the details it has to fit into 8 KiB of trailing metadata
STATUS_BYTES_MAX = 4096  # base64 makes 5.5 KB of it; common clients refuse more than 8 KiB of metadata altogether
DETAIL_VALUE_BYTES_MAX = 300  # one value of ErrorInfo.metadata: an id is at most 256 bytes
UNAVAILABLE_RETRY_MS = 1000  # a fenced shard is reopened within this; whoever goes down has told its load balancer
MEMORY_RETRY_MS = 2000  # buffers are given back within a look or two; work in progress takes its time
STORE_FULL_RETRY_MS = 5000  # free space is looked for this often

# The engine's names of JSON arguments, where the contract has another one.
_FIELDS: Final[Mapping[str, str]] = {"data": "data_json", "output": "output_json", "patch": "data_json"}
_HEAD = re.compile(r"^[a-z_]+")
_log = structlog.get_logger(__name__)


class Unauthenticated(WorkflowError):
    """Nobody knows who is calling. The message says what a caller has to show, never why a credential was refused: that
    is `rule`, for logs and the audit."""

    reason = "UNAUTHENTICATED"

    def __init__(
        self, message: str = "this call needs an identity: a client certificate or a bearer token", *, rule: str = ""
    ) -> None:
        super().__init__(message)
        self.rule = rule


class TokenRefused(Unauthenticated):
    """A bearer token was shown that does not count here; `rule` says why, the caller is told only that."""

    def __init__(self, rule: str) -> None:
        super().__init__("the bearer token is not accepted here", rule=f"token: {rule}")


class PermissionDenied(WorkflowError):
    """The caller may not do this. Opaque on purpose: `rule`, which decided, is for the log and the audit alone; it is
    empty when no rule allows it."""

    reason = "PERMISSION_DENIED"

    def __init__(self, rule: str = "") -> None:
        super().__init__("permission denied")
        self.rule = rule


class RateLimited(Busy):
    """A caller made more requests than it may. Nothing was executed; in `retry_after_ms` there is room for one more."""

    reason = "RATE_LIMITED"

    def __init__(self, principal: str, per_second: float, burst: int, retry_after_ms: int) -> None:
        WorkflowError.__init__(
            self,
            f"{principal} made more than {per_second:g} requests per second ({burst} at once); try again in "
            f"{retry_after_ms} ms",
            limit="requests per second",
            maximum=f"{per_second:g}",
        )
        self.retry_after_ms = retry_after_ms


class MemoryShort(Busy):
    """The daemon is near its memory limit and takes no new work. Nothing was executed."""

    reason = "MEMORY_SHORT"

    def __init__(self) -> None:
        super().__init__("the memory of this sidecar", MEMORY_RETRY_MS)


class Leaving(WorkflowError):
    """The daemon is going down; a stream can be opened again elsewhere or later, after what was received, and a call
    that only waited can be sent again."""

    reason = "LEAVING"
    retry = True

    def __init__(self) -> None:
        super().__init__("the sidecar is going down; ask again, a stream for what comes after what was received")


class PolicyChanged(WorkflowError):
    """Another policy is in force, under which this stream would have begun otherwise: with another tenant, other roles
    in workflows, other narrowings, another rate. Nothing of it was lost; it can be opened again after what was
    received."""

    reason = "POLICY_CHANGED"
    retry = True

    def __init__(self) -> None:
        super().__init__("the policy has changed; open the stream again, for what comes after what was received")


class SlowReader(WorkflowError):
    """A watch was ended because its reader was too slow; `resume` is where to go on."""

    reason = "SLOW_READER"

    def __init__(self, field: str, resume: str) -> None:
        super().__init__(
            f"the reader is too slow for this stream; watch again with {field} = {resume!r}",
            field=field,
            resume=resume,
        )


class Internal(WorkflowError):
    """Something that should not happen did. `error_id` finds it in the log."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error; the log has the cause under error id {error_id}", error_id=error_id)
        self.error_id = error_id


class Answer(NamedTuple):
    """How a class of errors is answered."""

    code: StatusCode
    http: int
    title: str  # RFC 9457: the same for every occurrence


FAULTS: Final[Mapping[type[WorkflowError], Answer]] = {
    WorkflowError: Answer(StatusCode.INTERNAL, 500, "Internal error"),
    InvalidInput: Answer(StatusCode.INVALID_ARGUMENT, 400, "Invalid argument"),
    InvalidDocument: Answer(StatusCode.INVALID_ARGUMENT, 400, "Invalid workflow document"),
    RequestMismatch: Answer(StatusCode.FAILED_PRECONDITION, 422, "Request id used before"),
    RoleRequired: Answer(StatusCode.PERMISSION_DENIED, 403, "Role required"),
    NotFound: Answer(StatusCode.NOT_FOUND, 404, "Not found"),
    AlreadyExists: Answer(StatusCode.ALREADY_EXISTS, 409, "Already exists"),
    WrongState: Answer(StatusCode.FAILED_PRECONDITION, 409, "Wrong state"),
    Unsound: Answer(StatusCode.FAILED_PRECONDITION, 422, "Unsound workflow"),
    LimitExceeded: Answer(StatusCode.RESOURCE_EXHAUSTED, 422, "Limit exceeded"),
    Busy: Answer(StatusCode.RESOURCE_EXHAUSTED, 429, "Busy"),
    RateLimited: Answer(StatusCode.RESOURCE_EXHAUSTED, 429, "Too many requests"),
    MemoryShort: Answer(StatusCode.RESOURCE_EXHAUSTED, 429, "Memory is short"),
    Unsupported: Answer(StatusCode.UNIMPLEMENTED, 501, "Not available in this version"),
    Expired: Answer(StatusCode.OUT_OF_RANGE, 410, "Resume token expired"),
    DeadlineExceeded: Answer(StatusCode.DEADLINE_EXCEEDED, 504, "Deadline exceeded"),
    StoreError: Answer(StatusCode.INTERNAL, 500, "Store error"),
    StoreUnavailable: Answer(StatusCode.UNAVAILABLE, 503, "Store unavailable"),
    StoreFull: Answer(StatusCode.UNAVAILABLE, 507, "Store full"),
    Leaving: Answer(StatusCode.UNAVAILABLE, 503, "Going down"),
    PolicyChanged: Answer(StatusCode.UNAVAILABLE, 503, "Policy changed"),
    Fenced: Answer(StatusCode.UNAVAILABLE, 503, "Store unavailable"),
    OutcomeUnknown: Answer(StatusCode.UNKNOWN, 500, "Outcome unknown"),
    StoreLocked: Answer(StatusCode.INTERNAL, 500, "Store locked"),
    StoreFormat: Answer(StatusCode.INTERNAL, 500, "Store format"),
    StoreCorrupt: Answer(StatusCode.DATA_LOSS, 500, "Store damaged"),
    Unauthenticated: Answer(StatusCode.UNAUTHENTICATED, 401, "Unauthenticated"),
    TokenRefused: Answer(StatusCode.UNAUTHENTICATED, 401, "Unauthenticated"),
    PermissionDenied: Answer(StatusCode.PERMISSION_DENIED, 403, "Permission denied"),
    Stale: Answer(StatusCode.ABORTED, 409, "Changed meanwhile"),
    SlowReader: Answer(StatusCode.RESOURCE_EXHAUSTED, 429, "Reader too slow"),
    Internal: Answer(StatusCode.INTERNAL, 500, "Internal error"),
}


class Fault(NamedTuple):
    """An error ready to be sent over gRPC: `context.abort(fault.code, fault.message, fault.trailing)`."""

    code: StatusCode
    message: str
    trailing: tuple[tuple[str, str | bytes], ...]


class FieldProblem(TypedDict):
    """One element of a problem's `errors`."""

    field: str
    code: str
    message: str
    hint: str


class _Needed(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    reason: str


class HttpProblem(_Needed, total=False):
    """An RFC 9457 problem. `retry_after_ms` is the header Retry-After in finer grain; `info` is ErrorInfo.metadata."""

    errors: list[FieldProblem]
    info: dict[str, str]
    retry_after_ms: int


def answer(error: WorkflowError) -> Answer:
    """The line of the table for this error; a class of a later engine is answered like its nearest known base."""
    return next(FAULTS[base] for base in type(error).__mro__ if base in FAULTS)


def known(error: BaseException) -> WorkflowError:
    """The error itself when callers can use it; anything else is logged under a new id and becomes Internal."""
    if isinstance(error, WorkflowError):
        return error
    error_id = secrets.token_hex(8)
    _log.error("internal_error", error_id=error_id, exc_info=error)
    return Internal(error_id)


def to_rpc(error: BaseException) -> Fault:
    """The gRPC form: code, message and trailing metadata."""
    cause = known(error)
    status = to_status(cause)
    trailing: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if isinstance(cause, Busy):
        trailing.append(("grpc-retry-pushback-ms", str(cause.retry_after_ms)))
    return Fault(answer(cause).code, status.message, tuple(trailing))


def to_status(error: BaseException) -> Status:
    """The google.rpc.Status alone, for elements of batches and streams. At most STATUS_BYTES_MAX bytes."""
    cause = known(error)
    status = Status(code=_number(answer(cause).code), message=_cut(cause.message, MESSAGE_BYTES_MAX))
    info = {key: _cut(value, DETAIL_VALUE_BYTES_MAX) for key, value in cause.details.items()}
    _add(status, details_pb2.ErrorInfo(reason=cause.reason, domain=DOMAIN, metadata=info))
    for detail in _details(cause, STATUS_BYTES_MAX - status.ByteSize()):
        _add(status, detail)
    return status


def to_problem(error: BaseException) -> HttpProblem:
    """The REST form. JSON fields have their REST names there (`data` for `data_json`)."""
    cause = known(error)
    line = answer(cause)
    problem = HttpProblem(
        type=f"https://{DOMAIN}/errors/{cause.reason}",
        title=line.title,
        status=line.http,
        detail=cause.message,
        reason=cause.reason,
    )
    if cause.details:
        problem["info"] = dict(cause.details)
    if found := _problems(cause):
        problem["errors"] = [
            FieldProblem(field=_rest_path(one.path), code=one.code, message=one.message, hint=one.hint) for one in found
        ]
    if (delay := retry_delay_ms(cause)) is not None:
        problem["retry_after_ms"] = delay
    return problem


def retry_delay_ms(error: WorkflowError) -> int | None:
    """When the same call may work without anything being mended; None where waiting does not help."""
    match error:
        case Busy():
            return error.retry_after_ms
        case StoreFull():
            return STORE_FULL_RETRY_MS
        case StoreUnavailable() | Leaving() | PolicyChanged():
            return UNAVAILABLE_RETRY_MS
        case _:
            return None


def _problems(error: WorkflowError) -> Sequence[Problem]:
    if isinstance(error, InvalidInput):
        return error.problems
    return error.findings if isinstance(error, Unsound) else ()


def _details(error: WorkflowError, room: int) -> Iterable[Message]:
    """The details beyond ErrorInfo, lists cut to `room` bytes."""
    if isinstance(error, InvalidInput) and error.problems:
        translate = not isinstance(error, InvalidDocument)  # those paths are in the document, not in the request
        yield _bad_request(error.problems, room, translate)
    if isinstance(error, RequestMismatch):
        yield _precondition("REQUEST_ID", "request_id", error.message)
    elif isinstance(error, Unsound):
        yield _unsound(error, room)
    elif isinstance(error, WrongState):
        yield _precondition("STATE", f"{error.kind}/{error.name}", error.message)
    elif isinstance(error, NotFound | AlreadyExists):
        yield details_pb2.ResourceInfo(
            resource_type=error.kind, resource_name=_cut(error.name, DETAIL_VALUE_BYTES_MAX), description=""
        )
    elif isinstance(error, LimitExceeded | Busy | SlowReader):
        subject = error.details.get("limit") or error.details.get("what") or "stream"
        violation = details_pb2.QuotaFailure.Violation(
            subject=subject, description=_cut(error.message, MESSAGE_BYTES_MAX)
        )
        yield details_pb2.QuotaFailure(violations=[violation])
    if (delay := retry_delay_ms(error)) is not None:
        yield details_pb2.RetryInfo(retry_delay=Duration(seconds=delay // 1000, nanos=delay % 1000 * 1_000_000))


def _bad_request(problems: Sequence[Problem], room: int, translate: bool) -> Message:
    found = details_pb2.BadRequest()
    for position, problem in enumerate(problems):
        violation = details_pb2.BadRequest.FieldViolation(
            field=_cut(_proto_path(problem.path) if translate else problem.path, DETAIL_VALUE_BYTES_MAX),
            description=_cut(_sentence(problem), MESSAGE_BYTES_MAX),
            reason=problem.code.upper(),
        )
        if position and found.ByteSize() + violation.ByteSize() > room - _REST_BYTES:
            found.field_violations.add(description=_more(len(problems) - position))
            break
        found.field_violations.append(violation)
    return found


def _unsound(error: Unsound, room: int) -> Message:
    failure = details_pb2.PreconditionFailure()
    for position, finding in enumerate(error.findings):
        violation = details_pb2.PreconditionFailure.Violation(
            type=finding.code.upper(),
            subject=_cut(finding.path, DETAIL_VALUE_BYTES_MAX),
            description=_cut(_sentence(finding), MESSAGE_BYTES_MAX),
        )
        if position and failure.ByteSize() + violation.ByteSize() > room - _REST_BYTES:
            failure.violations.add(type="MORE", description=_more(len(error.findings) - position))
            break
        failure.violations.append(violation)
    return failure


_REST_BYTES = 200  # type URLs, the last line that counts what was left out, and whatever small detail follows


def _more(count: int) -> str:
    return f"and {count} more; ValidateWorkflow or REST list all of them"


def _precondition(kind: str, subject: str, description: str) -> Message:
    return details_pb2.PreconditionFailure(
        violations=[
            details_pb2.PreconditionFailure.Violation(
                type=kind,
                subject=_cut(subject, DETAIL_VALUE_BYTES_MAX),
                description=_cut(description, MESSAGE_BYTES_MAX),
            )
        ]
    )


def _sentence(problem: Problem) -> str:
    text = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
    return f"{text}; after {', '.join(problem.trace)}" if problem.trace else text


def _proto_path(path: str) -> str:
    return _HEAD.sub(lambda head: _FIELDS.get(head[0], head[0]), path, count=1)


def _rest_path(path: str) -> str:
    return ".".join(re.sub(r"_json(?=\[|$)", "", part) for part in path.split("."))


def _number(code: StatusCode) -> int:
    number, _ = code.value
    assert isinstance(number, int)
    return number


def _add(status: Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, size: int) -> str:
    """`text`, shortened to `size` bytes of UTF-8 without breaking a character."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= size else raw[: size - 3].decode("utf-8", "ignore") + "..."
