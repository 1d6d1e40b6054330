"""The connectors of one engine: those that it was made with, and those that were configured by a call.

The first are the operator's and shared by all tenants; they cannot be changed at run time. The others belong to the
tenant that put them, lie in the meta shard, and come before a shared one of the same name. All of them may only call
what the engine's allowance permits, and those that were put by a call may name only the secrets that are meant for
that.

A task that names no connector is for the default one: the tenant's, else the shared one that says so, else the only
one that there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from knhk_workflow.connectors.allowance import Allowance
from knhk_workflow.connectors.connector import CallFailed, Connector
from knhk_workflow.connectors.secrets import Vault
from knhk_workflow.connectors.settings import Kinds, Surroundings
from knhk_workflow.errors import AlreadyExists, InvalidInput, NotFound, StoreCorrupt, StoreFormat, WrongState
from knhk_workflow.model.parse import DEFAULT_CONNECTOR
from knhk_workflow.runtime.audited import audited
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.inputs import checked_id, json_object
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.problems import tell_operator
from knhk_workflow.runtime.records import CONNECTORS, ConnectorRecord, pack
from knhk_workflow.runtime.turns import Turns
from knhk_workflow.runtime.views import ConnectorView
from knhk_workflow.store import META_SHARD, Journal, Keyspace, Reads, Unit, Write
from knhk_workflow.store.keys import parse_connector

CONNECTORS_MAX: Final = 1_000  # of a tenant; each has a pool of its own
PROBE_SECONDS: Final = 5.0
HTTP: Final = "http"
UNKNOWN: Final = "no_connector"
_ALL_ROWS: Final = 100_000


class ConnectorConfig(msgspec.Struct, frozen=True):
    """One connector as it is configured. `config` is a JSON object, see `connectors/settings.py` and the kind."""

    name: str
    kind: str
    config: bytes
    default: bool = False


@dataclass(frozen=True, slots=True)
class ConnectorSetup:
    """What an engine may call, and how. An engine without one calls nobody: calls wait in its store."""

    configured: tuple[ConnectorConfig, ...] = ()
    allow: tuple[str, ...] = ()
    """Patterns scheme://host:port that connectors may call."""
    networks: tuple[str, ...] = ()
    """Networks that are not public and may be called all the same."""
    kinds: Kinds = field(default_factory=dict)
    """Kinds besides `http`."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Where secrets that are named by a variable come from."""
    secrets_directory: str = ""
    """Where secrets in files may lie, for connectors that are configured by a call."""


Told = tuple[ConnectorView, Connector]
"""What is known of a connector here, and the connector."""


class _Entry(msgspec.Struct, eq=False):
    config: ConnectorConfig
    connector: Connector
    shared: bool
    updated_at: int


