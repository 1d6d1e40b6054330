"""The daemon put together: the only module that chooses implementations, and the life from start to drain.

    start   store and engine -> identity -> pipeline -> listeners -> ready
    stop    NOT_SERVING -> watches end -> calls finish -> listeners close -> journal flushed, store released

The store comes first: a second daemon on the same directory must fail before it touches anything of the first.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

import structlog

from knhk_sidecar import files
from knhk_sidecar.api import pb
from knhk_sidecar.api.faults import MemoryShort, RateLimited
from knhk_sidecar.api.health import SERVICE as HEALTH
from knhk_sidecar.api.health import Health
from knhk_sidecar.api.rpc import CannotListen, Listeners, RpcServer
from knhk_sidecar.api.services import Component as AdminComponent
from knhk_sidecar.api.services import Daemon, Setting, services
from knhk_sidecar.api.services import Health as AdminHealth
from knhk_sidecar.config import ConfigError, Loaded, SidecarConfig, is_loopback
from knhk_sidecar.identity import principal as principals
from knhk_sidecar.identity.policy_document import InvalidPolicy
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS, Principal
from knhk_sidecar.identity.signing_key import KEY_NAME, InvalidKey, read_key, read_or_make_key
from knhk_sidecar.identity.spiffe_id import InvalidSpiffeId, TrustDomain
from knhk_sidecar.identity.tls import FileSource, InvalidMaterial, TlsFiles, TlsSource
from knhk_sidecar.pipeline import Auditing, Limits, Method, Pipeline
from knhk_sidecar.pipeline.call import methods_of
from knhk_sidecar.pipeline.explaining import Explaining
from knhk_sidecar.pipeline.health import Component, Status
from knhk_sidecar.pipeline.memory import MIB, Memory, limit_bytes
from knhk_sidecar.service import engine_of
from knhk_sidecar.telemetry.checkpoints import CheckpointPush, audit_numbers
from knhk_sidecar.telemetry.connections import connections
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import (
    Busy,
    DeadlineExceeded,
    InvalidInput,
    LimitExceeded,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreLocked,
    SystemClock,
    WorkflowEngine,
    WorkflowError,
    __version__,
    store_mendings,
)

if TYPE_CHECKING:
    from knhk_sidecar.handlers import Streams
    from knhk_sidecar.identity.dev_ca import DevAuthority
    from knhk_sidecar.identity.jwks_source import KeySource
    from knhk_sidecar.identity.jwt_check import TokenCheck, Trust
    from knhk_sidecar.worker import Handler

SERVICE: Final = "knhk-sidecar"
HANDLERS: Final = "knhk_sidecar.handlers"  # the entry points of functions that carry out tasks here
LOOK_SECONDS: Final = 0.5  # how late health tells a change of the engine
STREAM_GRACE_SECONDS: Final = (
    2.0  # a stream may finish the work it has, a wait may succeed; the client repeats the rest
)
EXPIRY_WARNING_SECONDS: Final = (
    3_600.0  # our own certificate ends within this: whoever rotates it has failed repeatedly
)

NEVER_RENEWED: Final = "nobody has renewed it"
RENEW_SECONDS: Final = 86_400.0  # developer certificates live for seven days

LIMITS: Final = (RateLimited.reason, Busy.reason, MemoryShort.reason, LimitExceeded.reason, DeadlineExceeded.reason)

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
EXIT_STORE: Final = 5
EXIT_LISTEN: Final = 6
EXIT_INTERRUPTED: Final = 130

Stop = Callable[[], Coroutine[object, object, None]]
"""How a part of the daemon is stopped."""

_log = structlog.get_logger("knhk_sidecar")


class CannotStart(Exception):
    """Why the daemon did not start, as one sentence, with the process's exit code and what mends it."""

    def __init__(self, message: str, exit_code: int, mend: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the daemon really is: `host:port`, file paths, ids; empty where there is none. The ready file's content."""

    grpc: str = ""
    grpc_plain: str = ""
    http: str = ""
    metrics: str = ""
    health: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    spiffe_id: str = ""
    workload_api: str = ""
    grpc_token: str = ""
    pid: int = 0


class Sidecar:
    """One daemon in this process's event loop. `start` and `stop` it once, or use it as `async with`."""

    service = SERVICE
    version = __version__

    def __init__(
        self, loaded: Loaded | SidecarConfig, *, engine: WorkflowEngine | None = None, log: Log | None = None
    ) -> None:
        """`engine` instead of the one that the settings describe; it is opened and closed here all the same."""
        self._loaded = loaded if isinstance(loaded, Loaded) else Loaded(loaded, {})
        self.config = self._loaded.config
        self._log = log or Log(self.config.log_level, self.config.log_format)  # first: what follows may have to tell
        self.engine = engine if engine is not None else engine_of(self.config)
        self.counters = Counters()
        if self.engine is not None:
            self.counters.families(partial(connections, self.engine))
            self.counters.families(partial(audit_numbers, self.engine, lambda: self._push))
        self.addresses = Addresses()
        self._level_for_now: tuple[asyncio.TimerHandle, str] | None = None
        self._clock: Callable[[], int] = self.engine.now if self.engine is not None else SystemClock().now
        self._started_at = self._clock()
        self._draining = False
        self._stops: list[Stop] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._written: list[Path] = []
        self._tls: TlsSource | None = None
        self._tokens: TokenCheck | None = None
        self._dev_keys = b""  # what the developer's Workload API says of JWT
        self._policies = Policies.developer()
        limit = limit_bytes(self.config.memory_limit_mb * MIB)
        self.memory = Memory(limit, self.config.memory_soft_percent) if limit else None
        """The memory guard; None where there is no limit."""
        self._disk = ""
        self._push: CheckpointPush | None = None
        self.pipeline: Pipeline
        self._health: Health | None = None
        self._rpc: RpcServer | None = None

    # ------------------------------------------------------------------------------------------------------------ life
    async def start(self) -> Addresses:
        """Up to ready. Raises CannotStart; nothing is left behind then."""
        try:
            return await self._start()
        except BaseException:
            try:
                await self._release()
            finally:
                self._draining = True  # nothing is left for `stop`
            raise

    async def stop(self) -> None:
        """Drains for at most drain_seconds and releases everything. Twice is fine, and so is without a start."""
        if self._draining:
            return
        self._draining = True
        if self._health is None or self._rpc is None:
            await self._release()
            return
        grace = self.config.drain_seconds
        _log.info("draining", seconds=grace)
        self._health.leave()
        self.pipeline.end_streams(working=False)
        ways: list[Stop] = [partial(self._rpc.stop, grace), *self._stops]
        stops = [asyncio.ensure_future(stop()) for stop in ways]
        await asyncio.wait(stops, timeout=min(STREAM_GRACE_SECONDS, grace / 2))
        self.pipeline.end_streams(working=True)
        await _all_stopped(stops)
        await self._release()
        _log.info("stopped")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> Addresses:
        await self._open_engine()
        identities = await self._identities()
        self._tokens = self._token_check()
        plain = self._plain_principal()
        self._policies = self._policy()
        names = [service.full_name for service in pb.SERVICES]
        health = self._health = Health(names)
        handlers = self._handlers()
        implementations: dict[str, object] = {
            **services(self.engine, self._daemon(plain)),
            HEALTH.full_name: health,
        }
        methods = {path: method for service in (*pb.SERVICES, HEALTH) for path, method in methods_of(service).items()}
        if self.config.dev or self.config.reflection_enabled:
            methods |= _add_reflection(implementations, [*names, HEALTH.full_name])
        self.pipeline = Pipeline(
            methods,
            implementations,
            leaves=self._tls.leaves if self._tls is not None else None,
            plain=plain,
            now=self._clock,
            log=self._log,
            counters=self.counters,
            limits=Limits.of(self.config),
            tokens=self._tokens,
            policies=self._policies,
            memory=self.memory,
            auditing=self._auditing(),
        )
        if self.memory is not None:
            memory = self.memory
            self.counters.gauge("memory_limit_bytes", "Memory that the daemon may use.", lambda: memory.limit_bytes)
            self.counters.gauge("memory_used_bytes", "Resident memory of the daemon.", lambda: memory.used_bytes)
        self.addresses = await self._listen(identities)
        if handlers:
            await self._start_handlers(handlers, implementations)
        self._look(health)
        self._spawn(self._keep_looking(health))
        if self._tls is not None:
            self._spawn(self._tls.follow())
        self._spawn(self._policies.follow())
        if self._push is not None:
            self._spawn(self._push.run())
        self._write_ready_files()
        gc.freeze()  # what start-up made lives as long as the process: no collection has to look at it again
        _log.info("ready", version=__version__, **_where(self.addresses))
        return self.addresses

    async def _open_engine(self) -> None:
        if self.engine is None:
            return
        path = self.config.store_path
        known = len(store_mendings(path))
        try:
            await self.engine.open()
        except StoreLocked as error:
            mend = "stop the other process, or give this one its own directory"
            raise CannotStart(f"the store {path} is in use: {error.message}", EXIT_STORE, mend) from error
        except StoreFormat as error:
            mend = "use the version that made it, or another directory"
            raise CannotStart(f"{path} cannot be opened: {error.message}", EXIT_STORE, mend) from error
        except StoreCorrupt as error:
            mend = "restore a backup; keep the directory as it is for analysis"
            raise CannotStart(f"the store {path} is damaged: {error.message}", EXIT_STORE, mend) from error
        except InvalidInput as error:
            raise CannotStart(f"a connector cannot be used: {error.message}", EXIT_SETTINGS) from error
        except (StoreError, WorkflowError, OSError) as error:
            raise CannotStart(f"the store {path} cannot be opened: {error}", EXIT_STORE) from error
        for mended in store_mendings(path)[known:]:
            _log.warning(
                "store_mended",
                detail="an unfinished write was cut off the database's log; nothing acknowledged is missing",
                log=mended.log,
                kept_bytes=mended.kept_bytes,
                dropped_bytes=mended.dropped_bytes,
                original=str(Path(path) / mended.refused),
            )
        self._sign()

    def _handlers(self) -> Mapping[str, Handler]:
        """What installed packages offer to do. Raises CannotStart."""
        if self.engine is None or not self.config.handlers_enabled:
            return {}
        entries = entry_points(group=HANDLERS)
        if not entries:
            return {}
        from knhk_sidecar.handlers import Unusable, installed  # noqa: PLC0415 - only where there are any

        try:
            return installed(entries)
        except Unusable as error:
            mend = "mend or remove the package, or set handlers_enabled=false"
            raise CannotStart(str(error), EXIT_SETTINGS, mend) from error

    async def _start_handlers(self, handlers: Mapping[str, Handler], services: Mapping[str, object]) -> None:
        from knhk_sidecar.handlers import worker_of  # noqa: PLC0415

        service = cast("Streams", services[f"{pb.SERVICES[0].full_name.rpartition('.')[0]}.WorkItemService"])
        config = self.config
        name = f"handlers@{config.instance_id or socket.gethostname()}"
        worker = worker_of(handlers, service, name, config.handlers_credit, config.drain_seconds / 2)
        await worker.__aenter__()
        self._stops.append(worker.stop)
        self._spawn(worker.wait())  # should it end by itself, that is told
        _log.info("handlers", tasks=sorted(handlers))

    def _sign(self) -> None:
        """Exports and checkpoints of the audit are signed with the configured key, or with one of the store's own. A
        store in memory is gone with the process and has none."""
        config = self.config
        if self.engine is None or self.engine.status().store != "leveldb":
            return
        try:
            if config.signing_key_file:
                key = read_key(Path(config.signing_key_file))
            else:
                key = read_or_make_key(Path(config.store_path) / KEY_NAME)
        except InvalidKey as error:
            raise CannotStart(str(error), EXIT_SETTINGS, "name the right file in signing_key_file") from error
        self.engine.sign_with(key)
        if config.audit_enabled:
            self._push = CheckpointPush(
                self.engine,
                config.audit_checkpoint_directory,
                config.audit_checkpoint_url,
                config.audit_checkpoint_seconds,
            )

    def _auditing(self) -> Auditing | None:
        """Where calls without effect are recorded."""
        engine = self.engine
        if engine is None or not self.config.audit_enabled:
            return None
        return Auditing(engine.record_operation, engine.record_again, engine.audit_full, self.config.audit_reads)

    async def _identities(self) -> Addresses:
        """Loads or makes certificates; the developer's part of the addresses."""
        config = self.config
        domain = _domain("spiffe_trust_domain", config.spiffe_trust_domain) if config.spiffe_trust_domain else None
        files = TlsFiles(config.tls_cert, config.tls_key, config.tls_ca) if config.tls_cert else None
        if config.spiffe_enabled:
            self._tls = await self._agent_source(files, domain)
            return Addresses()
        if config.tls_enabled and files is not None:
            self._tls = self._file_source(files, domain)
            return Addresses()
        if not config.dev:
            return Addresses()
        from knhk_sidecar.identity import dev_ca  # noqa: PLC0415 - production never makes certificates

        try:
            authority = dev_ca.open_authority(config.dev_directory, domain or dev_ca.TRUST_DOMAIN)
            server, client = authority.issue_server(), authority.issue_client()
        except OSError as error:
            raise CannotStart(f"{config.dev_directory} cannot be written: {error.strerror}", EXIT_FAILED) from error
        self._tls = self._file_source(TlsFiles(str(server.cert), str(server.key), str(authority.ca)), domain)
        self._spawn(_renew(authority))
        return Addresses(
            ca=str(authority.ca),
            cert=str(client.cert),
            key=str(client.key),
            spiffe_id=str(client.spiffe_id),
            workload_api=await self._dev_agent(authority),
        )

    async def _dev_agent(self, authority: DevAuthority) -> str:
        """Starts the developer's Workload API; its endpoint, empty when the directory's path is too long for one."""
        from knhk_sidecar.identity.dev_agent import DevAgent  # noqa: PLC0415 - production has a real one

        agent = DevAgent(authority, authority.directory / "workload.sock")
        self._dev_keys = agent.key_set
        try:
            await agent.start()
        except OSError as error:
            _log.warning(
                "no_workload_api", problem=f"{error.filename}: {error.strerror}", mend="use a shorter --data-dir"
            )
            return ""
        self._stops.append(agent.stop)
        return agent.endpoint

    async def _agent_source(self, files: TlsFiles | None, domain: TrustDomain | None) -> TlsSource:
        from knhk_sidecar.identity.workload_source import Agent, WorkloadSource  # noqa: PLC0415 - 60 ms of imports

        config = self.config
        federated = frozenset(_domain("spiffe_federates_with", name) for name in config.federated_domains)
        agent = Agent(config.spiffe_socket, config.spiffe_id, federated)
        try:
            source = await WorkloadSource.open(agent, self._file_source(files, domain) if files is not None else None)
        except InvalidMaterial as error:
            raise CannotStart(f"the SPIFFE Workload API gave no identity: {error}", EXIT_SETTINGS) from error
        if domain is not None and domain != source.trust_domain:
            raise CannotStart(
                f"spiffe_trust_domain is {domain}, but the agent's is {source.trust_domain}",
                EXIT_SETTINGS,
                "callers of another trust domain are let in by spiffe_federates_with",
            )
        return source

    def _file_source(self, files: TlsFiles, domain: TrustDomain | None) -> FileSource:
        try:
            return FileSource(files, domain, self.config.spiffe_id)
        except InvalidMaterial as error:
            raise CannotStart(f"TLS cannot be set up: {error}", EXIT_SETTINGS) from error

    def _token_check(self) -> TokenCheck | None:
        """Which bearer tokens count; None: none does. Their keys come in the background."""
        config = self.config
        svids = config.jwt_svid_audiences or config.dev
        if not config.issuers_file and not svids:
            return None
        from knhk_sidecar.identity.jwks import InvalidKeys  # noqa: PLC0415 - 60 ms that only who takes tokens pays
        from knhk_sidecar.identity.jwt_check import TokenCheck  # noqa: PLC0415 - as above

        try:
            trusts = [*self._issuers(), *(self._svids() if svids else ())]
        except ConfigError as error:
            raise CannotStart(str(error), EXIT_SETTINGS) from error
        except InvalidKeys as error:
            raise CannotStart(f"the keys for tokens cannot be used: {error}", EXIT_SETTINGS) from error
        return TokenCheck(trusts) if trusts else None

    def _issuers(self) -> Sequence[Trust]:
        """Those of the issuers file. Raises ConfigError, InvalidKeys."""
        if not self.config.issuers_file:
            return ()
        from knhk_sidecar.identity.jwks_source import FileKeys, IssuerKeys  # noqa: PLC0415 - as above
        from knhk_sidecar.identity.jwt_check import trust_of  # noqa: PLC0415
        from knhk_sidecar.identity.oidc import read_issuers  # noqa: PLC0415

        found = []
        for name, issuer in read_issuers(self.config.issuers_file).items():
            keys: KeySource = FileKeys(name, issuer.jwks_file) if issuer.jwks_file else IssuerKeys(name, issuer)
            self._spawn(keys.follow())
            found.append(trust_of(issuer, keys))
        return found

    def _svids(self) -> Sequence[Trust]:
        """JWT-SVIDs of our own trust domain and of federated ones. Raises InvalidKeys."""
        from knhk_sidecar.identity.jwks_source import AgentBundles, AgentKeys, FileKeys  # noqa: PLC0415
        from knhk_sidecar.identity.jwt_check import trust_of_domain  # noqa: PLC0415

        config = self.config
        own = self._tls.trust_domain if self._tls is not None else TrustDomain(config.spiffe_trust_domain)
        ours = self._tls.material.spiffe_id if self._tls is not None else None
        audiences = frozenset(config.jwt_svid_audiences or (str(ours),))
        life = config.jwt_svid_lifetime_seconds
        if self._dev_keys:
            agent = AgentKeys(f"spiffe://{own}")
            agent.take(self._dev_keys)
            return [trust_of_domain(own, audiences, agent, life)]
        if config.jwt_svid_bundle:
            keys = FileKeys(f"spiffe://{own}", config.jwt_svid_bundle)
            self._spawn(keys.follow())
            return [trust_of_domain(own, audiences, keys, life)]
        if not config.spiffe_enabled:
            return ()
        others = (_domain("spiffe_federates_with", name) for name in config.federated_domains)
        bundles = AgentBundles(config.spiffe_socket, frozenset((own, *others)))
        self._spawn(bundles.follow())
        return [trust_of_domain(domain, audiences, keys, life) for domain, keys in bundles.domains.items()]

    def _plain_principal(self) -> Principal:
        """Who calls without a certificate and without a token."""
        domain = (
            self._tls.trust_domain
            if self._tls is not None
            else TrustDomain(self.config.spiffe_trust_domain or "knhk.local")
        )
        if self.config.dev:
            return principals.of_developer(domain)
        if not self.config.auth_enabled:
            return principals.of_local(domain)
        if self._tls is None and self._tokens is None:
            _log.warning(
                "nobody_can_call",
                problem="without TLS no caller has an identity; only health is answered",
                mend="set tls_enabled with tls_cert, tls_key and tls_ca, or auth_enabled=false, or use `knhk dev`",
            )
        return ANONYMOUS

    def _policy(self) -> Policies:
        """Who may do what: the file's rules, or one role for the own trust domain."""
        config = self.config
        if config.policy_file:
            try:
                return Policies.of_file(config.policy_file)
            except InvalidPolicy as error:
                mend = "mend what is listed; `knhk policy validate FILE` lists it too"
                raise CannotStart(
                    f"the policy {config.policy_file} cannot be used: {error}", EXIT_SETTINGS, mend
                ) from error
        domain = self._tls.trust_domain.name if self._tls is not None else ""
        return Policies.without_file(domain, "admin" if config.dev else config.policy_default_role)

    async def _listen(self, identities: Addresses) -> Addresses:
        config = self.config
        rpc = self._rpc = RpcServer(self.pipeline, config)
        tls = self._tls
        listeners = Listeners(
            config.address, tls.credentials() if tls else None, config.plain_listener, config.health_address
        )
        if tls is not None and config.token_address:
            credentials = tls.credentials(client_certificate=False)
            listeners = replace(listeners, token=config.token_address, token_credentials=credentials)
        try:
            real = await rpc.start(listeners)
            http = await self._listen_http() if config.http_address else ""
            metrics = await self._listen_metrics() if config.metrics_address else ""
        except CannotListen as error:
            raise CannotStart(
                str(error), EXIT_LISTEN, "stop what has the port, or choose port 0 for any free one"
            ) from error
        return Addresses(
            grpc=real.main,
            grpc_plain=real.plain,
            http=http,
            metrics=metrics,
            health=real.health,
            ca=identities.ca,
            cert=identities.cert,
            key=identities.key,
            spiffe_id=identities.spiffe_id,
            workload_api=identities.workload_api,
            grpc_token=real.token,
            pid=os.getpid(),
        )

    async def _listen_http(self) -> str:
        from knhk_sidecar.api.rest.server import RestServer  # noqa: PLC0415 - 40 ms that only a daemon with REST pays

        plain = self.config.dev or (not self.config.auth_enabled and is_loopback(self.config.http_address))
        server = RestServer(self.pipeline, self, self.config, None if plain else self._tls)
        try:
            await server.start()
        except OSError as error:
            why = error.strerror or error
            raise CannotListen(f"cannot listen on {self.config.http_address} for HTTP: {why}") from error
        self._stops.append(lambda: server.stop(self.config.drain_seconds))
        return server.address

    async def _listen_metrics(self) -> str:
        from knhk_sidecar.telemetry.exposition import Exposition  # noqa: PLC0415

        exposition = Exposition(self.counters)
        try:
            address = await exposition.start(self.config.metrics_address)
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {self.config.metrics_address} for metrics: {error.strerror}"
            ) from error
        self._stops.append(exposition.stop)
        return address

    async def _release(self) -> None:
        """Lets go of everything, in any state of the start. What does not let go is told, and keeps nothing else: the
        store above all, which the next daemon needs."""
        if self._level_for_now is not None:
            self._level_for_now[0].cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            if not self._draining:  # the start failed: nobody is connected yet
                ways = list(self._stops)
                if self._rpc is not None:
                    ways.append(partial(self._rpc.stop, 0))
                await _all_stopped([asyncio.ensure_future(stop()) for stop in ways])
            for path in self._written:
                with _told(f"{path} is left behind"):
                    path.unlink(missing_ok=True)
            if self._push is not None and self.engine is not None and self.engine.status().open:
                with _told("the last checkpoint was not pushed"):
                    await self._push.close()
        finally:
            if self.engine is not None:
                await self.engine.close()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_tell_failure)
        self._tasks.append(task)

    # ---------------------------------------------------------------------------------------------------------- health
    def components(self) -> Sequence[Component]:
        """Every part of the daemon as it is now."""
        found = [
            Component("sidecar", "Degraded" if self._draining else "Healthy", "draining" if self._draining else "")
        ]
        if self.engine is None:
            found.append(Component("engine", "Healthy", "switched off"))
        else:
            status = self.engine.status()
            found.append(
                Component("engine", "Healthy" if status.open else "Unhealthy", "" if status.open else status.detail)
            )
            found.append(Component("store", "Healthy" if status.healthy else "Unhealthy", status.detail))
            if self._disk:
                found.append(Component("disk", "Degraded", self._disk))
        if self.memory is not None:
            found.append(Component("memory", "Degraded" if self.memory.short else "Healthy", self.memory.detail))
        if self._push is not None:
            problem = self._push.problem
            found.append(Component("audit", "Degraded" if problem else "Healthy", problem))
        found.append(Component("limits", "Healthy", self._refused()))
        if self._tls is not None:
            found.append(_identity(self._tls))
        if self._tokens is not None:
            found.append(_token_keys(self._tokens.sources))
        found.append(_policy_health(self._policies))
        return found

    def _refused(self) -> str:
        """How many calls the limits have refused since the start."""
        counts = self.counters.refusals()
        told = [f"{counts[reason]:,} {reason}" for reason in LIMITS if reason in counts]
        return f"refused since the start: {', '.join(told)}" if told else ""

    def ready(self) -> tuple[bool, str]:
        """Whether calls are wanted here, and why not."""
        if self._draining:
            return False, "draining"
        bad = [f"{part.name}: {part.detail}" for part in self.components() if part.status == "Unhealthy"]
        return not bad, "; ".join(bad)

    def _look(self, health: Health) -> None:
        """What health tells, and what is too dear to find out for every call."""
        if self.memory is not None:
            was = self.memory.short
            self.memory.look()
            if self.memory.short != was:
                _log.warning("memory", short=self.memory.short, used_mb=self.memory.used_bytes // MIB)
        self._disk = self._disk_problem()
        health.set(self.ready()[0])

    def _disk_problem(self) -> str:
        """Why the store's volume is a worry; empty when it is none."""
        if self.engine is None or not self.config.disk_low_mb or self.engine.status().store != "leveldb":
            return ""
        try:
            volume = os.statvfs(self.config.store_path)
        except OSError as error:
            return f"{self.config.store_path} cannot be looked at: {error.strerror}"
        free = volume.f_bavail * volume.f_frsize // MIB
        if free >= self.config.disk_low_mb:
            return ""
        return f"the volume of {self.config.store_path} has {free} MiB left; writes are refused below 64 MiB"

    async def _keep_looking(self, health: Health) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._look(health)

    # ------------------------------------------------------------------------------------------------- what admin shows
    def _daemon(self, plain: Principal) -> Daemon:
        config = self.config
        features = [
            *(["rest"] if config.http_address else []),
            *(["mtls"] if self._tls is not None else []),
            *(["tokens"] if self._tokens is not None else []),
            *(["metrics"] if config.metrics_address else []),
            *(["reflection"] if config.dev or config.reflection_enabled else []),
            *(["dev"] if config.dev else []),
            *(["virtual-time"] if config.virtual_time else []),
            *(["policy-file"] if config.policy_file else []),
        ]
        return Daemon(
            version=__version__,
            instance_id=config.instance_id or socket.gethostname(),
            started_at=self._started_at,
            region=config.region,
            features=tuple(features),
            document_schema=resources.files("knhk_workflow").joinpath("model/schema.json").read_bytes(),
            request_bytes=config.max_message_bytes,
            streams_per_connection=config.max_streams_per_connection,
            now=self._clock,
            components=lambda: [
                AdminComponent(part.name, _ADMIN_HEALTH[part.status], part.detail, self._clock())
                for part in self.components()
            ],
            settings=self._settings,
            set_log_level=self._set_log_level,
            policy=Explaining(self._policies, plain),
        )

    def _settings(self) -> Sequence[Setting]:
        return [
            Setting(
                key=line.name,
                value=line.value,
                origin=line.origin.partition(" ")[0],
                origin_name=line.origin.partition(" ")[2],
                default=line.default,
                description=line.doc,
                secret=line.secret,
            )
            for line in self._loaded.describe()
        ]

    def _set_log_level(self, level: str, seconds: float) -> str:
        try:
            before = self._log.set_level(level)
        except ValueError as error:
            raise InvalidInput.field("level", str(error)) from error
        lasting = before
        if self._level_for_now is not None:
            timer, lasting = self._level_for_now
            timer.cancel()
            self._level_for_now = None
        if seconds > 0:
            timer = asyncio.get_running_loop().call_later(seconds, self._set_lasting_level, lasting)
            self._level_for_now = timer, lasting
        return before

    def _set_lasting_level(self, level: str) -> None:
        """The time of another one is over."""
        self._level_for_now = None
        self._log.set_level(level)

    def _write_ready_files(self) -> None:
        content = json.dumps(asdict(self.addresses), indent=2).encode() + b"\n"
        paths = [Path(self.config.ready_file)] if self.config.ready_file else []
        if self.config.dev:
            paths.append(Path(self.config.dev_directory) / "daemon.json")
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.replace(path, content, 0o600)
            except OSError as error:
                raise CannotStart(f"{path} cannot be written: {error.strerror}", EXIT_FAILED) from error
            self._written.append(path)


_ADMIN_HEALTH: Final[Mapping[Status, AdminHealth]] = {
    "Healthy": "healthy",
    "Degraded": "degraded",
    "Unhealthy": "unhealthy",
}


def main(loaded: Loaded | SidecarConfig, on_ready: Callable[[Addresses], None] | None = None) -> int:
    """Runs the daemon until it is told to stop; the process's exit code."""
    import uvloop  # noqa: PLC0415 - tests run in whatever loop they have

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(loaded, on_ready=on_ready))


