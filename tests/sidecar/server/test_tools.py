"""An independent client of another language finds and calls everything by reflection."""

from __future__ import annotations

import asyncio
import json

import grpc.aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar


async def buf_curl(*arguments: str) -> str:
    """What `buf curl` prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        "buf", "curl", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_services_are_listed_and_called_on_the_plain_port(sidecar: Sidecar) -> None:
    url = f"http://{sidecar.addresses.grpc_plain}"
    for protocol in ("grpc-v1", "grpc-v1alpha"):
        listed = await buf_curl(
            "--http2-prior-knowledge", "--protocol", "grpc", "--reflect-protocol", protocol, "--list-services", url
        )
        assert {service.full_name for service in pb.SERVICES} <= set(listed.split())
    answer = await buf_curl(
        "--http2-prior-knowledge", "--protocol", "grpc", "--data", '{"pattern_id": 1}',
        f"{url}/knhk.sidecar.v1.PatternService/ExecutePattern",
    )  # fmt: skip
    assert json.loads(answer)["success"] is True


async def test_services_are_called_over_mtls_with_the_developers_files(sidecar: Sidecar) -> None:
    where = sidecar.addresses
    url = f"https://localhost:{where.grpc.rpartition(':')[2]}/knhk.sidecar.v1.AdminService/GetStatus"
    answer = await buf_curl(
        "--cacert", where.ca, "--cert", where.cert, "--key", where.key, "--protocol", "grpc",
        "--data", '{"omit_document_schema": true}', url,
    )  # fmt: skip
    assert json.loads(answer)["principal"] == where.spiffe_id


async def test_a_method_is_described_like_any_other_symbol(sidecar: Sidecar) -> None:
    async with grpc.aio.insecure_channel(sidecar.addresses.grpc_plain) as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        for symbol, there in (
            ("knhk.sidecar.v1.CaseService", True),
            ("knhk.sidecar.v1.CaseService.GetCase", True),
            ("knhk.sidecar.v1.CaseService.Nothing", False),
            ("nobody", False),
        ):
            await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
            answer = await stream.read()
            assert answer.HasField("file_descriptor_response") is there, symbol
        await stream.done_writing()
