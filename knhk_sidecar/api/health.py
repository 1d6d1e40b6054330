"""grpc.health.v1 for the whole server (the empty name) and for each service, with Watch.

All names have one status: that of the daemon. `leave` tells watchers NOT_SERVING and ends their streams, for an open
one would hold a graceful stop for its full time. Source: the gRPC health checking protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from grpc_health.v1 import health_pb2

from knhk_workflow import CallMeta, NotFound

SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The status of the server and who watches it."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full proto names."""
        self._names = ("", *services)
        self._status = _NOT_SERVING
        self._leaving = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """The status from now on; ignored once the server is leaving."""
        if not self._leaving:
            self._become(_SERVING if serving else _NOT_SERVING)

    def leave(self) -> None:
        """NOT_SERVING for good; every watch tells so and ends."""
        self._leaving = True
        self._become(_NOT_SERVING, always=True)

    async def check(self, request: health_pb2.HealthCheckRequest, meta: CallMeta) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for a service that is not here."""
        if request.service not in self._names:
            raise NotFound("service", request.service)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def list(self, request: health_pb2.HealthListRequest, meta: CallMeta) -> health_pb2.HealthListResponse:
        """Every name with its status."""
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=self._status) for name in self._names}
        )

    async def watch(
        self, request: health_pb2.HealthCheckRequest, meta: CallMeta
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and at each change; SERVICE_UNKNOWN for a service that is not here."""
        known = request.service in self._names
        told = None
        while True:
            changed = self._changed
            status = self._status if known else _UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue  # it may have changed while the message was on its way
            if self._leaving:
                return
            await changed.wait()

    def _become(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType, *, always: bool = False) -> None:
        if always or status != self._status:
            self._status = status
            before, self._changed = self._changed, asyncio.Event()
            before.set()
