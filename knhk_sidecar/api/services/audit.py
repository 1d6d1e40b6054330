"""The part of AdminService that is about the audit: reading it, proving it, taking it away."""

from __future__ import annotations

from collections.abc import AsyncIterator

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.services.absence import EngineCalls
from knhk_sidecar.api.services.streams import closed_after
from knhk_workflow import AuditFilter, CallMeta, InvalidInput


class AuditCalls(EngineCalls):
    """Over the engine, which writes the audit; it may be absent."""

    async def list_audit(self, request: pb.ListAuditRequest, meta: CallMeta) -> pb.ListAuditResponse:
        """Newest first."""
        wanted = AuditFilter(
            request.principal,
            request.method,
            request.resource_prefix,
            request.outcome,
            wire.moment(request.after),
            wire.moment(request.before),
        )
        page = await self._running().list_audit(
            wanted, page_size=request.page_size, page_token=request.page_token, meta=meta
        )
        return pb.ListAuditResponse(
            entries=[wire.audit_entry(entry) for entry in page.items], next_page_token=page.next_token
        )

    async def get_checkpoint(self, request: pb.GetCheckpointRequest, meta: CallMeta) -> pb.GetCheckpointResponse:
        """Of every log, up to now."""
        engine = self._running()
        checkpoints = await engine.audit_checkpoints()
        return pb.GetCheckpointResponse(
            checkpoints=map(wire.checkpoint, checkpoints), public_key_pem=engine.public_key_pem()
        )

    async def get_audit_proof(self, request: pb.GetAuditProofRequest, meta: CallMeta) -> pb.GetAuditProofResponse:
        """Of an entry, or between two sizes of a log."""
        engine = self._running()
        if request.audit_id:
            if request.first_size or request.second_size:
                raise InvalidInput.field("first_size", "does not go with audit_id", "ask for one of them")
            found = await engine.audit_proof(request.audit_id, meta=meta)
            return pb.GetAuditProofResponse(
                entry=wire.audit_entry(found.entry),
                leaf_index=found.inclusion.leaf,
                hashes=[each.hex() for each in found.inclusion.path],
                checkpoint=wire.checkpoint(found.inclusion.checkpoint),
                proof_json=found.document,
            )
        if not request.first_size:
            raise InvalidInput.field("audit_id", "is missing", "give it, or first_size", code="required")
        (checkpoint,) = await engine.audit_checkpoints(shard=request.shard)
        second = request.second_size or checkpoint.size
        path = await engine.audit_consistency(request.shard, request.first_size, second)
        return pb.GetAuditProofResponse(
            hashes=[each.hex() for each in path],
            checkpoint=wire.checkpoint(checkpoint) if second == checkpoint.size else None,
        )

    async def get_receipt(self, request: pb.GetReceiptRequest, meta: CallMeta) -> pb.GetReceiptResponse:
        """Of one durable step of a case."""
        found = await self._running().receipt(wire.case_id(request.case_id), request.sequence, meta=meta)
        return pb.GetReceiptResponse(
            receipt=pb.Receipt(
                case_id=found.case_id,
                sequence=found.sequence,
                event_count=found.count,
                shard=found.shard,
                position=found.position,
                digest=found.digest.hex(),
                previous_hash=found.previous.hex(),
                hash=found.hashed.hex(),
                proof_json=found.document,
                time=wire.time(found.time),
            )
        )

    async def export_audit(
        self, request: pb.ExportAuditRequest, meta: CallMeta
    ) -> AsyncIterator[pb.ExportAuditResponse]:
        """The whole of it; that it is taken away is recorded first."""
        engine = self._running()
        await engine.audit("audit", meta=meta)
        async with closed_after(engine.export_audit(full=request.full)) as pieces:
            async for piece in pieces:
                yield pb.ExportAuditResponse(chunk=piece)
