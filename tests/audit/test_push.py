"""Checkpoints leave the host, to a directory or an address; an older state does not overwrite what was pushed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from knhk_sidecar.telemetry.checkpoints import SUFFIX, CheckpointPush, audit_numbers
from knhk_workflow import SigningKey, StateStore, WorkflowEngine, checkpoint_signed, read_checkpoints
from tests.audit.conftest import ALICE, SIGN, by


@asynccontextmanager
async def opened(path: Path, key: SigningKey) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(str(path))) as engine:
        engine.sign_with(key)
        await engine.register_workflow(SIGN, meta=by(ALICE, "RegisterWorkflow"))
        yield engine


async def worked(engine: WorkflowEngine, *cases: str) -> None:
    for case_id in cases:
        await engine.run_case("sign", case_id=case_id, meta=by(ALICE, "RunCase"))


async def test_a_directory_gets_the_newest_of_every_log_when_there_is_something_new(tmp_path: Path) -> None:
    key, kept = SigningKey.generate(), tmp_path / "kept"
    kept.mkdir()
    async with opened(tmp_path / "store", key) as engine:
        push = CheckpointPush(engine, str(kept), "", 10.0)
        await worked(engine, "a", "b")
        await push.push()
        (file,) = kept.iterdir()
        found = read_checkpoints(file.read_text())
        assert file.name == f"{found[0].store}{SUFFIX}"
        assert [each.shard for each in found] == [0, 65520]
        assert all(checkpoint_signed(each, key.public) for each in found)
        written = file.stat().st_mtime_ns
        await push.push()
        assert file.stat().st_mtime_ns == written
        await worked(engine, "c")
        await push.push()
        assert read_checkpoints(file.read_text())[0].size > found[0].size
        assert (push.problem, push.conflict) == ("", False)
        numbers = {family.name: family.values for family in audit_numbers(engine, lambda: push)}
        assert numbers["audit_push_failing"] == [((), 0)]
        assert len(numbers["audit_checkpoint_size"]) == 2


async def test_an_older_state_is_told_of_and_does_not_replace_what_was_pushed(tmp_path: Path) -> None:
    key, kept, path = SigningKey.generate(), tmp_path / "kept", tmp_path / "store"
    kept.mkdir()
    async with opened(path, key) as engine:
        await worked(engine, "a")
        await engine.audit_checkpoints()
    shutil.copytree(path, tmp_path / "copy")
    async with opened(path, key) as engine:
        await worked(engine, "b", "c")
        await CheckpointPush(engine, str(kept), "", 10.0).push()
    (file,) = kept.iterdir()
    evidence = file.read_text()
    async with opened(tmp_path / "copy", key) as engine:
        push = CheckpointPush(engine, str(kept), "", 10.0)
        await push.push()
        assert push.conflict
        assert "an older state was brought back" in push.problem
        await worked(engine, *(f"other-{number}" for number in range(9)))  # longer by now, and another history
        await push.push()
        assert push.conflict
        assert "not those that were there" in push.problem
        assert file.read_text() == evidence
        file.rename(tmp_path / "evidence")  # an operator has looked at it
        await push.push()
        assert (push.problem, push.conflict) == ("", False)


async def test_what_cannot_be_written_or_read_is_told_and_tried_again(tmp_path: Path) -> None:
    key, kept = SigningKey.generate(), tmp_path / "kept"
    async with opened(tmp_path / "store", key) as engine:
        push = CheckpointPush(engine, str(kept), "", 10.0)
        await push.push()
        assert "cannot be written" in push.problem
        kept.mkdir()
        await push.push()
        assert not push.problem
        (file,) = kept.iterdir()
        file.write_text("something else")
        await worked(engine, "a")
        await push.push()
        assert "left as it is" in push.problem
        assert file.read_text() == "something else"


class Receiver:
    """An HTTP server that keeps what is posted to it, and answers with `status`."""

    def __init__(self) -> None:
        self.status = b"204 No Content"
        self.bodies: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                self.bodies.append((await reader.readexactly(int(lengths[0].split(b":")[1]))).decode())
                writer.write(b"HTTP/1.1 " + self.status + b"\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()


async def test_an_address_gets_them_by_post(tmp_path: Path) -> None:
    receiver, key = Receiver(), SigningKey.generate()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with opened(tmp_path / "store", key) as engine:
        push = CheckpointPush(engine, "", f"http://127.0.0.1:{port}/log", 10.0)
        await worked(engine, "a")
        await push.push()
        assert not push.problem
        (body,) = receiver.bodies
        assert [each.shard for each in read_checkpoints(body)] == [0, 65520]
        receiver.status = b"409 Conflict"
        await worked(engine, "b")
        await push.push()
        assert push.problem.endswith("answered 409")
        receiver.status = b"200 OK"
        await push.push()
        assert not push.problem
        server.close()
        await worked(engine, "c")
        await push.close()
        assert len(receiver.bodies) >= 3
    unreachable = "http://127.0.0.1:1/log"
    async with opened(tmp_path / "store", key) as engine:
        push = CheckpointPush(engine, "", unreachable, 10.0)
        await push.push()
        assert "cannot be reached" in push.problem
        await push.close()


@pytest.mark.parametrize("address", ["http://ann:hunter2@127.0.0.1:1/hunter2?key=hunter2", "https://\u2024/?hunter2"])
async def test_what_is_wrong_with_an_address_is_told_without_its_secrets(tmp_path: Path, address: str) -> None:
    async with opened(tmp_path / "store", SigningKey.generate()) as engine:
        await worked(engine, "a")
        push = CheckpointPush(engine, "", address, 10.0)
        await push.push()
        assert "cannot be reached" in push.problem
        assert "hunter2" not in push.problem
        await push.close()


async def test_what_nobody_thought_of_does_not_end_the_pushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "store", SigningKey.generate()) as engine:
        await worked(engine, "a")
        push = CheckpointPush(engine, str(tmp_path), "", 0.01)
        with monkeypatch.context() as breaking:
            breaking.setattr(push, "_to_directory", lambda _: 1 // 0)
            running = asyncio.create_task(push.run())
            async with asyncio.timeout(10):
                while "ZeroDivisionError" not in push.problem:  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(0.01)
        numbers = {family.name: family.values for family in audit_numbers(engine, lambda: push)}
        assert numbers["audit_push_failing"] == [((), 1)]
        async with asyncio.timeout(10):
            while push.problem or not push.pushed_at:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)
        running.cancel()
