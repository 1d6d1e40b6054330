"""The part of AdminService that is about connectors and what they could not do."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Final

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.services.absence import EngineCalls
from knhk_sidecar.api.services.pages import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from knhk_workflow import CallMeta, ConnectorView, InvalidInput, NotFound, WorkflowEngine

LETTER_KINDS: Final = ("", "connector", "webhook")


class ConnectorCalls(EngineCalls):
    """Connectors and dead letters."""

    async def put_connector(self, request: pb.PutConnectorRequest, meta: CallMeta) -> pb.PutConnectorResponse:
        """Create or replace one. The same again changes nothing, so the idempotency key needs no record."""
        view = await self._running().put_connector(
            wire.required(request.name, "name", "billing"),
            wire.required(request.kind, "kind", "http"),
            request.config_json,
            default=request.is_default,
            meta=meta,
        )
        return pb.PutConnectorResponse(connector=wire.connector(view))

    async def list_connectors(self, request: pb.ListConnectorsRequest, meta: CallMeta) -> pb.ListConnectorsResponse:
        """By name; the token of a page is the last name on it."""
        engine = self._running()
        size = request.page_size or PAGE_SIZE_DEFAULT
        if size > PAGE_SIZE_MAX:
            raise InvalidInput.field("page_size", f"is at most {PAGE_SIZE_MAX}")
        after = _name(request.page_token)
        found = [view for view in await engine.list_connectors(meta=meta) if view.name > after]
        page = shown = found[:size]
        if request.probe:
            probed = await asyncio.gather(*(_probed(engine, view.name, meta) for view in page))
            shown = [view for view in probed if view is not None]
        return pb.ListConnectorsResponse(
            connectors=[wire.connector(view) for view in shown],
            next_page_token=base64.urlsafe_b64encode(page[-1].name.encode()).decode() if len(found) > size else "",
        )

    async def delete_connector(self, request: pb.DeleteConnectorRequest, meta: CallMeta) -> pb.DeleteConnectorResponse:
        """Remove one."""
        name = wire.required(request.name, "name", "billing")
        await self._running().delete_connector(name, force=request.force, meta=meta)
        return pb.DeleteConnectorResponse(name=name)

    async def list_dead_letters(self, request: pb.ListDeadLettersRequest, meta: CallMeta) -> pb.ListDeadLettersResponse:
        """Those of connectors; there are no webhooks yet, so none of them."""
        if request.kind not in LETTER_KINDS:
            raise InvalidInput.field("kind", f"{request.kind!r} is not a kind of dead letter", "connector or webhook")
        if request.kind == "webhook":
            return pb.ListDeadLettersResponse()
        page = await self._running().list_dead_letters(
            case_id=request.case_id,
            connector=request.target,
            page_size=request.page_size,
            page_token=request.page_token,
            meta=meta,
        )
        return pb.ListDeadLettersResponse(
            dead_letters=[wire.dead_letter(view) for view in page.items], next_page_token=page.next_token
        )

    async def retry_dead_letter(self, request: pb.RetryDeadLetterRequest, meta: CallMeta) -> pb.RetryDeadLetterResponse:
        """Make the call again."""
        letter = wire.required(request.dead_letter_id, "dead_letter_id", "1@order-17")
        view = await self._running().retry_dead_letter(letter, meta=meta)
        return pb.RetryDeadLetterResponse(dead_letter=wire.dead_letter(view))

    async def discard_dead_letter(
        self, request: pb.DiscardDeadLetterRequest, meta: CallMeta
    ) -> pb.DiscardDeadLetterResponse:
        """Go on without the effect."""
        letter = wire.required(request.dead_letter_id, "dead_letter_id", "1@order-17")
        view = await self._running().discard_dead_letter(letter, request.reason, meta=meta)
        return pb.DiscardDeadLetterResponse(dead_letter=wire.dead_letter(view))


async def _probed(engine: WorkflowEngine, name: str, meta: CallMeta) -> ConnectorView | None:
    """None when it was deleted since it was listed."""
    try:
        return await engine.probe_connector(name, meta=meta)
    except NotFound:
        return None


def _name(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInput.field(
            "page_token", "is not a token of this call", "leave it empty for the first page"
        ) from error
