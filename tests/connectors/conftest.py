"""A server to call, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 60.0

Started = Callable[..., int]


@pytest.fixture
def start_outside(tmp_path: Path) -> Iterator[Started]:
    """Starts a server with these arguments; its port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> int:
        port_file = tmp_path / f"port-{len(running)}"
        command = [sys.executable, "-m", "tests.connectors.outside", str(port_file), *arguments]
        running.append(subprocess.Popen(command))
        until = time.monotonic() + START_SECONDS
        while not port_file.exists():
            assert running[-1].poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.02)
        return int(port_file.read_text())

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def outside(start_outside: Started) -> str:
    """The address of a server that behaves."""
    return f"http://127.0.0.1:{start_outside()}"