class Connectors:
    """See the module."""

    def __init__(
        self,
        setup: ConnectorSetup,
        reads: Reads,
        journal: Journal,
        keyspace: Keyspace,
        clock: Clock,
        moved: Callable[[str, str], None],
    ) -> None:
        """`moved` is told of a tenant's connector that was put or deleted. Then `load`."""
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._clock = clock
        self._moved = moved
        self._kinds = setup.kinds
        allowance = Allowance(setup.allow, setup.networks)
        self._trusted = Surroundings(allowance, Vault(setup.environ, trusted=True))
        self._foreign = Surroundings(allowance, Vault(setup.environ, setup.secrets_directory))
        self._shared: dict[str, _Entry] = {}
        self._own: dict[str, dict[str, _Entry]] = {}
        self._broken: dict[tuple[str, str], str] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._turns = Turns()  # what is replaced must be what was there when that was written
        self._configured = setup.configured

    async def load(self) -> None:
        """Make those that are configured, and read those that were put by calls. Of the latter, one that this engine
        cannot make any more fails its own calls alone. Raises InvalidInput, AlreadyExists for a configured one; `close`
        closes those made before it."""
        for config in self._configured:
            if config.name in self._shared:
                raise AlreadyExists("connector", config.name)
            self._shared[config.name] = _Entry(config, self._made(config, self._trusted), True, 0)
        start, end = self._keys.connectors()
        for key, value in await self._reads.scan(start, end, limit=_ALL_ROWS):
            tenant, name = parse_connector(key)
            try:
                record = CONNECTORS.read(key, value)
            except (StoreCorrupt, StoreFormat) as error:
                self._broken[tenant, name] = error.message
                tell_operator(f"connector {name!r} of tenant {tenant!r} cannot be read", error)
                continue
            config = ConnectorConfig(name, record.kind, record.config, record.default)
            try:
                made = self._made(config, self._foreign)
            except InvalidInput as error:
                self._broken[tenant, name] = error.message
                continue
            self._own.setdefault(tenant, {})[name] = _Entry(config, made, False, record.updated_at)

    async def close(self) -> None:
        """Let go of all connections."""
        entries = [*self._shared.values(), *(each for own in self._own.values() for each in own.values())]
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(entry.connector.close() for entry in entries), *self._closing, return_exceptions=True)

    def find(self, tenant: str, name: str) -> Connector:
        """The connector that a task names. Raises CallFailed when there is none."""
        entry = self._entry(tenant, name)
        if entry is None:
            broken = self._broken.get((tenant, name))
            if broken is not None:
                raise CallFailed(UNKNOWN, f"connector {name!r} cannot be used: {broken}", permanent=True, blame=False)
            which = "there is no default connector" if name == DEFAULT_CONNECTOR else f"there is no connector {name!r}"
            raise CallFailed(UNKNOWN, f"{which}; configure it, then retry", permanent=True, blame=False)
        return entry.connector

    def _entry(self, tenant: str, name: str) -> _Entry | None:
        own = self._own.get(tenant, {})
        found = own.get(name) or self._shared.get(name)
        if found is None and name == DEFAULT_CONNECTOR:
            marked = [each for each in (*own.values(), *self._shared.values()) if each.config.default]
            everything = [*own.values(), *self._shared.values()]
            found = marked[0] if marked else everything[0] if len(everything) == 1 else None
        return found

    def views(self, tenant: str) -> Sequence[Told]:
        """The connectors that a tenant's tasks can name, by name. Calls and breakers are the outbox's to tell."""
        entries = {**self._shared, **self._own.get(tenant, {})}
        return [(self._view(entry), entry.connector) for _, entry in sorted(entries.items())]

    def everything(self) -> Sequence[Told]:
        """The connectors of all tenants."""
        entries = [*self._shared.values(), *(each for own in self._own.values() for each in own.values())]
        return [(self._view(entry), entry.connector) for entry in entries]

    async def put(self, asked: ConnectorConfig, meta: CallMeta) -> ConnectorView:
        """Create or replace a tenant's connector. The same again changes nothing. Raises InvalidInput, WrongState."""
        async with self._turns.turn():
            return await self._put(asked, meta)

    async def _put(self, asked: ConnectorConfig, meta: CallMeta) -> ConnectorView:
        checked_id(asked.name, "name")
        config = msgspec.structs.replace(asked, config=json_object(asked.config, "config_json"))
        if config.name in self._shared:
            raise WrongState(
                "connector", config.name, "configured by a call", "in the daemon's own file", "choose another name"
            )
        own = self._own.setdefault(meta.tenant, {})
        known = own.get(config.name)
        if known is not None and known.config == config:
            return self._view(known)
        if known is None and len(own) >= CONNECTORS_MAX:
            raise InvalidInput.field("name", f"there are {CONNECTORS_MAX} connectors already", "delete one")
        made = self._made(config, self._foreign)
        now = self._clock.now()
        record = ConnectorRecord(config.kind, config.config, config.default, now, meta.principal)
        writes: list[Write] = [(self._keys.connector(meta.tenant, config.name), pack(record))]
        others = [each for name, each in own.items() if config.default and name != config.name and each.config.default]
        for other in others:
            kept = other.config
            less = ConnectorRecord(kept.kind, kept.config, False, now, meta.principal)
            writes.append((self._keys.connector(meta.tenant, kept.name), pack(less)))
        entry = _Entry(config, made, False, now)

        def written(done: bool) -> None:
            if not done:
                self._let_go(made)
                return
            for other in others:
                other.config = msgspec.structs.replace(other.config, default=False)
            self._broken.pop((meta.tenant, config.name), None)
            own[config.name] = entry
            if known is not None:
                self._let_go(known.connector)
            self._moved(meta.tenant, config.name)

        try:
            appended = self._write(writes, config.name, meta, written)
        except BaseException:
            await made.close()
            raise
        await asyncio.shield(appended)
        return self._view(entry)

    def check_own(self, tenant: str, name: str) -> None:
        """Raises NotFound, or WrongState for one that calls cannot change."""
        if name in self._own.get(tenant, {}) or (tenant, name) in self._broken:
            return
        if name in self._shared:
            raise WrongState("connector", name, "configured by a call", "in the daemon's own file", "edit that")
        raise NotFound("connector", name)

    async def delete(self, name: str, meta: CallMeta) -> None:
        """Remove a tenant's connector. Raises NotFound, WrongState."""
        async with self._turns.turn():
            own = self._own.get(meta.tenant, {})
            self.check_own(meta.tenant, name)

            def written(done: bool) -> None:
                if not done:
                    return
                self._broken.pop((meta.tenant, name), None)
                gone = own.pop(name, None)
                if gone is not None:
                    self._let_go(gone.connector)
                self._moved(meta.tenant, name)

            await asyncio.shield(self._write([(self._keys.connector(meta.tenant, name), None)], name, meta, written))

    async def probe(self, tenant: str, name: str) -> Told:
        """One of them, with whether its other side can be reached."""
        entry = self._entry(tenant, name)
        if entry is None:
            raise NotFound("connector", name)
        healthy, detail = False, "it does not answer in time"
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                healthy, detail = True, await entry.connector.probe()
        except TimeoutError:
            healthy = False
        except CallFailed as failure:
            healthy, detail = False, failure.message
        except Exception as error:  # noqa: BLE001  # a connector may be anybody's code; the others are still to be told
            healthy, detail = False, f"the connector itself failed: {type(error).__name__}"
        return msgspec.structs.replace(self._view(entry), healthy=healthy, detail=detail), entry.connector

    def _write(
        self, writes: list[Write], name: str, meta: CallMeta, written: Callable[[bool], None]
    ) -> asyncio.Future[int]:
        """Queue a change, see `Turns.write`."""
        entry = audited(self._keys, META_SHARD, meta, f"connectors/{name}", self._clock.now())
        unit = Unit.aside(META_SHARD, meta.tenant, [*writes, entry.write], audits=(entry.reference,))
        return self._turns.write(self._journal.append(unit), written)

    def _made(self, config: ConnectorConfig, surroundings: Surroundings) -> Connector:
        factory = self._kinds.get(config.kind)
        if factory is None and config.kind == HTTP:
            from knhk_workflow.connectors import http  # noqa: PLC0415 - 60 ms that only an engine with connectors pays

            factory = http.make
        if factory is None:
            hint = f"there are {', '.join(sorted({HTTP, *self._kinds}))}"
            raise InvalidInput.field("kind", f"{config.kind!r} is not a kind of connector here", hint)
        return factory(config.config, surroundings)

    def _let_go(self, connector: Connector) -> None:
        """Close a connector once its calls have had the time that they may take."""

        async def later() -> None:
            try:
                await asyncio.sleep(2 * connector.timeout)  # to look a call up, and to make it
            finally:
                await connector.close()

        task = asyncio.get_running_loop().create_task(later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _view(self, entry: _Entry) -> ConnectorView:
        config = entry.config
        pool = entry.connector.pool()
        return ConnectorView(
            config.name,
            config.kind,
            config.config,
            config.default,
            entry.shared,
            entry.connector.declared,
            pool.active,
            pool.size,
            pool.waiting,
            entry.updated_at,
        )
