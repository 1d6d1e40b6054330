"""How many requests each principal may make: a token bucket, one for gRPC and REST together.

A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm, ITU-T I.371). Every
request moves that moment on by what it weighs; a request is refused when the moment would lie further ahead than a
whole burst takes to refill. Nothing runs in the background, and a bucket whose moment has passed is full: forgetting it
gives nobody anything. Libraries for this keep lists of timestamps, locks or a server; this is a dictionary and a
comparison, about a microsecond for each call.

What a request weighs:

    a unary call, a stream's opening, each message that a stream sends      1
    a list (RunCases, ExecutePatterns, CompleteWorkItems, a worker's results)
        1 for the first element, ELEMENT_WEIGHT for each further one: a list spares us most of what calls cost

A list may weigh more than a burst: it passes when the bucket is full, and the bucket is then in debt. A stream that
goes too fast is not ended but kept waiting: its messages stay in the connection until there are tokens for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

from google.protobuf.message import Message

from knhk_sidecar.api.faults import RateLimited
from knhk_sidecar.identity.grants import Rate
from knhk_sidecar.identity.principal import Principal
from knhk_sidecar.pipeline.call import Call, Method, Request
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.stages import Proceed

BUCKETS_MAX: Final = 65_536  # principals that are not at rest; about 200 bytes each
ELEMENT_WEIGHT: Final = 0.1  # of a list's further elements: over 90% of a call's cost is the call itself
_NS: Final = 1_000_000_000
_OVERFLOW: Final = ("", "")


class Rates:
    """The buckets of all principals."""

    def __init__(self, default: Rate, now: Callable[[], int], most: int = BUCKETS_MAX) -> None:
        """`default` is for principals without a rate of their own; `now` yields nanoseconds."""
        self._default = default
        self._each, self._burst = _nanoseconds(default)
        self._now = now
        self._most = most
        self._full_at: dict[tuple[str, str], int] = {}
        self._swept_at = 0

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, principal: Principal, weight: float = 1.0) -> int:
        """Take the tokens of one request; 0 when they were there, else in how many nanoseconds they will be."""
        rate = principal.rate
        each, burst = (self._each, self._burst) if rate is None else _nanoseconds(rate)
        cost = each if weight == 1.0 else int(weight * each)
        now = self._now()
        name = (principal.tenant, principal.name)
        full_at = self._full_at.get(name, 0)
        if full_at < now:
            if not full_at and len(self._full_at) >= self._most and not self._sweep(now):
                name = _OVERFLOW  # whoever comes when all buckets are in use shares one with the others who do
                full_at = max(self._full_at.get(name, now), now)
            else:
                full_at = now
        late = full_at - now + (min(burst, cost)) - burst
        if late > 0:
            return late
        self._full_at[name] = full_at + cost
        return 0

    def rate_of(self, principal: Principal) -> Rate:
        """What the principal may do."""
        return principal.rate or self._default

    def _sweep(self, now: int) -> bool:
        """Forget the buckets that are full; whether there is room then. At most once a second: it looks at all."""
        if now - self._swept_at >= _NS:
            self._swept_at = now
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
        return len(self._full_at) < self._most


def _nanoseconds(rate: Rate) -> tuple[int, int]:
    """From one request to the next, and until a spent burst is there again."""
    each = _NS / rate.per_second
    return int(each), int(rate.burst * each)


class Throttle:
    """The stage that counts requests. Health is never counted."""

    def __init__(self, proceed: Proceed, rates: Rates) -> None:
        self._proceed = proceed
        self._rates = rates

    async def run(self, call: Call, request: Request) -> Message | None:
        method = call.method
        if method.permission is not Permission.HEALTH:
            principal = call.principal
            if method.client_streaming:
                weight, request = 1.0, self._paced(call, cast("AsyncIterator[Message]", request))
            else:
                weight = weight_of(method, cast(Message, request)) if method.batches else 1.0
            wait = self._rates.take(principal, weight)
            if wait:
                rate = self._rates.rate_of(principal)
                raise RateLimited(principal.name, rate.per_second, rate.burst, -(-wait // 1_000_000))
        return await self._proceed(call, request)

    async def _paced(self, call: Call, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """The messages of a stream, as fast as its principal may send them."""
        method, principal, take = call.method, call.principal, self._rates.take
        async for request in requests:
            weight = weight_of(method, request)
            while wait := take(principal, weight):  # noqa: ASYNC110 - it is known how long, and somebody may be faster
                await asyncio.sleep(wait / _NS)
            yield request


def weight_of(method: Method, request: Message) -> float:
    """What one message weighs."""
    if not method.batches:
        return 1.0
    elements = sum(len(getattr(request, name)) for name in method.batches)
    return 1.0 + (elements - 1) * ELEMENT_WEIGHT if elements > 1 else 1.0
