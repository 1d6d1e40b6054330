"""How a client trusts a daemon and shows who it is: always by the newest certificates.

From files here; from a SPIFFE agent in agent.py. Where the daemon's SPIFFE id is expected, peer.py checks it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import grpc

from knhk_sidecar import files
from knhk_sidecar.client import DIRECT, Endpoint, NotReachable, WrongServer, channel_options
from knhk_sidecar.identity.spiffe_id import TrustDomain

LOOK_SECONDS: Final = 1.0  # between two looks at files
RENEW_SECONDS: Final = 300.0  # a checked channel is checked again; below every usual connection age of servers
AGAIN_SECONDS: Final = 1.0  # after a check that nobody answered, while the channel before still serves


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client has at one moment: its own certificate with the key, PEM, and whom it can verify."""

    cert: bytes | None
    key: bytes | None
    ca: bytes
    domain: TrustDomain | None = None
    """Of its own id; `ca` are that domain's authorities. None: files, whose authorities are of any domain."""
    federated: Mapping[TrustDomain, bytes] = field(default_factory=dict)

    def authorities(self, domain: TrustDomain) -> bytes:
        """Those of a domain. Raises NotReachable when they are unknown here."""
        if self.domain is None or domain == self.domain:
            return self.ca
        found = self.federated.get(domain)
        if found is None:
            raise NotReachable(
                f"the agent has no bundle of the trust domain {domain}",
                "let the entry of this workload federate with it",
            )
        return found


class Source(Protocol):
    """Where certificates come from."""

    def newest(self) -> Shown:
        """The same object as long as nothing has changed. Raises NotReachable before there was anything."""
        ...

    def close(self) -> None:
        """Lets go of what keeps it up to date."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a channel to the daemon is made now."""

    target: str
    credentials: grpc.ChannelCredentials
    options: list[tuple[str, str | int]]
    shown: Shown
    until: float = float("inf")
    """Of the monotonic clock: then the server is checked again."""

    @property
    def checked(self) -> bool:
        """Whether it leads to one certificate only."""
        return self.until < float("inf")


class Ways:
    """The way to one daemon, renewed when the certificates change, the server's check is old, or a connection is lost.

    Blocks while the server is checked: up to CHECK_SECONDS, usually some milliseconds.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._source = _source(endpoint)
        self._lock = threading.Lock()
        self._way: Way | None = None
        self._again = 0.0

    def newest(self) -> Way:
        """The same object as long as it is good. Raises NotReachable, WrongServer."""
        with self._lock:
            way, now = self._way, time.monotonic()
            if way is not None and not self.moved(way) and now < way.until:
                return way
            if way is not None and now < self._again:
                return way
            try:
                self._way = _way(self._endpoint, self._source.newest())
            except WrongServer:
                raise
            except NotReachable:
                if way is None:
                    raise
                self._again = now + AGAIN_SECONDS
                return way
            return self._way

    def moved(self, way: Way) -> bool:
        """Whether there are newer certificates than those of a way."""
        return self._source.newest() is not way.shown

    def lost(self, way: Way) -> None:
        """A connection on it has ended: the server may have got another certificate."""
        with self._lock:
            if self._way is way:
                self._way = None

    def close(self) -> None:
        """Stops keeping up."""
        self._source.close()


def _source(endpoint: Endpoint) -> Source:
    if endpoint.workload_api:
        from knhk_sidecar.agent import AgentSource  # noqa: PLC0415  # brings what commands with files do not need

        return AgentSource(endpoint.workload_api)
    return FileSource(endpoint)


def _way(endpoint: Endpoint, shown: Shown) -> Way:
    expected = endpoint.server_id or (f"spiffe://{shown.domain}" if shown.domain is not None else "")
    options = channel_options(endpoint)
    if not expected:
        credentials = grpc.ssl_channel_credentials(shown.ca, shown.key, shown.cert)
        return Way(endpoint.address, credentials, options, shown)
    from knhk_sidecar.peer import checked  # noqa: PLC0415  # as above

    server = checked(endpoint, expected, shown)
    credentials = grpc.ssl_channel_credentials(server.certificate, shown.key, shown.cert)
    # The address that was checked, over no proxy: the check has not gone over one either.
    options = [DIRECT, *(each for each in options if each[0] not in ("grpc.ssl_target_name_override", DIRECT[0]))]
    options.append(("grpc.ssl_target_name_override", server.name))
    return Way(server.target, credentials, options, shown, time.monotonic() + RENEW_SECONDS)


# ------------------------------------------------------------------------------------------------------------- sources
class FileSource:
    """PEM files that may be replaced at any time; a set that does not fit together is not taken."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.ca is not None, "a connection without authorities is plain"
        self._ca, self._cert, self._key = endpoint.ca, endpoint.cert, endpoint.key
        self._stamps = self._look()
        self._shown = Shown(read_pem(self._cert), read_pem(self._key), read_pem(self._ca) or b"")
        self._looked = time.monotonic()

    def newest(self) -> Shown:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            stamps = self._look()
            if stamps != self._stamps:
                self._take(stamps)
        return self._shown

    def close(self) -> None:
        """There is nothing to let go of."""

    def _take(self, stamps: tuple[files.Stamp, ...]) -> None:
        from knhk_sidecar.identity.tls import InvalidMaterial, TlsFiles, read_material  # noqa: PLC0415  # as above

        try:
            if self._cert is not None and self._key is not None:
                read = read_material(TlsFiles(str(self._cert), str(self._key), str(self._ca)))
                self._shown = Shown(read.cert, read.key, read.ca)
            else:
                self._shown = Shown(None, None, read_pem(self._ca) or b"")
        except (InvalidMaterial, NotReachable):
            return  # half of them is replaced: the next look sees the rest, and until then the old ones are good
        self._stamps = stamps

    def _look(self) -> tuple[files.Stamp, ...]:
        return tuple(files.stamp(path) for path in (self._ca, self._cert, self._key) if path is not None)


def read_pem(path: Path | None) -> bytes | None:
    """The file's content, None without a file. Raises NotReachable when it cannot be read."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotReachable(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