async def run(loaded: Loaded | SidecarConfig, *, on_ready: Callable[[Addresses], None] | None = None) -> int:
    """Runs the daemon in this loop until SIGTERM or SIGINT and drains; a second SIGINT ends the process at once."""
    try:
        sidecar = Sidecar(loaded)
    except ConfigError as error:
        _log.error("cannot_start", problem=str(error), mend="mend the settings")
        return EXIT_SETTINGS
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if asked.is_set():
            os._exit(EXIT_INTERRUPTED)  # the journal is crash-safe: this costs nothing but politeness
        asked.set()

    loop.add_signal_handler(signal.SIGTERM, asked.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        await sidecar.start()
        if on_ready is not None:
            on_ready(sidecar.addresses)
        await asked.wait()
        await sidecar.stop()
    except CannotStart as error:
        _log.error("cannot_start", problem=str(error), mend=error.mend)
        return error.exit_code
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)
    return 0


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_task_failed", exc_info=error)


def _domain(setting: str, text: str) -> TrustDomain:
    try:
        return TrustDomain.parse(text)
    except InvalidSpiffeId as error:
        raise CannotStart(f"{setting}: {error}", EXIT_SETTINGS, "write names like example.org") from error


def _identity(tls: TlsSource) -> Component:
    """Serving until the certificate ends; before that it is told that nobody renews it."""
    left = tls.material.not_after - time.time()
    if left < 0:
        return Component("identity", "Unhealthy", f"the certificate has ended; {tls.problem or NEVER_RENEWED}")
    if tls.problem:
        return Component("identity", "Degraded", f"{tls.problem}; the certificate ends in {int(left)} s")
    if left < EXPIRY_WARNING_SECONDS and not tls.renewed_by_itself:
        return Component("identity", "Degraded", f"the certificate ends in {int(left)} s")
    return Component("identity", "Healthy")


