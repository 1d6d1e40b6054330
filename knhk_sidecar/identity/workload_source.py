"""Server credentials from the SPIFFE Workload API: the newest SVID and bundles, for as long as the agent gives them.

While the agent is away the last SVID stays in use until it ends, and health says so; the stream is opened again with
growing pauses. Files, where they are configured, stand in until the agent has answered for the first time, and later
whenever they hold a certificate that lives longer than the one in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Self

import structlog
from grpc import aio

from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.identity.tls import FileSource, InvalidMaterial, Material, TlsSource
from knhk_sidecar.identity.workload_api import PAUSE_FIRST, X509State, explained, keep_up, longer, workload_api

FIRST_SECONDS: Final = 30.0  # for the first SVID; an entry that was just made reaches the agent within five seconds
FALLBACK_SECONDS: Final = 5.0  # the same when files can stand in
STAYS: Final = "the last SVID stays in use until it ends"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent and what we want of it. `spiffe_id` empty: its default SVID; `federates_with`: whose bundles count."""

    endpoint: str
    spiffe_id: str = ""
    federates_with: frozenset[TrustDomain] = frozenset()

    async def states(self) -> AsyncGenerator[Material, None]:
        """Our material now and after each change, until the stream breaks. Raises InvalidMaterial, grpc's errors."""
        async with workload_api(self.endpoint) as api, aclosing(api.x509()) as states:
            async for state in states:
                yield self.chosen(state)

    def chosen(self, state: X509State) -> Material:
        """Our part of what the agent knows."""
        material = state.of(self.spiffe_id)
        wanted = {domain: pem for domain, pem in material.federated.items() if domain in self.federates_with}
        return replace(material, federated=wanted)

    async def first(self) -> Material:
        """What the stream begins with."""
        async with aclosing(self.states()) as states:
            return await anext(states)


class WorkloadSource(TlsSource):
    """Material from an agent, with files to stand in."""

    def __init__(self, agent: Agent, material: Material, files: FileSource | None = None) -> None:
        if material.spiffe_id is None:
            raise InvalidMaterial("the server's certificate has no SPIFFE id")
        super().__init__(material, material.spiffe_id.trust_domain)
        self._agent = agent
        self._files = files

    @classmethod
    async def open(cls, agent: Agent, files: FileSource | None = None) -> Self:
        """Waits for the first SVID. Raises InvalidMaterial when none came in time and no files stand in."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (FIRST_SECONDS if files is None else FALLBACK_SECONDS)
        pause, told = PAUSE_FIRST, ""
        while True:
            try:
                async with asyncio.timeout_at(until):
                    return cls(agent, await agent.first(), files)
            except (aio.AioRpcError, InvalidMaterial, StopAsyncIteration, TimeoutError) as error:
                slow = isinstance(error, TimeoutError)
                problem = (told or "the agent does not answer") if slow else explained(error)
            if problem != told:
                told = problem
                _log.warning("workload_api_waiting", endpoint=agent.endpoint, problem=problem)
            if loop.time() + pause >= until:
                break
            await asyncio.sleep(pause)
            pause = longer(pause)
        if files is None:
            raise InvalidMaterial(f"no SVID from {agent.endpoint} within {FIRST_SECONDS:.0f} s: {told}")
        source = cls(agent, files.material, files)
        source.problem = f"{told}; the certificate is from files"
        return source

    @property
    def renewed_by_itself(self) -> bool:
        return not self.problem

    async def follow(self) -> None:
        await keep_up(self._agent.states, self._take, self._lose)

    def _take(self, material: Material) -> None:
        if material.spiffe_id is None or material.spiffe_id.trust_domain != self.trust_domain:
            raise InvalidMaterial(f"the agent's SVID is of {material.spiffe_id}, ours of {self.trust_domain}")
        if self.problem:
            _log.info("workload_api_back", endpoint=self._agent.endpoint)
            self.problem = ""
        if material != self.material:
            self.adopt(material)

    def _lose(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            _log.warning("workload_api_lost", problem=problem, consequence=STAYS)
        self._stand_in()

    def _stand_in(self) -> None:
        """Files that were renewed meanwhile. Those of another trust domain vouch for nobody here."""
        files = self._files
        if files is None:
            return
        try:
            files.refresh()
            own = files.material.spiffe_id
            ours = own is not None and own.trust_domain == self.trust_domain
            if ours and files.material.not_after > self.material.not_after:
                self.adopt(files.material)
        except Exception as error:  # noqa: BLE001  # the agent is asked again whatever the files are
            _log.error("tls_material_refused", problem=repr(error), consequence=STAYS, exc_info=error)
