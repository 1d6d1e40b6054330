"""The stages in their order, and the services inside them. gRPC and REST both call `run`; there is no other way in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from knhk_sidecar.api.services import function_of
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.certificate import LeafCheck
from knhk_sidecar.identity.grants import Rate
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline.admission import Admit
from knhk_sidecar.pipeline.audit import Audit
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.memory import Memory
from knhk_sidecar.pipeline.precedence import CLASSES, NAMES
from knhk_sidecar.pipeline.rates import Rates, Throttle
from knhk_sidecar.pipeline.stages import Authorize, Handler, Identify, Invoke, Observe, Translate
from knhk_sidecar.telemetry.counters import Counters, Family
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import Like, Operation

if TYPE_CHECKING:
    from knhk_sidecar.identity.jwt_check import TokenCheck


@dataclass(frozen=True, slots=True)
class Limits:
    """What Admit and Throttle allow, and the deadline of callers that set none (ns). No `rate`: nobody is counted."""

    in_flight: int = 256
    queued: int = 512
    waiting: int = 1_024
    streams_per_connection: int = 16
    timeout: int = 5_000_000_000
    stream_messages: int = 1_000_000
    rate: Rate | None = None

    @classmethod
    def of(cls, config: SidecarConfig) -> Limits:
        """From the settings."""
        return cls(
            config.max_in_flight,
            config.max_queued,
            config.max_waiting,
            config.max_streams_per_connection,
            config.request_timeout_ms * 1_000_000,
            config.max_stream_messages,
            Rate(config.rate_per_second, config.rate_burst) if config.rate_per_second else None,
        )


@dataclass(frozen=True, slots=True)
class Auditing:
    """Where calls that change nothing are recorded: `again` counts one like those of the same second, `full` says that
    no more can be taken. `reads`: good reads too."""

    record: Callable[[Operation, str], None]
    again: Callable[[Like], bool]
    full: Callable[[], bool]
    reads: bool = True


class Pipeline:
    """observe( audit( translate( identify( authorize( throttle( admit( handler ) ) ) ) ) ) )"""

    def __init__(
        self,
        methods: Mapping[str, Method],
        services: Mapping[str, object],
        *,
        leaves: LeafCheck | None,
        plain: Principal,
        now: Callable[[], int],
        log: Log,
        counters: Counters,
        limits: Limits = Limits(),
        tokens: TokenCheck | None = None,
        policies: Policies | None = None,
        memory: Memory | None = None,
        auditing: Auditing | None = None,
    ) -> None:
        """`services` by full proto name, their functions named like the RPCs in snake case; an RPC without one answers
        UNIMPLEMENTED. `leaves`, `plain` and `tokens` as for Identify; `now` is the engine's clock. Without `policies`
        only developers and local callers may do anything, without `auditing` only effects are in the audit; `memory`
        None: not watched.
        """
        self.methods = methods
        self._now = now
        self._timeout = limits.timeout
        invoke = Invoke(handlers_of(methods, services), self._opened if auditing is not None else None)
        admit = Admit(
            invoke.run,
            now=now,
            in_flight=limits.in_flight,
            queued=limits.queued,
            waiting=limits.waiting,
            streams_per_connection=limits.streams_per_connection,
            stream_messages=limits.stream_messages,
            memory=memory,
        )
        self._admit = admit
        self.rates = Rates(limits.rate, now) if limits.rate is not None else None
        """Who has used up what; None when nobody is counted."""
        counted = Throttle(admit.run, self.rates).run if self.rates is not None else admit.run
        authorize = Authorize(counted, policies or Policies.developer())
        identify = Identify(authorize.run, leaves, plain, tokens)
        self.takes_tokens = tokens is not None
        translate = Translate(identify.run)
        self._audit: Audit | None = None
        if auditing is not None:
            self._audit = Audit(
                translate.run,
                methods,
                record=auditing.record,
                again=auditing.again,
                full=auditing.full,
                now=now,
                reads=auditing.reads,
            )
        self._observe = Observe(translate.run if self._audit is None else self._audit.run, log, counters)
        counters.gauge("calls_in_flight", "Unary calls being executed.", lambda: admit.in_flight)
        counters.families(lambda: [self._queued()])
        counters.gauge("calls_waiting", "Calls that wait for a case.", lambda: admit.waiting)
        counters.gauge("streams_open", "Open streams.", lambda: admit.streams)
        if self.rates is not None:
            buckets = self.rates
            counters.gauge("rate_buckets", "Callers whose requests are counted just now.", lambda: len(buckets))

    def _queued(self) -> Family:
        values = [((("class", NAMES[each]),), float(self._admit.queued_of(each))) for each in CLASSES]
        return Family("calls_queued", "Unary calls that wait for their turn.", "gauge", values)

    async def run(self, call: Call, request: Request) -> Message | None:
        """The response of a unary call, None after a response stream. Raises Refusal and CancelledError only."""
        return await self._observe.run(call, request)

    def turned_away(self, method: str, peer: str, reason: str) -> None:
        """A transport has refused somebody before there was a call. `method` is what it can say of it."""
        if self._audit is not None:
            self._audit.turned_away(method, peer, reason)

    def _opened(self, call: Call, request: Request) -> None:
        if self._audit is not None:
            self._audit.opened(call, request)

    def end_streams(self, *, working: bool) -> None:
        """For going down: ends the streams that only watch; with `working` all streams, and calls that only wait."""
        self._admit.end_streams(working=working)

    def deadline(self, seconds: float | None) -> int:
        """When a call ends that began now: after `seconds`, or after the default time when its client set none."""
        return self._now() + (self._timeout if seconds is None else int(seconds * 1e9))


def handlers_of(methods: Mapping[str, Method], services: Mapping[str, object]) -> Mapping[str, Handler]:
    """The function of each RPC that its service has."""
    found: dict[str, Handler] = {}
    for path, method in methods.items():
        handler = getattr(services.get(method.service), function_of(method.name), None)
        if handler is not None:
            found[path] = cast(Handler, handler)
    return found
