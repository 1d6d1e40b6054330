"""Child processes: one JSON line in, one JSON line out; what they cost the processor, and what they hold in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from knhk_sidecar.identity.dev_ca import open_authority

ROOT: Final = Path(__file__).resolve().parents[2]
FREE: Final = "127.0.0.1:0"
START_SECONDS: Final = 60.0
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")
Q = TypeVar("Q")


class Failed(msgspec.Struct, tag=True):
    """A child could not do what it was asked."""

    problem: str


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads so far, to the nanosecond (Linux: the clock of that process)."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has spent on anything but waiting."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND


def environment() -> dict[str, str]:
    """This process's environment without settings of a daemon."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("KGC_", "KNHK_", "WORKFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


class Child:
    """A module of this package in a process of its own. Use as `with`."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.benchmark.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self.pid = self._process.pid

    def ask(self, question: msgspec.Struct, answer: type[T]) -> T:
        """One line there, one line back. Raises RuntimeError with what the child says went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a child of the benchmark ended with {self._process.wait()}; see its output above")
        if line.startswith(b'{"type":"Failed"'):
            raise RuntimeError(msgspec.json.decode(line, type=Failed).problem)
        return msgspec.json.decode(line, type=answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


async def serve_questions(kind: type[Q], carry_out: Callable[[Q], Awaitable[msgspec.Struct]]) -> None:
    """The child's side: answers questions until there are no more."""
    import asyncio

    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    decode = msgspec.json.Decoder(kind).decode
    while line := await reader.readline():
        answer: msgspec.Struct
        try:
            answer = await carry_out(decode(line))
        except Exception as error:  # noqa: BLE001 - told to the parent, who ends the run
            answer = Failed(f"{type(error).__name__}: {error}")
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


class Certificates(msgspec.Struct, frozen=True):
    """Paths of a developer authority's files."""

    ca: str
    server: str
    server_key: str
    client: str
    client_key: str


def certificates(directory: Path) -> Certificates:
    """Made anew below `directory`."""
    authority = open_authority(directory)
    server, client = authority.issue_server(), authority.issue_client()
    return Certificates(str(authority.ca), str(server.cert), str(server.key), str(client.cert), str(client.key))


class Daemon(msgspec.Struct, frozen=True):
    """A running daemon: its gRPC address, and how long it took from exec to ready."""

    pid: int
    address: str
    took: float


class _Ready(msgspec.Struct):
    grpc: str


@contextmanager
def daemon(directory: Path, files: Certificates) -> Iterator[Daemon]:
    """`knhk serve` as in production, over mTLS on a free port, keeping everything below `directory`."""
    ready = directory.with_name(f"{directory.name}-ready.json")
    ready.unlink(missing_ok=True)
    settings = {
        "KGC_SIDECAR_TLS_ENABLED": "true",
        "KGC_SIDECAR_TLS_CERT": files.server,
        "KGC_SIDECAR_TLS_KEY": files.server_key,
        "KGC_SIDECAR_TLS_CA": files.ca,
        "KGC_SIDECAR_RATE_LIMIT_PER_SECOND": "1000000000",  # counted like everybody's, and never reached
    }
    command = [sys.executable, "-m", "knhk_sidecar", "serve", "--data-dir", str(directory), "--ready-file", str(ready)]
    listeners = ["--grpc-address", FREE, "--http-address", FREE, "--metrics-address", FREE, "--log-level", "warning"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *listeners], env=environment() | settings)
    try:
        while not ready.exists():
            if process.poll() is not None or time.perf_counter() > began + START_SECONDS:
                raise RuntimeError("the daemon did not become ready; see its output above")
            time.sleep(0.002)
        took = time.perf_counter() - began
        yield Daemon(process.pid, msgspec.json.decode(ready.read_bytes(), type=_Ready).grpc, took)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
