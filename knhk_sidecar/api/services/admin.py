"""AdminService: what runs here, how it is, and how it is set up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.services.absence import EngineCalls
from knhk_sidecar.api.services.audit import AuditCalls
from knhk_sidecar.api.services.connectors import ConnectorCalls
from knhk_sidecar.api.services.policy import PolicyCalls, PolicyView
from knhk_sidecar.api.services.streams import closed_after
from knhk_workflow import CallMeta, InvalidInput, RequestMismatch, StoreCorrupt, WorkflowEngine, prove_export

Health = Literal["healthy", "degraded", "unhealthy"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
PROBLEMS_SHOWN: Final = 100
ADVANCES_REMEMBERED: Final = 1_000  # request ids of skipped time; somebody trying things out has fewer
_HEALTH: Final = {
    "healthy": pb.HEALTH_STATE_HEALTHY,
    "degraded": pb.HEALTH_STATE_DEGRADED,
    "unhealthy": pb.HEALTH_STATE_UNHEALTHY,
}


@dataclass(frozen=True, slots=True)
class Component:
    """The health of one part of the daemon: sidecar, engine, store ..."""

    name: str
    health: Health
    message: str = ""
    checked_at: int = 0
    """Nanoseconds since the epoch; 0: not probed yet."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the operator should see it: secrets masked already."""

    key: str
    value: str
    origin: str
    """default, file, env or flag."""
    origin_name: str
    default: str
    description: str
    secret: bool


@dataclass(frozen=True, slots=True)
class Daemon:
    """What the daemon tells about itself. The composition root fills it in."""

    version: str
    instance_id: str
    started_at: int
    """Nanoseconds since the epoch."""
    region: str
    features: tuple[str, ...]
    """What works here beyond the calls, e.g. `rest`, `mtls`, `reflection`."""
    document_schema: bytes
    """JSON Schema of the workflow document."""
    request_bytes: int
    """No message to the daemon may be larger."""
    streams_per_connection: int
    """Open at once."""
    now: Callable[[], int]
    components: Callable[[], Sequence[Component]]
    settings: Callable[[], Sequence[Setting]]
    set_log_level: Callable[[str, float], str]
    """(level, seconds; 0 = until restart) -> the level before."""
    policy: PolicyView | None = None
    """Who may do what; None where nothing decides that."""


