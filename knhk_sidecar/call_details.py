"""What gRPC knows of a call of ours before it is made, as an interceptor hands it on."""

from __future__ import annotations

from collections.abc import Sequence

import grpc


class CallDetails(grpc.ClientCallDetails):
    """A call's details, changed: another deadline, more metadata."""

    def __init__(
        self, given: grpc.ClientCallDetails, timeout: float | None, more: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        """`timeout` in seconds, None: none. `more` comes after the metadata that the call has."""
        self.method = given.method
        self.timeout = timeout
        self.metadata = (*(given.metadata or ()), *more) if more else given.metadata
        self.credentials = given.credentials
        self.wait_for_ready = given.wait_for_ready
        self.compression = given.compression
