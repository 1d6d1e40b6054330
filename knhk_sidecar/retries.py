"""When a client of the daemon makes a call again, and how long it waits before that.

    UNAVAILABLE, RESOURCE_EXHAUSTED with a push-back      the daemon says that nothing was executed, and when to come
                                                          back: that long, and a random part of it more
    UNAVAILABLE without one                               the connection broke: after a growing, random pause, and only
                                                          a call that changes nothing or carries a request_id, because
                                                          it may have been executed
    anything else                                         not at all

Never more than `attempts` in all, never beyond the call's deadline, and never when the budget is used up: then a daemon
that is down gets at most a tenth more calls than without retries. A retry that the daemon asked for costs a tenth of
that, as it comes when there is room: at most one for each call that succeeds.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, cast

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from knhk_sidecar.call_details import CallDetails

ATTEMPTS: Final = 6  # with what the daemon asks for: a caller waits about a second for its turn
BROKEN_ATTEMPTS: Final = 3  # without being asked: the connection is back at once, or somebody has to look
PAUSE_FIRST_S: Final = 0.1  # doubles; of which a random part is taken
PAUSE_MAX_S: Final = 5.0
SPREAD: Final = 0.5  # of a push-back, added at random: those refused together do not come back together
BUDGET: Final = 10.0  # retries that may be made while nothing succeeds
EARNED: Final = 0.1  # by a call that succeeds
ASKED: Final = 0.1  # what a retry costs that the daemon asked for; any other costs 1
PUSH_BACK: Final = "grpc-retry-pushback-ms"
DETAILS: Final = "grpc-status-details-bin"

Metadata = Iterable[tuple[str, str | bytes]]
_AGAIN: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Budget:
    """What may be spent on retries; shared by the calls of one client, whatever their threads."""

    def __init__(self, most: float = BUDGET) -> None:
        self._most = most
        self._left = most
        self._lock = threading.Lock()

    def spend(self, cost: float) -> bool:
        """Whether there is as much left, which is then gone."""
        with self._lock:
            if self._left < cost:
                return False
            self._left -= cost
            return True

    def earn(self) -> None:
        """A call has succeeded."""
        with self._lock:
            self._left = min(self._most, self._left + EARNED)


class Policy:
    """The rules above, for one client."""

    def __init__(
        self, attempts: int = ATTEMPTS, budget: Budget | None = None, broken_attempts: int = BROKEN_ATTEMPTS
    ) -> None:
        """`attempts` of one call in all; `broken_attempts` of one whose connection broke."""
        self.attempts = attempts
        self.broken_attempts = broken_attempts
        self.budget = budget or Budget()

    def pause(
        self, request: Message, attempt: int, code: grpc.StatusCode, trailing: Metadata, left: float | None
    ) -> float | None:
        """Seconds to wait before the next attempt; None: the call has failed. `attempt` is how many were made, `left`
        the seconds until the deadline."""
        if code not in _AGAIN or attempt >= self.attempts:
            return None
        asked = push_back(trailing)
        if asked is not None:
            wait = asked * (1 + random.random() * SPREAD)
        elif code is grpc.StatusCode.UNAVAILABLE and attempt < self.broken_attempts and repeatable(request):
            wait = random.random() * min(PAUSE_FIRST_S * 2**attempt, PAUSE_MAX_S)
        else:
            return None
        if (left is not None and wait >= left) or not self.budget.spend(1.0 if asked is None else ASKED):
            return None
        return wait


def repeatable(request: Message) -> bool:
    """Whether a call may be made again although it may have been executed."""
    return "request_id" not in request.DESCRIPTOR.fields_by_name or bool(getattr(request, "request_id"))  # noqa: B009 - any request


def push_back(trailing: Metadata) -> float | None:
    """After how many seconds the daemon wants to be asked again; None when it says nothing, or not to."""
    found = dict(trailing)
    text = found.get(PUSH_BACK)
    if text is not None:
        try:
            seconds = int(text) / 1000
        except ValueError:
            return None
        return seconds if seconds >= 0 else None
    details = found.get(DETAILS)
    return asked_delay(Status.FromString(details)) if isinstance(details, bytes) else None


def asked_delay(status: Status) -> float | None:
    """The delay of a status' RetryInfo, in seconds."""
    info = RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None


class Retries(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Makes the calls of a channel again by a policy: `grpc.intercept_channel(channel, Retries())`.

    A call that was begun with `.future()` is made again when somebody asks for its result.
    """

    def __init__(self, policy: Policy | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._policy = policy or Policy()
        self._sleep = sleep

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Message], grpc.CallFuture[Message]],
        client_call_details: grpc.ClientCallDetails,
        request: Message,
    ) -> grpc.CallFuture[Message]:
        """The first attempt, which becomes the last one."""
        given = client_call_details

        def attempt(left: float | None) -> grpc.CallFuture[Message]:
            return continuation(CallDetails(given, left), request)

        return cast("grpc.CallFuture[Message]", _Attempts(attempt, request, given.timeout, self._policy, self._sleep))


class _Attempts:
    """A call that may be made several times; what it is asked for, its newest attempt answers. Whoever cancels it ends
    the present attempt, and there is no other one."""

    def __init__(
        self,
        attempt: Callable[[float | None], grpc.CallFuture[Message]],
        request: Message,
        timeout: float | None,
        policy: Policy,
        sleep: Callable[[float], None],
    ) -> None:
        self._attempt = attempt
        self._request = request
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._policy = policy
        self._sleep = sleep
        self._lock = threading.Lock()
        self._settled = False
        self._cancelled = threading.Event()
        self._made = 1
        self._call = attempt(timeout)

    def __getattr__(self, name: str) -> object:
        return getattr(self._call, name)

    def cancel(self) -> bool:
        """Give the call up, also while the next attempt is waited for."""
        self._cancelled.set()
        return bool(self._call.cancel())  # type: ignore[no-untyped-call]  # gRPC's stubs

    def result(self, timeout: float | None = None) -> Message:
        """The answer of the last attempt. `timeout` is how long to wait for the present one."""
        self._settle(timeout)
        return self._call.result(timeout)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Likewise the error."""
        self._settle(timeout)
        return self._call.exception(timeout)  # type: ignore[call-arg]  # every call of gRPC takes one

    def code(self) -> grpc.StatusCode:
        """Likewise the status code."""
        self._settle(None)
        return self._call.code()

    def _settle(self, timeout: float | None) -> None:
        """Make the call again as long as the policy says so."""
        with self._lock:
            while not self._settled:
                error = self._call.exception(timeout)  # type: ignore[call-arg]  # every call of gRPC takes one
                if error is None:
                    self._policy.budget.earn()
                    self._settled = True
                    return
                call, ends = self._call, self._ends
                left = None if ends is None else ends - time.monotonic()
                wait = self._policy.pause(self._request, self._made, call.code(), call.trailing_metadata() or (), left)
                if wait is not None:
                    self._sleep(wait)
                if wait is None or self._cancelled.is_set():
                    self._settled = True
                    return
                self._made += 1
                self._call = self._attempt(None if ends is None else max(ends - time.monotonic(), 0.0))
                if self._cancelled.is_set():  # in this very moment
                    self._call.cancel()  # type: ignore[no-untyped-call]  # gRPC's stubs
