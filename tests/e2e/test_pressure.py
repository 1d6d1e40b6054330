"""Too few file descriptors, too little memory, a slow disk, a clock that jumps: slower or refused, and nothing lost."""

from __future__ import annotations

import json
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from knhk_sidecar.api import pb
from tests.e2e.load import check, loaded
from tests.e2e.sidecar import CALL_SECONDS, Sidecar, Stubs, case_ids, code_of, history, register, sidecar

DESCRIPTORS = 64
STRANGERS = 150  # idle connections, more than there are descriptors
MEMORY = 96 * 1024 * 1024  # more than a daemon at rest has
PRESSED_SECONDS = 10.0  # without memory a call may never be answered
BIG = "x" * 1_500_000
DAY = 86_400
TOLERATED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED,
             grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}  # fmt: skip

TIMED = json.dumps(
    {
        "id": "timed",
        "tasks": {"rest": {"timer": "2s"}, "sign": {"required_roles": ["clerk"]}},
        "flows": [{"from": "start", "to": "rest"}, {"from": "rest", "to": "sign"}, {"from": "sign", "to": "end"}],
    }
).encode()


@dataclass(frozen=True, slots=True)
class Pressure:
    """What the preloaded library does to a daemon."""

    told: Path
    prefix: tuple[str, ...]

    def set(self, *, sync_ms: int = 0, seconds: int = 0) -> None:
        """From now on syncing takes so long, and the wall clock is so far ahead."""
        with self.told.open("r+b") as file:
            file.write(struct.pack("=qq", sync_ms * 1_000, seconds))


@pytest.fixture
def pressure(tmp_path: Path) -> Pressure:
    made, told = tmp_path / "pressure.so", tmp_path / "told"
    source = Path(__file__).with_name("pressure.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", made, source, "-ldl"], check=True)
    told.write_bytes(struct.pack("=qq", 0, 0))
    return Pressure(told, ("env", f"LD_PRELOAD={made}", f"PRESSURE={told}"))


def run(stubs: Stubs, name: str, text: str = "", seconds: float = CALL_SECONDS) -> str:
    request = pb.RunCaseRequest(
        spec_id="hello", data_json=json.dumps({"text": text}).encode(), case_id=name, request_id=name
    )
    return stubs.cases.RunCase(request, timeout=seconds).case.case_id


@contextmanager
def strangers(daemon: Sidecar, count: int) -> Iterator[None]:
    """Connections that say nothing."""
    host, _, port = daemon.ready["http"].rpartition(":")
    with ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.settimeout(1.0)
            try:
                one.connect((host, int(port)))
            except TimeoutError:
                break  # nobody takes them any more
        yield


def nothing_is_lost(daemon: Sidecar, acknowledged: list[str]) -> None:
    with daemon.stubs() as stubs:
        assert set(acknowledged) <= set(case_ids(stubs))


@pytest.mark.long
def test_without_file_descriptors_nothing_is_lost_and_it_comes_back(tmp_path: Path) -> None:
    with sidecar(tmp_path, prefix=("prlimit", f"--nofile={DESCRIPTORS}")) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
            acknowledged = [run(stubs, "before")]
            with strangers(daemon, STRANGERS):
                acknowledged += [run(stubs, f"during-{number}") for number in range(10)]  # who is connected is served
        until = time.monotonic() + CALL_SECONDS
        while True:
            try:
                with daemon.stubs() as stubs:
                    acknowledged.append(run(stubs, "after"))
                break
            except grpc.RpcError as error:
                if code_of(error) not in TOLERATED or time.monotonic() > until:
                    raise
        nothing_is_lost(daemon, acknowledged)
        daemon.kill()
        daemon.start()
        nothing_is_lost(daemon, acknowledged)


@pytest.mark.long
def test_without_memory_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    with sidecar(tmp_path) as daemon:
        acknowledged: list[str] = []
        with daemon.stubs() as stubs:
            register(stubs)
            acknowledged.append(run(stubs, "before"))
            used = next(
                int(line.split()[1]) * 1024
                for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
                if line.startswith("VmSize")
            )
            resource.prlimit(daemon.pid, resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
            refused = 0
            for number in range(80):
                try:
                    acknowledged.append(run(stubs, f"big-{number}", BIG, PRESSED_SECONDS))
                except grpc.RpcError as error:
                    if code_of(error) not in TOLERATED:
                        raise
                    refused += 1
                    if refused == 3 or daemon.process is None or daemon.process.poll() is not None:
                        break
        assert daemon.process is not None
        print(f"{len(acknowledged)} acknowledged, {refused} refused, exit {daemon.process.poll()}")
        if daemon.process.poll() is None:
            daemon.kill()
        daemon.start()
        nothing_is_lost(daemon, acknowledged)
        with daemon.stubs() as stubs:
            run(stubs, "after", BIG)


@pytest.mark.long
def test_a_slow_disk_makes_slow_and_loses_nothing(tmp_path: Path, pressure: Pressure) -> None:
    with sidecar(tmp_path, prefix=pressure.prefix) as daemon:
        with daemon.stubs() as stubs:
            register(stubs)
        with loaded(daemon) as load:
            for slow in (0, 30, 80):
                pressure.set(sync_ms=slow)
                load.await_operations(10)
            daemon.kill()
            daemon.start()
            load.await_operations(10)
            pressure.set()
            load.await_operations(10)
        with daemon.stubs() as stubs:
            assert check(stubs, load.acknowledged) > 40


@pytest.mark.long
def test_steps_of_the_clock_neither_fire_timers_early_nor_stop_them(tmp_path: Path, pressure: Pressure) -> None:
    with sidecar(tmp_path, prefix=pressure.prefix) as daemon:
        with grpc.insecure_channel(daemon.ready["grpc_plain"]) as channel:
            stubs = Stubs(channel)
            register(stubs, TIMED)
            for name, step in (("ahead", DAY), ("back", -DAY), ("right", 0)):
                began = time.monotonic()
                stubs.cases.RunCase(pb.RunCaseRequest(spec_id="timed", case_id=name), timeout=CALL_SECONDS)
                pressure.set(seconds=step)
                fired(stubs, name)
                assert time.monotonic() - began >= 1.9, "early"
        pressure.set(seconds=-DAY)
        daemon.kill()
        daemon.start()  # the clock now says that all of it happens tomorrow
        with grpc.insecure_channel(daemon.ready["grpc_plain"]) as channel:
            stubs = Stubs(channel)
            for name in ("ahead", "back", "right"):
                (item,) = stubs.work.ListWorkItems(pb.ListWorkItemsRequest(case_id=name), timeout=CALL_SECONDS).items
                stubs.work.CompleteWorkItem(pb.CompleteWorkItemRequest(item_id=item.item_id), timeout=CALL_SECONDS)
                times = [event.timestamp.ToNanoseconds() for event in history(stubs, name)]
                assert times == sorted(times), "time does not run backwards in a case"


def fired(stubs: Stubs, name: str) -> None:
    """Waits until the timer has fired."""
    until = time.monotonic() + CALL_SECONDS
    while not stubs.work.ListWorkItems(pb.ListWorkItemsRequest(case_id=name), timeout=CALL_SECONDS).items:
        assert time.monotonic() < until, "the timer does not fire"
        time.sleep(0.05)
