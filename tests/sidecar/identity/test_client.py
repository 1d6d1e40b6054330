"""Our own client: it knows the daemon by its SPIFFE id, and its certificates change while it works."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.app import Sidecar
from knhk_sidecar.cli.root import run
from knhk_sidecar.client import Client, Endpoint, Job, NotReachable, Worker, WrongServer
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity import dev_ca
from knhk_sidecar.identity.dev_agent import DevAgent
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.telemetry.log import Log
from tests.conftest import Budget
from tests.sidecar.identity.agent import SpokenAgent
from tests.sidecar.identity.authority import Authority, Wish
from tests.sidecar.server.client import ANY_PORT

SERVER = "spiffe://a.org/sidecar"
PATIENCE = 60.0
ONE_TASK = {
    "id": "one",
    "tasks": {"do": {"required_roles": ["clerk"]}},
    "flows": [{"from": "start", "to": "do"}, {"from": "do", "to": "end"}],
}


@asynccontextmanager
async def daemon(agent: str, **settings: int) -> AsyncIterator[Sidecar]:
    config = SidecarConfig(
        workflow_db_path=":memory:",
        spiffe_enabled=True,
        spiffe_socket=agent,
        address=ANY_PORT,
        http_address="",
        metrics_address="",
        drain_seconds=2,
        rate_limit_enabled=False,
    )
    log = Log("info", "json", io.StringIO())  # outlives the test's own stderr
    async with Sidecar(replace(config, **settings), log=log) as running:  # type: ignore[arg-type]  # of type int only
        yield running


@asynccontextmanager
async def agents(*those: DevAgent) -> AsyncIterator[None]:
    for agent in those:
        await agent.start()
    try:
        yield
    finally:
        for agent in those:
            await agent.stop()


def files(authority: dev_ca.DevAuthority, address: str, server_id: str = SERVER) -> Endpoint:
    """Everything from files."""
    svid = authority.issue("client", "/client")
    return Endpoint(address, authority.ca, svid.cert, svid.key, server_id=server_id)


def who(client: Client) -> str:
    """Whom the daemon takes us for."""
    return client.admin.GetStatus(pb.GetStatusRequest(omit_document_schema=True), timeout=PATIENCE).principal


def asked(endpoint: Endpoint) -> str:
    with Client(endpoint) as client:
        return who(client)


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not met():  # noqa: ASYNC110  # counters, which tell nobody
            await asyncio.sleep(0.01)


async def test_the_daemon_is_known_by_its_id(tmp_path: Path) -> None:
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    stranger = dev_ca.open_authority(tmp_path / "b", TrustDomain("a.org"))
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("sidecar.a.org", "localhost"))
    mine = DevAgent(ours, tmp_path / "c", path="/client")
    async with agents(agent, mine), daemon(agent.endpoint) as running:
        address = running.addresses.grpc

        async def told(endpoint: Endpoint) -> str:
            return await asyncio.to_thread(asked, endpoint)

        for good in (SERVER, "spiffe://a.org"):
            assert await told(files(ours, address, good)) == "spiffe://a.org/client"
        from_agent = Endpoint(address, workload_api=mine.endpoint)
        for endpoint in (
            from_agent,
            replace(from_agent, server_id=SERVER),
            replace(from_agent, server_name="localhost"),
        ):
            assert await told(endpoint) == "spiffe://a.org/client"

        with pytest.raises(WrongServer, match=r"is spiffe://a\.org/sidecar, not spiffe://a\.org/other"):
            await told(files(ours, address, "spiffe://a.org/other"))
        with pytest.raises(WrongServer, match="may not call here"):
            await told(files(ours, address, "spiffe://b.org"))
        with pytest.raises(WrongServer, match="cannot be verified"):
            await told(files(stranger, address))
        with pytest.raises(WrongServer, match=r"not for x\.org"):
            await told(replace(files(ours, address), server_name="x.org"))
        with pytest.raises(NotReachable, match=r"no bundle of the trust domain b\.org"):
            await told(replace(from_agent, server_id="spiffe://b.org/sidecar"))
        with pytest.raises(NotReachable, match="has a malformed path"):
            await told(files(ours, address, "spiffe://a.org/%61"))
    with pytest.raises(NotReachable, match="no answer from"):
        await asyncio.to_thread(asked, files(ours, address))


async def test_whoever_answers_after_the_check_has_to_be_the_same(tmp_path: Path) -> None:
    """Another workload of the same authority and with the same DNS name takes over the address after the check."""
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    right = DevAgent(ours, tmp_path / "r", path="/sidecar", dns=("localhost",))
    wrong = DevAgent(ours, tmp_path / "w", path="/other", dns=("localhost",))
    async with agents(right, wrong), daemon(right.endpoint) as checked, daemon(wrong.endpoint) as impostor:
        connections, taken = 0, False

        async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            hello = await reader.read(65536)
            calls = b"localhost" in hello  # only gRPC says whom it wants; the check does not
            to = (impostor if calls or taken else checked).addresses.grpc
            there, back = await asyncio.open_connection(*to.rsplit(":", 1))
            back.write(hello)
            await asyncio.gather(_pump(reader, back), _pump(there, writer))

        server = await asyncio.start_server(switch, "127.0.0.1", 0)
        async with server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(grpc.RpcError) as refused:
                await asyncio.to_thread(asked, files(ours, address))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert connections > 1
            taken = True
            with pytest.raises(WrongServer, match=r"is spiffe://a\.org/other"):
                await asyncio.to_thread(asked, files(ours, address))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass  # one side is enough
    writer.close()


async def test_a_server_without_any_dns_name(tmp_path: Path) -> None:
    """gRPC compares names: the subject's common name will do, since nothing else in the world is trusted."""
    root = Authority("root")
    lower = root.intermediate("lower")
    agent = SpokenAgent(tmp_path / "s")
    agent.say(SERVER, *lower.issue_chain(Wish(uris=(SERVER,))), root)
    cert, key = lower.issue_chain()
    endpoint = written(tmp_path, root.pem, cert, key)
    async with agent.listening(), daemon(agent.endpoint) as running:
        assert await asyncio.to_thread(asked, replace(endpoint, address=running.addresses.grpc)) == "spiffe://a.org/web"


