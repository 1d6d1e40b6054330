"""A gRPC client of the daemon: where the daemon is, how to trust it, one stub per service; and `Worker`, which carries
out work items with Python functions (see knhk_sidecar/worker.py).

Here belongs what a program needs to reach a daemon. What commands ask and how they print the answer belongs to `cli`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import grpc

from knhk_sidecar.api import pb
from knhk_sidecar.bearer import TokenSource, with_token
from knhk_sidecar.hosts import is_this_host
from knhk_sidecar.retries import Policy, Retries

if TYPE_CHECKING:
    from knhk_sidecar.credentials import Way, Ways
    from knhk_sidecar.worker import Failed as Failed
    from knhk_sidecar.worker import Job as Job
    from knhk_sidecar.worker import Refused as Refused
    from knhk_sidecar.worker import Worker as Worker

MESSAGE_BYTES_MAX: Final = (
    64 * 1024 * 1024
)  # answers may be larger than the 4 MB that the daemon accepts: a page of full cases
QUIET_SECONDS: Final = 1.0  # for a thread that looks every 0.2 s
CONNECT_SECONDS: Final = 5.0  # for a connection to a server that was just checked
CONNECT_ATTEMPTS: Final = 3  # a server may get another certificate between its check and the connection, but not thrice
DIRECT: Final = ("grpc.enable_http_proxy", 0)  # gRPC would send even what is for this host to the proxy of `http_proxy`
DEV_SERVER_NAME: Final = "localhost"  # the DNS name in the certificates of the dev CA


class NotReachable(Exception):
    """There is no daemon to talk to; `mend` says what to do."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


class WrongServer(NotReachable):
    """Somebody answers who is not the daemon that was expected, or cannot show that it is."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a daemon listens. Without certificates the connection is plain, which only loopback allows."""

    address: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    """The DNS name that the server's certificate must carry; empty: the host of the address; with `server_id` any."""
    server_id: str = ""
    """The SPIFFE id that the server must have, or `spiffe://` and the trust domain that it must be of. Empty: with
    `workload_api` the trust domain of our own id, otherwise the DNS name and the authorities decide alone."""
    workload_api: str = ""
    """Socket of the SPIFFE agent that certificates and authorities come from, in place of files: `unix:///PATH`."""
    token: TokenSource | None = None
    """Who calls, where no certificate says it; see bearer.py. Only over TLS, or to this host."""

    def __post_init__(self) -> None:
        if self.token is not None and not self.secure and not is_loopback(self.address):
            raise NotReachable(f"a token to {self.address} can be read on the way", "use TLS: give --ca")

    @property
    def secure(self) -> bool:
        """True when the connection is TLS."""
        return self.ca is not None or bool(self.workload_api)


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
    workload_api: str
    grpc_token: str
    pid: int

    def endpoint_for(self, token: TokenSource) -> Endpoint:
        """How to reach it with a token instead of a certificate."""
        if self.grpc_token and self.ca:
            return Endpoint(self.grpc_token, Path(self.ca), server_name=DEV_SERVER_NAME, token=token)
        if self.grpc_plain:
            return Endpoint(self.grpc_plain, token=token)
        raise NotReachable(
            f"the daemon with process id {self.pid} has no listener for tokens that {self.path} tells how to trust",
            "set its token_address, and give --address with --ca",
        )

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
            for name in (
                "grpc",
                "grpc_plain",
                "http",
                "ca",
                "cert",
                "key",
                "spiffe_id",
                "workload_api",
                "grpc_token",
            )
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


def named_endpoint(
    address: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    server_name: str,
    server_id: str = "",
    workload_api: str = "",
    token: TokenSource | None = None,
) -> Endpoint:
    """An endpoint as given on the command line. Raises `NotReachable` when it cannot be used safely."""
    if token is not None and (cert is not None or workload_api):
        raise NotReachable("a token beside a certificate says nothing", "give --token-file or a certificate")
    if workload_api:
        if (ca, cert, key) != (None, None, None):
            raise NotReachable("certificates come from an agent or from files, not both", "leave one of them out")
        return Endpoint(address, server_name=server_name, server_id=server_id, workload_api=workload_api)
    if server_id and ca is None:
        raise NotReachable("the server's id cannot be checked without authorities", "give --ca or --workload-api")
    if ca is None and cert is None and key is None:
        if not is_loopback(address):
            raise NotReachable(
                f"{address} is not this host, so the connection has to be mTLS",
                "give --ca, --cert and --key, or --ca and --token-file",
            )
        return Endpoint(address, token=token)
    if ca is None or (cert is None) != (key is None):
        raise NotReachable("the certificates are incomplete", "give --ca, and --cert together with --key")
    if not server_name and not server_id and is_loopback(address):
        server_name = DEV_SERVER_NAME
    return Endpoint(address, ca, cert, key, server_name, server_id, token=token)


def is_loopback(address: str) -> bool:
    """True when what is sent to a gRPC target (`host:port`, `unix:PATH`) never leaves this host; False for what is no
    target."""
    return address.startswith("unix:") or is_this_host(address.rpartition(":")[0].strip("[]"))


