"""No method of any service, unary or stream, can be reached past the stages."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.pipeline.permissions import PERMISSIONS, Permission
from tests.sidecar.server.client import ANSWER_SECONDS, code_of, developer


async def test_every_method_is_observed_and_answered_with_a_code_of_ours(sidecar: Sidecar) -> None:
    """`observe` is outermost, so that a count for a method proves that the whole chain was entered."""
    codes: dict[str, str] = {}
    async with developer(sidecar.addresses) as channel:
        for path, method in sidecar.pipeline.methods.items():
            codes[path] = await code_of(channel, method)

    def counted() -> set[str]:
        return {path for path, _ in sidecar.counters.calls()}

    async with asyncio.timeout(ANSWER_SECONDS):
        while counted() < set(codes):  # noqa: ASYNC110  # a stream that was left ends at the server a moment later
            await asyncio.sleep(0.01)
    assert counted() == set(sidecar.pipeline.methods) == set(PERMISSIONS)
    assert {code for path, code in codes.items() if code in ("UNKNOWN", "INTERNAL", "UNAUTHENTICATED")} == set()


async def test_without_identity_every_method_but_health_is_refused(guarded: Sidecar) -> None:
    async with grpc.aio.insecure_channel(guarded.addresses.health) as channel:
        codes = {
            path: await code_of(channel, method, let_in=False) for path, method in guarded.pipeline.methods.items()
        }
    for path, code in codes.items():
        if PERMISSIONS[path] is Permission.HEALTH:
            assert code == "OK", path
        else:
            assert code == "UNAUTHENTICATED", path
    assert {code for (path, code) in guarded.counters.calls() if PERMISSIONS[path] is not Permission.HEALTH} == {
        "UNAUTHENTICATED"
    }
    assert len([path for path in codes if path.startswith("/knhk.")]) == sum(len(each.methods) for each in pb.SERVICES)


async def test_a_method_that_does_not_exist_is_unimplemented(sidecar: Sidecar) -> None:
    async with developer(sidecar.addresses) as channel:
        call = channel.unary_unary("/knhk.sidecar.v1.CaseService/DropEverything", bytes, bytes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