def written(directory: Path, ca: bytes, cert: bytes, key: bytes) -> Endpoint:
    """From files with this content; the address is to come."""
    for name, content in (("ca", ca), ("cert", cert), ("key", key)):
        (directory / name).write_bytes(content)
    return Endpoint("", directory / "ca", directory / "cert", directory / "key", server_id=SERVER)


async def test_a_server_that_is_no_svid_is_refused(tmp_path: Path) -> None:
    """A certificate of the right authority with two ids, and one of them the expected."""
    root = Authority("root")
    cert, key = root.issue(Wish(uris=(SERVER, "spiffe://a.org/other"), dns=("localhost",)))
    endpoint = written(tmp_path, root.pem, *root.issue())
    server = grpc.aio.server()
    port = server.add_secure_port(ANY_PORT, grpc.ssl_server_credentials([(key, cert)], root.pem, True))
    await server.start()
    with pytest.raises(WrongServer, match="has 2 URI names"):
        await asyncio.to_thread(asked, replace(endpoint, address=f"127.0.0.1:{port}"))
    await server.stop(0)


@pytest.mark.long
async def test_both_sides_get_new_certificates_and_no_call_fails(tmp_path: Path, budget: Budget) -> None:
    """Every 250 ms on each side, and the daemon ends every connection after a second."""
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    theirs = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    mine = DevAgent(ours, tmp_path / "c", path="/client")
    async with agents(theirs, mine), daemon(theirs.endpoint, connection_age_seconds=1) as running:
        calls = max(500, budget.steps // 20)
        failed: list[str] = []
        served = threading.Semaphore(0)
        seen = set[int]()

        def work(client: Client) -> None:
            mine = 0
            while mine < calls // 4 or len(seen) < 2:
                mine += 1
                try:
                    assert who(client) == "spiffe://a.org/client"
                except grpc.RpcError as error:
                    failed.append(f"{error.code()} {error.details()}")
                seen.add(id(client._services))
                served.release()

        async def rotate() -> None:
            while True:
                await asyncio.sleep(0.25)
                theirs.renew(ours)
                mine.renew(ours)

        rotation = asyncio.create_task(rotate())
        endpoint = Endpoint(running.addresses.grpc, workload_api=mine.endpoint, server_id=SERVER)
        with Client(endpoint) as client:
            await asyncio.gather(*(asyncio.to_thread(work, client) for _ in range(4)))
        rotation.cancel()
        assert failed == []
        print(f"{calls} calls, {len(seen)} channels, 0 failed")


async def test_a_call_goes_on_while_the_certificate_changes(tmp_path: Path) -> None:
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    async with agents(agent), daemon(agent.endpoint) as running:
        with Client(files(ours, running.addresses.grpc)) as client:
            await asyncio.to_thread(register, client)
            order = pb.RunCaseRequest(spec_id="one", case_id="c")
            item = (await asyncio.to_thread(client.cases.RunCase, order)).open_work_items[0].item_id
            wait = asyncio.to_thread(client.cases.WaitCase, pb.WaitCaseRequest(case_id="c"), timeout=PATIENCE)
            waiting = asyncio.create_task(wait)
            await until(lambda: "knhk_calls_waiting 1\n" in running.counters.prometheus())
            before = id(client._services)  # nobody but the call holds the channel
            ours.issue("client", "/client2")
            await until(lambda: client.cases is not None and id(client._services) != before)
            assert await asyncio.to_thread(who, client) == "spiffe://a.org/client2"
            done = pb.CompleteWorkItemRequest(item_id=item)
            await asyncio.to_thread(client.work.CompleteWorkItem, done)
            assert (await waiting).case.state == pb.CASE_STATE_COMPLETED


def register(client: Client) -> None:
    client.workflows.RegisterWorkflow(
        pb.RegisterWorkflowRequest(spec_json=json.dumps(ONE_TASK).encode()), timeout=PATIENCE
    )


@pytest.mark.long
async def test_a_worker_works_on_while_both_sides_get_new_certificates(tmp_path: Path) -> None:
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    theirs = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    mine = DevAgent(ours, tmp_path / "c", path="/client")
    attempts: list[int] = []

    async def do(job: Job) -> None:
        attempts.append(job.attempt)
        await asyncio.sleep(0.2)

    async with agents(theirs, mine), daemon(theirs.endpoint) as running:
        endpoint = Endpoint(running.addresses.grpc, workload_api=mine.endpoint, server_id=SERVER)
        async with Worker(endpoint, {"do": do}, credit=4, lease=60.0) as worker:
            with Client(endpoint) as client:
                await asyncio.to_thread(register, client)
                for number in range(20):
                    order = pb.RunCaseRequest(spec_id="one", case_id=f"c{number}")
                    await asyncio.to_thread(client.cases.RunCase, order, timeout=PATIENCE)
                    if number % 5 == 4:
                        theirs.renew(ours)
                        mine.renew(ours)
                await until(lambda: worker.completed == 20)
            before = worker._connection
            mine.renew(ours)
            await until(lambda: worker._connection > before)
            assert (worker.completed, worker.failed, worker.refused) == (20, 0, 0)
    assert attempts == [1] * 20


async def test_the_last_certificate_is_used_while_the_agent_is_away(tmp_path: Path) -> None:
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    theirs = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    mine = DevAgent(ours, tmp_path / "c", path="/client")
    async with agents(theirs), daemon(theirs.endpoint) as running:
        endpoint = Endpoint(running.addresses.grpc, workload_api=mine.endpoint)
        await mine.start()
        with Client(endpoint) as client:
            assert await asyncio.to_thread(who, client) == "spiffe://a.org/client"
            await mine.stop()
            assert client._ways is not None
            assert client._services is not None
            client._ways.lost(client._ways.newest())  # as when the connection breaks
            assert await asyncio.to_thread(who, client) == "spiffe://a.org/client"
            before = client._services
            async with agents(DevAgent(ours, tmp_path / "c", path="/client2")):
                await until(lambda: client.cases is not None and client._services is not before)
                assert await asyncio.to_thread(who, client) == "spiffe://a.org/client2"


async def test_the_command_line_checks_the_id_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours = dev_ca.open_authority(tmp_path, TrustDomain("a.org"))
    agent = DevAgent(ours, tmp_path / "s", path="/sidecar", dns=("localhost",))
    mine = DevAgent(ours, tmp_path / "c", path="/client")
    async with agents(agent, mine), daemon(agent.endpoint) as running:

        async def knhk(*arguments: str) -> tuple[int, str]:
            capfd.readouterr()
            address = ("--address", running.addresses.grpc, "--workload-api", mine.endpoint)
            code = await asyncio.to_thread(run, ["workflow", "list", *address, *arguments])
            return code, capfd.readouterr().err

        assert (await knhk("--server-id", SERVER))[0] == 0
        assert (await knhk())[0] == 0
        code, told = await knhk("--server-id", "spiffe://a.org/other")
        assert code == 6
        assert "is spiffe://a.org/sidecar, not spiffe://a.org/other" in told
        assert (await knhk("--ca", str(ours.ca)))[0] == 6
