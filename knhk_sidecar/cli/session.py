"""What commands share: the options to reach the daemon, data arguments, and gRPC errors as failures."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import click
import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure
from google.rpc.status_pb2 import Status

from knhk_sidecar.bearer import NoToken, TokenFile, TokenSource, one_token
from knhk_sidecar.cli.failure import Exit, Failure, settings_refused
from knhk_sidecar.client import Client, Endpoint, NotReachable, is_loopback, named_endpoint, read_ready
from knhk_sidecar.config import ConfigError, load
from knhk_sidecar.retries import ATTEMPTS, Policy

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_TIMEOUT: Final = 30.0  # seconds: a person waits; the daemon bounds its own work much earlier
READY_NAME: Final = "daemon.json"
OUTPUTS: Final = ("table", "json", "yaml")


@dataclass(slots=True)
class Session:
    """The options that every command against a daemon has."""

    address: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: str = ""
    token_file: Path | None = None
    server_id: str = ""
    workload_api: str = ""
    spiffe_socket: str = ""
    data_dir: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    output: str = "table"

    def endpoint(self) -> Endpoint:
        """Where the daemon is. Raises `Failure` when that cannot be known."""
        try:
            token = self._token()
            if self.address:
                # Where a plain connection is refused, and no token says who calls.
                needed = self.ca is None and token is None and not is_loopback(self.address)
                agent = self.workload_api or (self.spiffe_socket if needed else "")
                return named_endpoint(
                    self.address, self.ca, self.cert, self.key, self.server_name, self.server_id, agent, token
                )
            ready = read_ready(ready_path(self.data_dir))
            return ready.endpoint if token is None else ready.endpoint_for(token)
        except NotReachable as error:
            raise Failure(Exit.UNAVAILABLE, str(error), error.mend) from error
        except NoToken as error:
            raise Failure(Exit.USAGE, str(error), error.mend) from error

    def _token(self) -> TokenSource | None:
        if self.token and self.token_file:
            raise Failure(Exit.USAGE, "--token and --token-file both say who calls", "give one of them")
        if self.token_file:
            return TokenFile(self.token_file)
        if not self.token:
            return None
        token = one_token(self.token, "--token")
        return lambda: token

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client for the length of a command; gRPC errors leave it as `Failure`."""
        endpoint = self.endpoint()
        try:
            with Client(endpoint, _retries()) as client:
                yield client
        except NotReachable as error:
            raise Failure(Exit.UNAVAILABLE, str(error), error.mend) from error
        except NoToken as error:
            raise Failure(Exit.USAGE, str(error), error.mend) from error
        except grpc.RpcError as error:
            raise failure_of(cast("grpc.Call", error), endpoint.address) from error  # what a call raises is that call


def ready_path(data_dir: Path | None) -> Path:
    """Where a daemon in developer mode says how to reach it: what `knhk dev` with the same settings would write."""
    try:
        config = load({"data_dir": str(data_dir)} if data_dir is not None else {}).config
    except ConfigError as error:
        raise settings_refused(error) from error
    return Path(config.dev_directory) / READY_NAME


def _retries() -> Policy:
    """How often a call is made. Settings that cannot be used are for those to tell who need them."""
    try:
        most = load().config.retry_max_attempts
    except ConfigError:
        return Policy()
    return Policy(max(ATTEMPTS, most), broken_attempts=most)


