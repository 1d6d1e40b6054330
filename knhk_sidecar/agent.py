"""A client's certificates from the SPIFFE Workload API, kept up to date on a thread.

For programs with asyncio and without it.
"""

from __future__ import annotations

import random
import threading
from typing import Final

import grpc
from spiffe._proto import workload_pb2

from knhk_sidecar.client import NotReachable
from knhk_sidecar.credentials import Shown
from knhk_sidecar.identity.tls import InvalidMaterial, Material
from knhk_sidecar.identity.workload_api import (
    HEADER,
    MESSAGE_BYTES_MAX,
    PAUSE_FIRST,
    PAUSE_MAX,
    SERVICE,
    parse_x509,
    target_of,
)

FIRST_SECONDS: Final = 10.0  # for the agent's first answer; a new entry reaches an agent within five


class AgentSource:
    """The SVID and the bundles that an agent gives this process; the last ones while the agent is away."""

    def __init__(self, endpoint: str, spiffe_id: str = "") -> None:
        """`spiffe_id` empty: the agent's first. Begins at once, on a thread of its own."""
        self._endpoint = endpoint
        self._spiffe_id = spiffe_id
        self._shown: Shown | None = None
        self._problem = "the agent does not answer"
        self._there = threading.Event()
        self._closed = threading.Event()
        try:
            self._channel = grpc.insecure_channel(
                target_of(endpoint),
                [
                    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.initial_reconnect_backoff_ms", int(PAUSE_FIRST * 1000)),
                    ("grpc.min_reconnect_backoff_ms", int(PAUSE_FIRST * 1000)),
                    ("grpc.max_reconnect_backoff_ms", int(PAUSE_MAX * 1000)),
                ],
            )
        except ValueError as error:
            raise NotReachable(str(error), "give unix:///PATH of the agent's socket") from error
        threading.Thread(target=self._follow, name="workload-api", daemon=True).start()

    def newest(self) -> Shown:
        if not self._there.wait(FIRST_SECONDS):
            raise NotReachable(
                f"no SVID from {self._endpoint} within {FIRST_SECONDS:.0f} s: {self._problem}",
                "is the agent running, and is there an entry for this process?",
            )
        assert self._shown is not None
        return self._shown

    def close(self) -> None:
        self._closed.set()
        self._channel.close()

    def _follow(self) -> None:
        fetch = self._channel.unary_stream(
            f"/{SERVICE}/FetchX509SVID",
            request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
            response_deserializer=workload_pb2.X509SVIDResponse.FromString,
        )
        pause = PAUSE_FIRST
        while not self._closed.is_set():
            try:
                for answer in fetch(workload_pb2.X509SVIDRequest(), metadata=HEADER):
                    self._take(parse_x509(answer).of(self._spiffe_id))
                    pause = PAUSE_FIRST
                self._problem = "the agent ended the stream"
            except grpc.RpcError as error:
                self._problem = f"the agent cannot be asked: {error}"
            except (InvalidMaterial, ValueError) as error:  # ValueError: the channel was closed meanwhile
                self._problem = str(error)
            self._closed.wait(pause * random.uniform(0.8, 1.0))
            pause = min(2 * pause, PAUSE_MAX)

    def _take(self, material: Material) -> None:
        assert material.spiffe_id is not None, "an agent's material has an id"
        shown = Shown(material.cert, material.key, material.ca, material.spiffe_id.trust_domain, material.federated)
        if shown != self._shown:
            self._shown = shown
            self._there.set()