def _token_keys(sources: Sequence[KeySource]) -> Component:
    """Never unhealthy: keys that cannot be renewed still verify, and callers with certificates need none."""
    problems = [f"{source.name}: {source.problem}" for source in sources if source.problem]
    return Component("tokens", "Degraded" if problems else "Healthy", "; ".join(problems))


def _policy_health(policies: Policies) -> Component:
    """Serving with the policy before when the newest cannot be used."""
    if policies.trouble:
        return Component("policy", "Degraded", f"{policies.trouble}; the policy before it is in force")
    return Component("policy", "Healthy")


async def _renew(authority: DevAuthority) -> None:
    """New developer certificates long before the old ones end; the listeners follow the files."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        await asyncio.to_thread(authority.issue_server)
        await asyncio.to_thread(authority.issue_client)


def _add_reflection(implementations: dict[str, object], names: Sequence[str]) -> Mapping[str, Method]:
    from knhk_sidecar.api import reflection  # noqa: PLC0415 - only where it is on

    service = reflection.Reflection(names)
    implementations[reflection.SERVICE.full_name] = implementations[reflection.NAME_OF_TODAY] = service
    return {**methods_of(reflection.SERVICE), **methods_of(reflection.SERVICE, reflection.NAME_OF_TODAY)}


async def _all_stopped(stops: Iterable[Awaitable[object]]) -> None:
    """Waits for all of them, whatever becomes of some."""
    for outcome in await asyncio.gather(*stops, return_exceptions=True):
        if isinstance(outcome, BaseException):
            _log.error("listener_did_not_stop", problem=repr(outcome))


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """What goes wrong inside is told, and nothing more."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is, the store must be released
        _log.error("not_released", problem=f"{problem}: {error!r}")


def _where(addresses: Addresses) -> dict[str, str]:
    """The listeners for the log line."""
    found = {
        "grpc": addresses.grpc,
        "grpc_plain": addresses.grpc_plain,
        "grpc_token": addresses.grpc_token,
        "http": addresses.http,
        "metrics": addresses.metrics,
        "health": addresses.health,
    }
    return {name: address for name, address in found.items() if address}