class Client:
    """The services of one daemon. A context manager; connecting happens at the first call.

    The certificates may change at any time: a service taken from the client afterwards (`client.cases.GetCase(...)`)
    uses the newest, and calls under way end on the connection that they began on. Taking a service raises NotReachable
    when certificates or server cannot be had, and WrongServer when it is not the expected one.

    Calls are made again where that is safe and the daemon has room for them, as knhk_sidecar/retries.py says.
    """

    def __init__(self, endpoint: Endpoint, retries: Policy | None = None) -> None:
        """`retries`: another policy than the usual one; `Policy(attempts=1)` makes every call once."""
        self.endpoint = endpoint
        self._retries = Retries(retries)
        self._lock = threading.Lock()
        self._ways: Ways | None = None
        self._way: Way | None = None
        self._services: _Services | None = None
        if endpoint.secure:
            from knhk_sidecar.credentials import Ways  # noqa: PLC0415  # which knows of endpoints

            self._ways = Ways(endpoint)

    @property
    def patterns(self) -> pb.PatternServiceStub:
        """PatternService."""
        return self._now().patterns

    @property
    def workflows(self) -> pb.WorkflowServiceStub:
        """WorkflowService."""
        return self._now().workflows

    @property
    def cases(self) -> pb.CaseServiceStub:
        """CaseService."""
        return self._now().cases

    @property
    def work(self) -> pb.WorkItemServiceStub:
        """WorkItemService."""
        return self._now().work

    @property
    def schedules(self) -> pb.ScheduleServiceStub:
        """ScheduleService."""
        return self._now().schedules

    @property
    def admin(self) -> pb.AdminServiceStub:
        """AdminService."""
        return self._now().admin

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._services is not None:
                self._services.close()
            if self._ways is not None:
                self._ways.close()

    def _calls(self, channel: grpc.Channel) -> grpc.Channel:
        """Calls carry the token, and each attempt of one the newest."""
        shown = channel if self.endpoint.token is None else with_token(channel, self.endpoint.token)
        return grpc.intercept_channel(shown, self._retries)

    def _now(self) -> _Services:
        with self._lock:
            if self._ways is None:
                if self._services is None:
                    channel = grpc.insecure_channel(self.endpoint.address, channel_options(self.endpoint))
                    self._services = _Services(channel, self._calls(channel))
                return self._services
            for _ in range(CONNECT_ATTEMPTS):
                way = self._ways.newest()
                if self._services is None or way is not self._way:
                    if self._services is not None:
                        self._services.retire()
                    self._way = way
                    channel = grpc.secure_channel(way.target, way.credentials, way.options)
                    lost = partial(self._ways.lost, way) if way.checked else None
                    self._services = _Services(channel, self._calls(channel), lost)
                    if not self._services.connected():
                        continue
                break
            assert self._services is not None, "there is at least one attempt"
            return self._services


class _Services:
    """A channel with its stubs. A channel that nobody refers to ends when its last call has."""

    def __init__(self, channel: grpc.Channel, calls: grpc.Channel, lost: Callable[[], None] | None = None) -> None:
        """`calls` is the channel as the stubs use it. `lost` is called once, on a thread, when the connection has ended
        or cannot be made: a server that has got another certificate is checked before the next call, which would
        fail."""
        self._channel = channel
        self._checked = lost is not None
        self._lost = lost
        self._known = threading.Event()
        if lost is not None:
            channel.subscribe(self._changed, try_to_connect=True)
        self.patterns = pb.PatternServiceStub(calls)
        self.workflows = pb.WorkflowServiceStub(calls)
        self.cases = pb.CaseServiceStub(calls)
        self.work = pb.WorkItemServiceStub(calls)
        self.schedules = pb.ScheduleServiceStub(calls)
        self.admin = pb.AdminServiceStub(calls)

    def retire(self) -> None:
        """Begins no more; what is under way goes on."""
        self._channel.unsubscribe(self._changed)

    def close(self) -> None:
        """Ends what is under way."""
        self.retire()
        if self._checked:
            self._quiet()
        self._channel.close()

    def _quiet(self) -> None:
        """Waits until gRPC's own thread looks at the connection no more, which it notices five times a second: in a
        channel that is closed under it, it dies with a traceback. There is no public way to know."""
        state = getattr(self._channel, "_connectivity_state", None)
        until = time.monotonic() + QUIET_SECONDS
        while getattr(state, "polling", False) and time.monotonic() < until:
            time.sleep(0.005)

    def connected(self) -> bool:
        """Whether a connection to a checked server stands; True of others, which are made by the first call."""
        return not self._checked or (self._known.wait(CONNECT_SECONDS) and self._lost is not None)

    def _changed(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            self._known.set()
        elif self._lost is not None and (self._known.is_set() or state is grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            lost, self._lost = self._lost, None
            lost()
            self._known.set()


def channel_options(endpoint: Endpoint) -> list[tuple[str, str | int]]:
    """How a channel to an endpoint is made."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.enable_retries", 1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if is_loopback(endpoint.address):
        options.append(DIRECT)
    if endpoint.secure and endpoint.server_name:
        options.append(("grpc.ssl_target_name_override", endpoint.server_name))
    return options


def __getattr__(name: str) -> object:
    """What a worker needs is loaded when it is used: most commands do not."""
    if name in ("Failed", "Job", "Refused", "Worker"):
        return getattr(import_module("knhk_sidecar.worker"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
