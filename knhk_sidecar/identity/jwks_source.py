"""Where verification keys come from, and how they stay new: an issuer over HTTPS, a file, the SPIFFE Workload API.

A source holds the last good keys. Whatever goes wrong with getting newer ones, those stay in use, and `problem` says
so: an issuer that is down stops no call whose token can be verified. Nothing here blocks the loop.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Final

import msgspec
import structlog

from knhk_sidecar import files
from knhk_sidecar.identity.jwks import InvalidKeys, KeySet, read_key_set
from knhk_sidecar.identity.oidc import Issuer, fetchable
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.identity.workload_api import keep_up, workload_api

REFRESH_SECONDS: Final = 300.0  # a key that was taken back counts this long at most while its issuer can be reached
FETCH_SECONDS: Final = 5.0  # for the discovery document and the keys together; a caller may be waiting
DOCUMENT_BYTES_MAX: Final = 256 * 1024  # of either; large providers have 20 KB
WAITING_MAX: Final = 64  # calls that wait for one fetch; made-up key ids must not pile calls up
LOOK_SECONDS: Final = 1.0  # between two looks at a file
DISCOVERY: Final = "/.well-known/openid-configuration"

_log = structlog.get_logger(__name__)


def _nobody() -> None:
    """Nothing depends on these keys yet."""


class KeySource(ABC):
    """The newest keys of one issuer or trust domain."""

    def __init__(self, name: str) -> None:
        """`name` is for people: in the log and in health."""
        self.name = name
        self.keys = KeySet()
        self.problem = "its keys have not come yet"
        """Why the keys may not be the newest; empty while all is well."""
        self.changed: Callable[[], None] = _nobody
        """Called when keys were replaced: what was verified with the old ones counts no more."""

    async def renew(self) -> None:  # noqa: B027  # most sources hear of newer keys without asking
        """A token names an unknown key: gets newer keys if that is possible now."""

    @abstractmethod
    async def follow(self) -> None:
        """Keeps the keys new, until cancelled."""

    def adopt(self, keys: KeySet) -> None:
        """From now on these count."""
        if self.problem:
            self.problem = ""
            _log.info("keys_taken", source=self.name, keys=len(keys.keys))
        if keys != self.keys:
            self.keys = keys
            self.changed()

    def lose(self, problem: str) -> None:
        """Newer keys cannot be had; those in use stay."""
        if problem != self.problem:
            self.problem = problem
            consequence = "the last keys stay in use" if self.keys.keys else "its tokens are refused"
            _log.warning("keys_not_renewed", source=self.name, problem=problem, consequence=consequence)


class IssuerKeys(KeySource):
    """The keys that an OpenID Connect issuer publishes (Discovery 1.0, section 4).

    Fetched at the start, every REFRESH_SECONDS, and when a token names an unknown key, the latter at most once per
    `refetch_seconds`. One fetch at a time; who comes meanwhile waits for it.
    """

    def __init__(self, name: str, issuer: Issuer, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name)
        self._issuer = issuer
        self._clock = clock
        self._earliest = 0.0
        self._flight: asyncio.Task[None] | None = None
        self._waiting = 0
        self._context: ssl.SSLContext | None = None

    async def renew(self) -> None:
        flight = self._flight
        if flight is None:
            if self._clock() < self._earliest:
                return
            flight = self._take_off()
        if self._waiting >= WAITING_MAX:
            return
        self._waiting += 1
        try:
            await asyncio.wait([flight])  # it has a time limit of its own; who leaves does not end it for the others
        finally:
            self._waiting -= 1

    async def follow(self) -> None:
        try:
            while True:
                await asyncio.wait([self._flight or self._take_off()])
                pause = self._issuer.refetch_seconds if self.problem else REFRESH_SECONDS
                await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # many sidecars must not come at once
        finally:
            if self._flight is not None:
                self._flight.cancel()

    def _take_off(self) -> asyncio.Task[None]:
        self._earliest = self._clock() + self._issuer.refetch_seconds
        self._flight = asyncio.create_task(self._fetch())
        self._flight.add_done_callback(self._landed)
        return self._flight

    def _landed(self, _: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                if self._context is None:
                    self._context = await asyncio.to_thread(_prepared, self._issuer.ca)
                self.adopt(await fetch_keys(self._issuer, self.name, self._context))
        except TimeoutError:
            self.lose(f"no answer within {FETCH_SECONDS:g} s")
        except (InvalidKeys, OSError) as error:  # ssl's errors are OSErrors
            self.lose(str(error))
        except Exception as error:  # noqa: BLE001  # whoever stops fetching never sees the keys that mend it
            self.lose(f"what the issuer sent cannot be used: {error!r}")


async def keys_now(name: str, issuer: Issuer) -> KeySet:
    """The keys of a configured issuer, wherever they come from. Raises InvalidKeys."""
    if issuer.jwks_file:
        return FileKeys(name, issuer.jwks_file).keys
    keys = IssuerKeys(name, issuer)
    await keys.renew()
    if keys.problem:
        raise InvalidKeys(keys.problem)
    return keys.keys


class _Discovered(msgspec.Struct):
    """Of the discovery document, what is needed."""

    issuer: str
    jwks_uri: str


async def fetch_keys(issuer: Issuer, name: str, context: ssl.SSLContext) -> KeySet:
    """What the issuer publishes now. Raises InvalidKeys with the reason, for people."""
    import httpx2  # noqa: PLC0415 - see _prepared

    limits = httpx2.Limits(max_connections=1)
    # No proxy and no credentials of the environment, and no redirects: they would lead to where nobody pointed.
    client = httpx2.AsyncClient(
        verify=context, trust_env=False, follow_redirects=False, limits=limits, timeout=FETCH_SECONDS
    )
    async with client:
        try:
            uri = issuer.jwks_uri or await _discover(client, issuer)
            raw = await _get(client, uri)
        except httpx2.HTTPError as error:
            raise InvalidKeys(f"cannot be reached: {str(error) or type(error).__name__}") from error
    try:
        return await asyncio.to_thread(read_key_set, raw, name)  # 64 keys take milliseconds
    except InvalidKeys as error:
        raise InvalidKeys(f"what {uri} answers {error}") from None


def _prepared(ca: str) -> ssl.SSLContext:
    """What a first fetch needs, on a thread: authorities are read from files, and the client is imported."""
    import httpx2  # noqa: F401, PLC0415 - 50 ms that only a daemon with issuers pays

    return ssl.create_default_context(cafile=ca or None)


async def _discover(client: object, issuer: Issuer) -> str:
    """Where the issuer says that its keys are."""
    url = issuer.issuer.rstrip("/") + DISCOVERY
    try:
        found = msgspec.json.decode(await _get(client, url), type=_Discovered)
    except msgspec.DecodeError as error:
        raise InvalidKeys(f"{url} is no discovery document: {error}") from None
    if found.issuer != issuer.issuer:
        raise InvalidKeys(f"{url} is of another issuer, {found.issuer[:255]!r}")
    # http is for issuers on this host: one elsewhere must not make us ask what only this host can.
    if not fetchable(found.jwks_uri) or (_scheme(url), _scheme(found.jwks_uri)) == ("https", "http"):
        raise InvalidKeys(f"{url} has keys at {found.jwks_uri[:255]!r}, which is no https:// address")
    return found.jwks_uri


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


async def _get(client: object, url: str) -> bytes:
    import httpx2  # noqa: PLC0415 - see _prepared

    assert isinstance(client, httpx2.AsyncClient)
    # Not compressed, so that what is counted is what there is.
    async with client.stream("GET", url, headers={"accept": "application/json", "accept-encoding": "identity"}) as got:
        if got.status_code != 200:
            raise InvalidKeys(f"{url} answers {got.status_code}")
        if got.headers.get("content-encoding", "identity") != "identity":
            raise InvalidKeys(f"{url} answers compressed, which was not asked for")
        parts: list[bytes] = []
        size = 0
        async for part in got.aiter_raw():
            size += len(part)
            if size > DOCUMENT_BYTES_MAX:
                raise InvalidKeys(f"{url} has more than {DOCUMENT_BYTES_MAX} bytes")
            parts.append(part)
    return b"".join(parts)


class FileKeys(KeySource):
    """Keys in a file that may be replaced at any time."""

    def __init__(self, name: str, path: str) -> None:
        """Reads the file. Raises InvalidKeys."""
        super().__init__(name)
        self._path = path
        self._stamp = files.stamp(path)
        self.adopt(self._read())

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                keys = await asyncio.to_thread(self._changed)
                if keys is not None:
                    self.adopt(keys)
            except InvalidKeys as error:
                self.lose(str(error))

    def _changed(self) -> KeySet | None:
        stamp = files.stamp(self._path)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        return self._read()

    def _read(self) -> KeySet:
        try:
            with open(self._path, "rb") as stream:
                raw = stream.read(DOCUMENT_BYTES_MAX + 1)
        except OSError as error:
            raise InvalidKeys(f"{self._path} cannot be read: {error.strerror}") from error
        if len(raw) > DOCUMENT_BYTES_MAX:
            raise InvalidKeys(f"{self._path} has more than {DOCUMENT_BYTES_MAX} bytes")
        try:
            return read_key_set(raw, self.name)
        except InvalidKeys as error:
            raise InvalidKeys(f"{self._path} {error}") from None


class AgentKeys(KeySource):
    """The keys of one trust domain, as its agent says to somebody else: AgentBundles, or the agent's own process."""

    def take(self, raw: bytes | None) -> None:
        """What the agent says now; None: it trusts the domain no more, so that its keys must not stay in use."""
        if raw is None:
            self.adopt(KeySet())
            self.lose("the agent has no keys of this trust domain")
            return
        try:
            self.adopt(read_key_set(raw, self.name))
        except InvalidKeys as error:
            self.lose(f"the agent's bundle {error}")

    async def follow(self) -> None:
        """Somebody else does."""


class AgentBundles:
    """The stream of JWT bundles from the SPIFFE Workload API, for the trust domains whose ids may call."""

    def __init__(self, endpoint: str, domains: frozenset[TrustDomain]) -> None:
        self._endpoint = endpoint
        self.domains: Mapping[TrustDomain, AgentKeys] = {
            domain: AgentKeys(f"spiffe://{domain}") for domain in sorted(domains, key=str)
        }

    async def follow(self) -> None:
        """Keeps the keys of every domain new, until cancelled."""
        await keep_up(self._states, self._take, self._lose)

    async def _states(self) -> AsyncGenerator[Mapping[TrustDomain, bytes], None]:
        async with workload_api(self._endpoint) as api, aclosing(api.jwt_bundles()) as states:
            async for state in states:
                yield state

    def _take(self, state: Mapping[TrustDomain, bytes]) -> None:
        """Each message is the whole state."""
        for domain, source in self.domains.items():
            source.take(state.get(domain))

    def _lose(self, problem: str) -> None:
        for source in self.domains.values():
            source.lose(problem)
