"""The generated code: current, usable through the flat namespace, and guarded by scripts/proto."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool

from knhk_sidecar.api import pb

ROOT = Path(__file__).resolve().parents[2]
CASE_SERVICE = Path("proto/knhk/sidecar/v1/case_service.proto")


def contract(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(root / "scripts" / "contract.py"), *arguments]
    return subprocess.run(call, cwd=root, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything that the contract is made of, to spoil."""
    for name in ("proto", "knhk_sidecar/api/pb"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scripts").mkdir()
    for name in ("buf.yaml", "scripts/contract.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, check=True)


def test_generated_code_is_current_and_lint_is_clean() -> None:
    outcome = contract(ROOT, "--check")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_a_change_without_regeneration_is_found_and_mended(copy: Path) -> None:
    replace(
        copy / CASE_SERVICE, "string business_key = 6;", "string business_key = 6;\n  // A label.\n  string label = 77;"
    )
    outcome = contract(copy, "--check")
    assert outcome.returncode == 1
    assert "v1/case_service_pb2.py" in outcome.stderr
    assert contract(copy).returncode == 0
    assert contract(copy, "--check").returncode == 0


def test_a_field_without_comment_is_refused(copy: Path) -> None:
    replace(copy / CASE_SERVICE, "string business_key = 6;", "string business_key = 6;\n  string label = 77;")
    outcome = contract(copy, "--check")
    assert outcome.returncode == 1
    assert 'Field "label" should have a non-empty comment' in outcome.stdout + outcome.stderr


def test_breaking_a_released_contract_is_refused(copy: Path) -> None:
    git(copy, "init", "--quiet")
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "--message", "Release")
    git(copy, "tag", "v1.0.0")
    assert "compatible with v1.0.0" in contract(copy, "--check").stdout
    replace(copy / CASE_SERVICE, "string business_key = 6;", "uint64 business_key = 6;")
    outcome = contract(copy)
    assert outcome.returncode == 1
    assert "changed type" in outcome.stdout + outcome.stderr


def test_every_name_is_exported_once() -> None:
    assert len(pb.__all__) == len(set(pb.__all__))
    for name in pb.__all__:
        assert hasattr(pb, name)
    for file in pb.FILES:
        assert set(file.message_types_by_name) <= set(pb.__all__)


def test_descriptors_keep_the_names_of_the_wire() -> None:
    pool = descriptor_pool.Default()
    found = pool.FindFileByName("knhk/sidecar/v1/case_service.proto")
    assert found.package == "knhk.sidecar.v1"
    assert pb.RunCaseRequest.__module__ == "knhk_sidecar.api.pb.v1.case_service_pb2"


class Cases(pb.CaseServiceServicer):
    """Answers one method; what nobody wrote is UNIMPLEMENTED by the generated base."""

    async def CreateCase(self, request: pb.CreateCaseRequest, context: object) -> pb.CreateCaseResponse:  # noqa: N802
        case = pb.Case(case_id="42", spec_id=request.spec_id, state=pb.CASE_STATE_CREATED, data_json=request.data_json)
        return pb.CreateCaseResponse(case_id=case.case_id, case=case)


async def test_stub_and_handler_meet_over_a_loopback_port() -> None:
    server = grpc.aio.server()
    pb.add_CaseServiceServicer_to_server(Cases(), server)  # type: ignore[abstract]  # on purpose
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb.CaseServiceStub(channel)
            answer = await stub.CreateCase(pb.CreateCaseRequest(spec_id="order", data_json=b'{"amount":1}'))
            assert answer.case.state == pb.CASE_STATE_CREATED
            assert answer.case.data_json == b'{"amount":1}'
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetCase(pb.GetCaseRequest(case_id="42"))
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)