def _store(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    assert parameter.name is not None
    setattr(ctx.ensure_object(Session), parameter.name, value)


FILE: Final = click.Path(dir_okay=False, path_type=Path)
_OPTIONS: Final = (
    click.option(
        "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, expose_value=False,
        callback=_store, help="How to print the answer.",
    ),
    click.option(
        "--address", envvar="KNHK_ADDRESS", metavar="HOST:PORT", expose_value=False, callback=_store,
        help="The daemon's gRPC address; otherwise the running daemon of --data-dir.",
    ),
    click.option(
        "--ca", envvar="KNHK_CA", type=FILE, expose_value=False, callback=_store,
        help="Authority of the daemon's certificate.",
    ),
    click.option("--cert", envvar="KNHK_CERT", type=FILE, expose_value=False, callback=_store, help="Certificate."),
    click.option("--key", envvar="KNHK_KEY", type=FILE, expose_value=False, callback=_store, help="Its key."),
    click.option(
        "--server-name", envvar="KNHK_SERVER_NAME", default="", metavar="NAME", expose_value=False, callback=_store,
        help="DNS name in the daemon's certificate, when it is not the host of --address.",
    ),
    click.option(
        "--token", envvar="KNHK_TOKEN", default="", metavar="TOKEN", expose_value=False, callback=_store,
        help="Bearer token, instead of --cert and --key. Others on this host see it; prefer the variable or the file.",
    ),
    click.option(
        "--token-file", envvar="KNHK_TOKEN_FILE", type=FILE, expose_value=False, callback=_store,
        help="File with a bearer token, read again when it changes.",
    ),
    click.option(
        "--server-id", envvar="KNHK_SERVER_ID", default="", metavar="ID", expose_value=False, callback=_store,
        help="SPIFFE id that the daemon must have, or spiffe:// and its trust domain.",
    ),
    click.option(
        "--workload-api", envvar="KNHK_WORKLOAD_API", default="", metavar="SOCKET", expose_value=False,
        callback=_store, help="SPIFFE agent to take certificates from, in place of files: unix:///PATH.",
    ),
    click.option(
        "--spiffe-socket", envvar="SPIFFE_ENDPOINT_SOCKET", default="", hidden=True, expose_value=False,
        callback=_store,
    ),
    click.option(
        "--data-dir", envvar="KGC_SIDECAR_DATA_DIR", type=click.Path(path_type=Path), expose_value=False,
        callback=_store, help="Data directory of the running daemon to talk to; otherwise the one started here.",
    ),
    click.option(
        "--timeout", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_TIMEOUT, show_default=True,
        metavar="SECONDS", expose_value=False, callback=_store, help="How long to wait for one answer.",
    ),
)  # fmt: skip


def connected(command: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Adds the shared options; the command gets them as its first argument."""
    wrapped: Callable[P, R] = click.pass_obj(command)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


# ----------------------------------------------------------------------------------------------------------- arguments
data_option = click.option(
    "--data",
    "data",
    metavar="JSON|@FILE|-",
    help="A JSON object, @ and the name of a file that has one, or - for standard input.",
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="One value of the data; JSON when it is, otherwise a string. Repeatable.",
)
request_id_option = click.option(
    "--request-id",
    default="",
    metavar="ID",
    help="Idempotency key: repeating the command with it changes nothing a second time.",
)


def data_argument(data: str | None, assignments: Sequence[str] = ()) -> bytes:
    """`--data` and `--set` together as a JSON object; no bytes when neither is given. `--set` wins over the same name
    in `--data`."""
    if data is None and not assignments:
        return b""
    value: object = {} if data is None else _json(_text(data))
    if not isinstance(value, dict):
        raise Failure(Exit.USAGE, "--data has to be a JSON object", """for example --data '{"amount": 250}'""")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise Failure(Exit.USAGE, f"--set {assignment!r} is no assignment", "write --set NAME=VALUE")
        value[name] = _lenient(text)
    return json.dumps(value, ensure_ascii=False).encode()


def _text(argument: str) -> str:
    if argument == "-":
        return sys.stdin.read()
    if not argument.startswith("@"):
        return argument
    try:
        return read_file(Path(argument[1:])).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Failure(Exit.USAGE, f"{argument[1:]} is not UTF-8", "save it as UTF-8") from error


def read_file(path: Path) -> bytes:
    """The bytes of a file named on the command line; `-` is standard input."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(Exit.USAGE, f"{path}: {error.strerror}", "check the path and its permissions") from error


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(Exit.USAGE, f"--data is not JSON: {error}", """for example --data '{"amount": 250}'""") from error


def _lenient(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------------------------------------------------- errors
_EXITS: Final[Mapping[str, Exit]] = {
    "NOT_FOUND": Exit.NOT_FOUND,
    "PERMISSION_DENIED": Exit.DENIED,
    "UNAUTHENTICATED": Exit.DENIED,
    "FAILED_PRECONDITION": Exit.PRECONDITION,
    "ABORTED": Exit.PRECONDITION,
    "ALREADY_EXISTS": Exit.PRECONDITION,
    "OUT_OF_RANGE": Exit.PRECONDITION,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.TIMEOUT,
    "CANCELLED": Exit.INTERRUPTED,
    "INVALID_ARGUMENT": Exit.USAGE,
}
_MENDS: Final[Mapping[str, str]] = {
    "INVALID_DOCUMENT": "mend the document; `knhk workflow validate FILE` lists every problem",
    "UNSOUND_WORKFLOW": "mend the findings, or register it with --allow-unsound",
    "REQUEST_ID_REUSED": "use a new --request-id for a new request",
    "WRONG_STATE": "`knhk case explain ID` says where the case is and what it waits for",
    "LIMIT_EXCEEDED": "make the request smaller",
    "UNIMPLEMENTED_FEATURE": "leave it out, or use a daemon whose version has it",
    "UNAUTHENTICATED": "give --ca, --cert and --key, or a --token-file, of an identity that the daemon knows",
    "PERMISSION_DENIED": "ask whoever keeps the daemon's policy; `knhk policy explain` says what would be needed",
    "STORE_FULL": "free space on the daemon's volume; it goes on by itself",
    "RESUME_EXPIRED": "watch again without --after",
    "STALE": "read it again, then repeat",
}
_MENDS_BY_KIND: Final[Mapping[str, str]] = {
    "case": "`knhk case list` shows the cases",
    "workflow": "`knhk workflow list` shows the workflows, `knhk workflow register FILE` adds one",
    "work item": "`knhk work list` shows the items",
    "work_item": "`knhk work list` shows the items",
    "schedule": "`knhk schedule list` shows the schedules",
    "pattern": "patterns are 1 to 43; `knhk pattern list` shows them",
    "incident": "`knhk case explain ID` shows the incidents of a case",
}
_MENDS_BY_CODE: Final[Mapping[str, str]] = {
    "UNAVAILABLE": "is the daemon running? `knhk doctor` looks",
    "DEADLINE_EXCEEDED": "wait longer with --timeout SECONDS",
    "RESOURCE_EXHAUSTED": "try again in a moment",
    "INVALID_ARGUMENT": "mend the argument; --help has an example",
    "INTERNAL": "look for the error id in the daemon's log",
    "DATA_LOSS": "stop the daemon, keep a copy of its data directory, and run `knhk doctor`",
}


def failure_of(error: grpc.Call, address: str) -> Failure:
    """What an error of a call means on the command line."""
    code = error.code().name
    message = error.details() or code
    reason, info, lines = "", {}, []
    status = Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status.ParseFromString(value)
    for detail in status.details:
        if detail.Is(_type(ErrorInfo)):
            found = ErrorInfo()
            detail.Unpack(found)
            reason, info = found.reason, dict(found.metadata)
        elif detail.Is(_type(BadRequest)):
            request = BadRequest()
            detail.Unpack(request)
            lines += [f"{each.field or '(document)'}: {each.description}" for each in request.field_violations]
        elif detail.Is(_type(PreconditionFailure)) and reason == "UNSOUND_WORKFLOW":
            failed = PreconditionFailure()
            detail.Unpack(failed)
            lines += [f"{each.subject or '(document)'}: {each.description}" for each in failed.violations]
    if code == "UNAVAILABLE" and not reason:
        message = f"no answer from {address}: {message}"
    elif code == "DEADLINE_EXCEEDED" and not reason:
        message = f"no answer from {address} in time"
    exit_code = _EXITS.get(code, Exit.FAILED)
    if reason == "INVALID_DOCUMENT":
        exit_code = Exit.FAILED  # the command was right, the file is not
    mend = _MENDS_BY_KIND.get(info.get("kind", ""), "") if code == "NOT_FOUND" else ""
    mend = mend or _MENDS.get(reason) or _MENDS_BY_CODE.get(code, "")
    return Failure(
        exit_code,
        f"{message} ({reason or code})",
        mend,
        tuple(lines) if len(lines) != 1 or lines[0] not in message else (),
    )


def _type(message: type[Message]) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)  # the stubs name two classes of which only one exists at run time
