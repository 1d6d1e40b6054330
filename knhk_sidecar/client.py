"""A gRPC client of the daemon: where the daemon is, how to trust it, one stub per service; and `Worker`, which carries
out work items with Python functions (see knhk_sidecar/worker.py).

Here belongs what a program needs to reach a daemon. What commands ask and how they print the answer belongs to `cli`.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import grpc

from knhk_sidecar.api import pb
from knhk_sidecar.retries import Policy, Retries

if TYPE_CHECKING:
    from knhk_sidecar.worker import Failed as Failed
    from knhk_sidecar.worker import Job as Job
    from knhk_sidecar.worker import Refused as Refused
    from knhk_sidecar.worker import Worker as Worker

MESSAGE_BYTES_MAX: Final = (
    64 * 1024 * 1024
)  # answers may be larger than the 4 MB that the daemon accepts: a page of full cases
DEV_SERVER_NAME: Final = "localhost"  # the DNS name in the certificates of the dev CA


class NotReachable(Exception):
    """There is no daemon to talk to; `mend` says what to do."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a daemon listens. Without certificates the connection is plain, which only loopback allows."""

    address: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    """The DNS name that the server's certificate must carry; empty: the host of the address."""

    @property
    def secure(self) -> bool:
        """True when the connection is TLS."""
        return self.ca is not None


@dataclass(frozen=True, slots=True)
class Ready:
    """What a daemon wrote into its ready file; an empty string is an absent entry."""

    path: Path
    grpc: str
    grpc_plain: str
    http: str
    ca: str
    cert: str
    key: str
    spiffe_id: str
    pid: int

    @property
    def endpoint(self) -> Endpoint:
        """How to reach it: by mTLS where it says how, otherwise plain."""
        if self.grpc and self.ca and self.cert and self.key:
            return Endpoint(self.grpc, Path(self.ca), Path(self.cert), Path(self.key), DEV_SERVER_NAME)
        if self.grpc_plain:
            return Endpoint(self.grpc_plain)
        raise NotReachable(
            f"the daemon with process id {self.pid} needs a certificate, and {self.path} names none",
            "give --address with --ca, --cert and --key",
        )


def read_ready(path: Path) -> Ready:
    """The ready file of a running daemon. Raises `NotReachable` when there is none or its process has ended."""
    try:
        found = json.loads(path.read_text())
        pid = int(found["pid"])
        entries = {
            name: str(found.get(name) or "")
            for name in ("grpc", "grpc_plain", "http", "ca", "cert", "key", "spiffe_id")
        }
    except FileNotFoundError as error:
        raise NotReachable(
            f"no running daemon is known here: {path} does not exist",
            "start one with `knhk dev`, or name one with --address or --data-dir",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotReachable(f"{path} cannot be read: {error}", "remove it and start the daemon again") from error
    if not alive(pid):
        raise NotReachable(
            f"the daemon that wrote {path} (process id {pid}) has ended", "start it again with `knhk dev`"
        )
    return Ready(path=path, pid=pid, **entries)


def alive(pid: int) -> bool:
    """True when a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's, but it is there
    return True


def named_endpoint(address: str, ca: Path | None, cert: Path | None, key: Path | None, server_name: str) -> Endpoint:
    """An endpoint as given on the command line. Raises `NotReachable` when it cannot be used safely."""
    if ca is None and cert is None and key is None:
        if not is_loopback(address):
            raise NotReachable(
                f"{address} is not this host, so the connection has to be mTLS", "give --ca, --cert and --key"
            )
        return Endpoint(address)
    if ca is None or (cert is None) != (key is None):
        raise NotReachable("the certificates are incomplete", "give --ca, and --cert together with --key")
    return Endpoint(address, ca, cert, key, server_name or (DEV_SERVER_NAME if is_loopback(address) else ""))


def is_loopback(address: str) -> bool:
    """True when an address `host:port` never leaves this host."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """The services of one daemon. A context manager; connecting happens at the first call.

    Calls are made again where that is safe and the daemon has room for them, as knhk_sidecar/retries.py says.
    """

    def __init__(self, endpoint: Endpoint, retries: Policy | None = None) -> None:
        """`retries`: another policy than the usual one; `Policy(attempts=1)` makes every call once."""
        self.endpoint = endpoint
        options = channel_options(endpoint)
        credentials = credentials_of(endpoint)
        if credentials is None:
            self._channel = grpc.insecure_channel(endpoint.address, options)
        else:
            self._channel = grpc.secure_channel(endpoint.address, credentials, options)
        channel = grpc.intercept_channel(self._channel, Retries(retries))
        self.patterns = pb.PatternServiceStub(channel)
        self.workflows = pb.WorkflowServiceStub(channel)
        self.cases = pb.CaseServiceStub(channel)
        self.work = pb.WorkItemServiceStub(channel)
        self.schedules = pb.ScheduleServiceStub(channel)
        self.admin = pb.AdminServiceStub(channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


def channel_options(endpoint: Endpoint) -> list[tuple[str, str | int]]:
    """How a channel to an endpoint is made."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.enable_retries", 1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if endpoint.secure and endpoint.server_name:
        options.append(("grpc.ssl_target_name_override", endpoint.server_name))
    return options


def credentials_of(endpoint: Endpoint) -> grpc.ChannelCredentials | None:
    """The certificates of an endpoint, read now; None when the connection is plain. Raises `NotReachable`."""
    if endpoint.ca is None:
        return None
    return grpc.ssl_channel_credentials(_pem(endpoint.ca), _pem(endpoint.key), _pem(endpoint.cert))


def __getattr__(name: str) -> object:
    """What a worker needs is loaded when it is used: most commands do not."""
    if name in ("Failed", "Job", "Refused", "Worker"):
        return getattr(import_module("knhk_sidecar.worker"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotReachable(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
