"""WorkflowService: documents are verified, versioned and immutable once registered."""

from __future__ import annotations

from knhk_sidecar.api import pb, wire
from knhk_sidecar.api.services.pages import filtered
from knhk_workflow import CallMeta, InvalidInput, NotFound, Page, WorkflowEngine, WorkflowView


class WorkflowService:
    """Over the engine's definitions."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    async def register_workflow(
        self, request: pb.RegisterWorkflowRequest, meta: CallMeta
    ) -> pb.RegisterWorkflowResponse:
        """Register; the same content again is the same version."""
        text, form = wire.source(request)
        view = await self._engine.register_workflow(text, format=form, allow_unsound=request.allow_unsound, meta=meta)
        return wire.registered(view)

    async def validate_workflow(
        self, request: pb.ValidateWorkflowRequest, meta: CallMeta
    ) -> pb.ValidateWorkflowResponse:
        """What registering would say. A document that cannot be read is a finding, not an error of the call."""
        text, form = wire.source(request)
        try:
            return wire.validated(await self._engine.validate_workflow(text, format=form, meta=meta))
        except InvalidInput as unreadable:
            return wire.unreadable(unreadable)

    async def get_workflow(self, request: pb.GetWorkflowRequest, meta: CallMeta) -> pb.GetWorkflowResponse:
        """One version with its document."""
        spec_id, version = wire.spec_id(request.spec_id), request.version
        view = await self._engine.get_workflow(spec_id, version, meta=meta)
        latest = not version or view.version == await self._latest(spec_id, meta)
        return pb.GetWorkflowResponse(workflow=wire.workflow(view, latest))

    async def list_workflows(self, request: pb.ListWorkflowsRequest, meta: CallMeta) -> pb.ListWorkflowsResponse:
        """The newest version of each workflow, or every version, by id."""
        prefix, every = request.spec_id_prefix, request.all_versions

        async def fetch(size: int, token: str) -> Page[WorkflowView]:
            return await self._engine.list_workflows(all_versions=every, page_size=size, page_token=token, meta=meta)

        def keep(view: WorkflowView) -> bool:
            return view.spec_id.startswith(prefix)

        page = await filtered(
            fetch,
            keep if prefix else None,
            request.page_size,
            request.page_token,
            wire.fingerprint(prefix.encode()),
        )
        newest: dict[str, int] = {}
        for name in {view.spec_id for view in page.items} if every else ():
            newest[name] = await self._latest(name, meta)
        return pb.ListWorkflowsResponse(
            workflows=[
                wire.workflow(view, newest.get(view.spec_id, view.version) == view.version) for view in page.items
            ],
            next_page_token=page.next_token,
        )

    async def delete_workflow(self, request: pb.DeleteWorkflowRequest, meta: CallMeta) -> pb.DeleteWorkflowResponse:
        """Take one version, or all of them, out of use."""
        deleted = await self._engine.delete_workflow(wire.spec_id(request.spec_id), request.version, meta=meta)
        return pb.DeleteWorkflowResponse(spec_id=request.spec_id, deleted_versions=deleted)

    async def _latest(self, spec_id: str, meta: CallMeta) -> int:
        """The newest active version; 0 when all are deleted."""
        try:
            return (await self._engine.get_workflow(spec_id, meta=meta)).version
        except NotFound:
            return 0
