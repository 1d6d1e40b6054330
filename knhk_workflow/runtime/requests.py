"""Request ids: the same request twice does its work once.

A request id is unique within (tenant, principal, method). What it did stands in a record that is part of the same
commit as the events, and that commit expects that there was none. The record lies beside what it changed, so that one
shard's commit holds both. Refusals are not kept: who tries again may succeed.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from knhk_workflow.errors import InvalidInput, NotFound, RequestMismatch
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.records import REQUESTS, RequestRecord, pack
from knhk_workflow.store import CaseKeys, Keyspace, Reads

REQUEST_ID_BYTES_MAX: Final = 128

_encode = msgspec.msgpack.Encoder().encode


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request id at work: the hash that names its record, and that of the command it must be about."""

    scope: bytes
    fingerprint: bytes
    request_id: str


def request_scope(principal: str, method: str, request_id: str) -> bytes:
    """The hash that names the record of a request."""
    return blake2b(_encode((principal, method, request_id)), digest_size=16).digest()


class Requests:
    """What the request ids of one engine did."""

    def __init__(self, reads: Reads, keyspace: Keyspace) -> None:
        self._reads = reads
        self._keys = keyspace

    def of(self, meta: CallMeta, about: object) -> Request:
        """The request id of a call, which must have one. `about` is what the command means, by whichever protocol it
        came. Raises InvalidInput for an id that is too long."""
        if len(meta.request_id.partition("#")[0].encode()) > REQUEST_ID_BYTES_MAX:  # a batch adds the element's index
            raise InvalidInput.field("request_id", f"must be at most {REQUEST_ID_BYTES_MAX} bytes", "use a UUID")
        scope = request_scope(meta.principal, meta.method, meta.request_id)
        return Request(scope, blake2b(_encode(about), digest_size=16).digest(), meta.request_id)

    def record(
        self, keys: CaseKeys, request: Request | None, sequence: int, receipt: bytes
    ) -> tuple[bytes, bytes] | None:
        """Key and value of what is kept of a request that did something to a case. None without a request id."""
        if request is None:
            return None
        record = RequestRecord(request.fingerprint, keys.case_id, sequence, receipt)
        return keys.request(request.scope), pack(record)

    def record_in(self, shard: int, tenant: str, request: Request | None, receipt: bytes) -> tuple[bytes, bytes] | None:
        """Likewise of one that did something to a shard, and to no case in particular."""
        if request is None:
            return None
        key = self._keys.request(shard, tenant, request.scope)
        return key, pack(RequestRecord(request.fingerprint, "", 0, receipt))

    async def receipt(self, shard: int, tenant: str, request: Request | None) -> bytes | None:
        """What `record_in` kept of this request id before. Raises RequestMismatch when that was something else."""
        if request is None:
            return None
        record = await self._before(self._keys.request(shard, tenant, request.scope), request)
        return record.receipt if record is not None else None

    async def find(self, request: Request, tenant: str, case_id: str) -> RequestRecord | None:
        """What this request id did to the case before, if anything. Raises RequestMismatch when that was something
        else, NotFound when the case was purged since."""
        record = await self._before(self._keys.case(tenant, case_id).request(request.scope), request)
        if record is not None and record.purged:
            raise NotFound("case", record.case_id, "it was purged since")
        return record

    async def _before(self, key: bytes, request: Request) -> RequestRecord | None:
        """What is kept of a request at its key, which must have been about the same."""
        stored = await self._reads.get(key)
        if stored is None:
            return None
        record = REQUESTS.read(key, stored)
        if record.fingerprint != request.fingerprint:
            raise RequestMismatch(request.request_id)
        return record

    async def known(self, meta: CallMeta, case_id: str) -> bool:
        """Whether the request id of a call did anything to the case before, whatever it was."""
        scope = self.of(meta, None).scope
        return await self._reads.get(self._keys.case(meta.tenant, case_id).request(scope)) is not None