class AdminService(AuditCalls, ConnectorCalls, PolicyCalls):
    """Over the daemon's own state; the engine may be absent."""

    def __init__(self, engine: WorkflowEngine | None, daemon: Daemon, unavailable: Callable[[], Sequence[str]]) -> None:
        EngineCalls.__init__(self, engine)
        PolicyCalls.__init__(self, daemon.policy)
        self._daemon = daemon
        self._unavailable = unavailable
        self._advances: dict[tuple[str, str, str], _Advance] = {}

    async def get_status(self, request: pb.GetStatusRequest, meta: CallMeta) -> pb.GetStatusResponse:
        """The daemon at a glance. The health of the whole is that of its worst part."""
        daemon = self._daemon
        status = self._engine.status() if self._engine else None
        counts = await self._engine.count(meta=meta) if self._engine else None
        components = daemon.components()
        patterns = self._engine.list_patterns() if self._engine else ()
        return pb.GetStatusResponse(
            version=daemon.version,
            uptime=wire.length(max(0, daemon.now() - daemon.started_at)),
            engine_enabled=self._engine is not None,
            instance_id=daemon.instance_id,
            store_kind=status.store if status else "",
            counts=wire.counts(counts, status.cached_cases) if status and counts else None,
            features=sorted(daemon.features),
            unavailable_features=sorted(self._unavailable()),
            document_schema_json=b"" if request.omit_document_schema else daemon.document_schema,
            health=max((_HEALTH[part.health] for part in components), default=pb.HEALTH_STATE_HEALTHY),
            components=[
                pb.ComponentHealth(
                    name=part.name,
                    state=_HEALTH[part.health],
                    message=part.message,
                    check_time=wire.time(part.checked_at),
                )
                for part in components
            ],
            start_time=wire.time(daemon.started_at),
            principal=meta.principal,
            roles=filter(None, meta.roles),
            region=daemon.region,
            limits=wire.limits(daemon.request_bytes, daemon.streams_per_connection),
            pattern_ids=[view.pattern_id for view in patterns if view.available],
        )

    async def advance_time(self, request: pb.AdvanceTimeRequest, meta: CallMeta) -> pb.AdvanceTimeResponse:
        """Skip time, in a daemon that was started for that. A repeated request id skips nothing more."""
        engine = self._running()
        asked = request.SerializeToString(deterministic=True)
        if not request.request_id:
            return await _advanced(engine, request, meta)
        name = (meta.tenant, meta.principal, request.request_id)
        advance = self._advances.get(name)
        if advance is None:
            advance = _Advance(asked, asyncio.create_task(_advanced(engine, request, meta)))
            advance.answer.add_done_callback(lambda _: self._advance_over(name))
            self._advances[name] = advance
        elif advance.asked != asked:
            raise RequestMismatch(request.request_id)
        return await asyncio.shield(advance.answer)

    async def backup(self, request: pb.BackupRequest, meta: CallMeta) -> AsyncIterator[pb.BackupResponse]:
        """The store as one file, in pieces; other calls go on meanwhile."""
        await self._running().audit("store", meta=meta)
        async with closed_after(self._running().backup(after_token=request.after_token)) as pieces:
            async for piece in pieces:
                yield pb.BackupResponse(
                    chunk=piece.chunk,
                    record_count=piece.records,
                    record_estimate=max(piece.estimate, piece.records),
                    token=piece.token,
                    digest=piece.digest,
                )

    async def verify_history(self, request: pb.VerifyHistoryRequest, meta: CallMeta) -> pb.VerifyHistoryResponse:
        """Examine the whole store, or prove one case. What concerns other tenants is told without their ids."""
        engine = self._running()
        if request.case_id:
            return await _case_proven(engine, request.case_id, meta)
        found = await engine.verify_store()
        problems = [
            one.message if one.tenant in ("", meta.tenant) else f"{one.code} in a case of another tenant"
            for one in found.findings[:PROBLEMS_SHOWN]
        ]
        return pb.VerifyHistoryResponse(
            intact=found.intact,
            record_count=found.records,
            head_positions={end.shard: end.position for end in found.ends},
            head_hashes={end.shard: end.hashed.hex() for end in found.ends},
            problems=problems,
        )

    async def get_config(self, request: pb.GetConfigRequest, meta: CallMeta) -> pb.GetConfigResponse:
        """Every setting with its value and origin."""
        prefix = request.key_prefix
        return pb.GetConfigResponse(
            values=[
                pb.ConfigValue(
                    key=one.key,
                    value=one.value,
                    origin=one.origin,
                    origin_name=one.origin_name,
                    default_value=one.default,
                    description=one.description,
                    secret=one.secret,
                )
                for one in self._daemon.settings()
                if one.key.startswith(prefix)
            ]
        )

    async def set_log_level(self, request: pb.SetLogLevelRequest, meta: CallMeta) -> pb.SetLogLevelResponse:
        """Change a log level. Setting it twice is the same as once, so the idempotency key needs no record."""
        level = request.level.lower()
        if level not in LOG_LEVELS:
            raise InvalidInput.field(
                "level", f"{request.level!r} is not a log level", f"one of {', '.join(LOG_LEVELS)}"
            )
        seconds = wire.duration_ns(request.duration, "duration") / wire.NS_PER_S
        if request.logger:
            raise InvalidInput.field("logger", "there is one level for all loggers", "leave it empty")
        if self._engine is not None:
            await self._engine.audit(f"log-level/{level}", meta=meta)
        return pb.SetLogLevelResponse(previous_level=self._daemon.set_log_level(level, seconds), level=level)

    def _advance_over(self, name: tuple[str, str, str]) -> None:
        """What skipped time is remembered; what failed may be tried again."""
        answer = self._advances[name].answer
        if answer.cancelled() or answer.exception() is not None:
            del self._advances[name]
        ended = [each for each, advance in self._advances.items() if advance.answer.done()]
        for oldest in ended[: len(ended) - ADVANCES_REMEMBERED]:
            del self._advances[oldest]


@dataclass(frozen=True, slots=True)
class _Advance:
    """A request to skip time, and its answer, which may be on its way."""

    asked: bytes
    answer: asyncio.Task[pb.AdvanceTimeResponse]


async def _advanced(engine: WorkflowEngine, request: pb.AdvanceTimeRequest, meta: CallMeta) -> pb.AdvanceTimeResponse:
    how_far = request.WhichOneof("how_far")
    if how_far == "duration":
        seconds = wire.duration_ns(request.duration, "duration") / wire.NS_PER_S
        view = await engine.advance_time(seconds, meta=meta)
    elif how_far == "until":
        view = await engine.advance_time(until=wire.moment(request.until), meta=meta)
    elif request.to_next:
        view = await engine.advance_time(meta=meta)
    else:
        raise InvalidInput.field("duration", "is missing", "expected duration, until or to_next", code="required")
    return pb.AdvanceTimeResponse(time=wire.time(view.now), stop_count=view.stops, next_time=wire.time(view.next))


async def _case_proven(engine: WorkflowEngine, case_id: str, meta: CallMeta) -> pb.VerifyHistoryResponse:
    try:
        proof = prove_export(await engine.export_case(case_id, meta=meta))
    except StoreCorrupt as error:
        return pb.VerifyHistoryResponse(intact=False, problems=[error.message])
    return pb.VerifyHistoryResponse(
        intact=not proof.problem,
        record_count=proof.records,
        head_positions={0: proof.position},
        head_hashes={0: proof.hash},
        problems=[proof.problem] if proof.problem else [],
    )
