"""A daemon in a process of its own, and `knhk` beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

START_SECONDS = 60.0  # a start takes less than one second; the machine may be shared
COMMAND_SECONDS = 120.0
ROOT = Path(__file__).resolve().parents[2]
FREE = "127.0.0.1:0"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment without settings of a daemon."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("KGC_", "KNHK_", "WORKFLOW_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(extra or {})}


def knhk(
    *arguments: str, given: str = "", cwd: Path | None = None, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "knhk_sidecar", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        cwd=cwd,
        env=environment(extra),
        check=False,
    )


@dataclass(slots=True)
class Daemon:
    """A running daemon: `ready` is what it wrote once it was."""

    process: subprocess.Popen[str]
    data_dir: Path
    ready: Mapping[str, str]
    took: float

    @property
    def http(self) -> str:
        """Base address of REST."""
        return f"http://{self.ready['http']}"

    def knhk(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Runs one command against this daemon, found by its data directory."""
        return knhk(*arguments, given=given, extra={"KGC_SIDECAR_DATA_DIR": str(self.data_dir)})

    def json(self, *arguments: str, given: str = "") -> object:
        """What one command that has to succeed prints with `-o json`."""
        done = self.knhk(*arguments, "-o", "json", given=given)
        assert done.returncode == 0, done.stderr
        answer: object = json.loads(done.stdout)
        return answer

    def channel(self) -> grpc.Channel:
        """A channel over mTLS."""
        ca, cert, key = (Path(self.ready[name]).read_bytes() for name in ("ca", "cert", "key"))
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return grpc.secure_channel(self.ready["grpc"], credentials, [("grpc.ssl_target_name_override", "localhost")])

    def stop(self) -> tuple[int, str, str]:
        """SIGTERM; the exit code and what it wrote."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=START_SECONDS)
        return self.process.returncode, out, err


@contextmanager
def running(
    data_dir: Path,
    *arguments: str,
    command: str = "dev",
    addresses: Sequence[str] = ("grpc", "plain", "http", "metrics"),
    extra: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """A daemon on free ports, for the length of a block."""
    ready_file = data_dir.with_name(f"{data_dir.name}-ready.json")
    ready_file.unlink(missing_ok=True)
    listeners = [part for name in addresses for part in (f"--{name}-address", FREE)]
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "knhk_sidecar", command, "--data-dir", str(data_dir)),
            *("--ready-file", str(ready_file), *listeners, *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(extra),
    )
    try:
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > began + START_SECONDS:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"the daemon did not become ready\n{out}\n{err}")
            time.sleep(0.01)
        yield Daemon(process, data_dir, json.loads(ready_file.read_text()), time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
