"""The README as a program: its code blocks, run in order in one directory against one daemon.

A block in `python` or `sh` is run. A block in `text` right after it is what it prints: `...` stands for anything in a
line, a line of `...` alone for any lines. The block `knhk dev` starts the daemon, on free ports: the addresses of the
text are exchanged for the real ones on the way in, and back on the way out. Blocks without a language are not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK_SECONDS = 120.0  # a block takes a second or two; the machine may be shared
START_SECONDS = 60.0
DOCUMENTED: Mapping[str, str] = {
    "grpc": "127.0.0.1:50051",
    "grpc_plain": "127.0.0.1:50052",
    "http": "127.0.0.1:8080",
    "metrics": "127.0.0.1:9090",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int


def blocks(document: str) -> Sequence[Block]:
    """The fenced blocks of a document, in order."""
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [Block(fence[1], fence[2], document.count("\n", 0, fence.start()) + 2) for fence in fences]


def adjacent(document: str, first: Block, second: Block) -> bool:
    """Whether nothing stands between two blocks."""
    return first.line + first.text.count("\n") + 2 == second.line


def matches(expected: str, actual: str) -> bool:
    """Whether a program printed what a `text` block says."""
    pattern = ""
    for line in expected.rstrip("\n").split("\n"):
        if line == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n"
    return re.fullmatch(pattern, actual.rstrip("\n") + "\n") is not None


class Walk:
    """One reader: a directory, an environment, and the daemon once it was started."""

    def __init__(self, directory: Path, tools: Path) -> None:
        """`tools` takes a stand-in for grpcurl where that is not installed."""
        self.directory = directory
        self._daemon: subprocess.Popen[str] | None = None
        self._real: dict[str, str] = {}
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("KGC_", "KNHK_", "WORKFLOW_"))}
        paths = [str(Path(sys.executable).parent), str(ROOT / ".tools" / "bin"), kept.get("PATH", "")]
        path = os.pathsep.join(paths)
        if shutil.which("grpcurl", path=path) is None:
            path = f"{path}{os.pathsep}{stand_in(tools)}"
        self.environment = {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}

    def run(self, block: Block) -> str:
        """Runs a block; what it printed, with the documented addresses. It must succeed."""
        text = block.text
        if text.strip() == "knhk dev":
            return self._told(self._start())
        for name, address in DOCUMENTED.items():
            text = text.replace(address, self._real.get(name, address))
        program = (
            [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        )
        done = subprocess.run(
            program,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (
            f"README.md:{block.line} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return self._told(done.stdout)

    def close(self) -> None:
        """Ends the daemon; it must drain."""
        if self._daemon is None:
            return
        self._daemon.terminate()
        try:
            assert self._daemon.wait(START_SECONDS) == 0
        finally:
            if self._daemon.poll() is None:
                self._daemon.kill()
                self._daemon.wait()

    def _start(self) -> str:
        ready, printed = self.directory / "ready.json", self.directory / "printed"
        listeners = [
            part for name in ("grpc", "plain", "http", "metrics") for part in (f"--{name}-address", "127.0.0.1:0")
        ]
        with printed.open("w") as out:
            self._daemon = subprocess.Popen(
                ["knhk", "dev", "--ready-file", str(ready), *listeners],
                cwd=self.directory,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        until = time.monotonic() + START_SECONDS
        while not ready.exists() or "Ctrl-C" not in printed.read_text():
            assert self._daemon.poll() is None, printed.read_text()
            assert time.monotonic() < until, printed.read_text()
            time.sleep(0.02)
        self._real = {name: text for name, text in json.loads(ready.read_text()).items() if name in DOCUMENTED}
        return printed.read_text()

    def _told(self, output: str) -> str:
        for name, address in self._real.items():
            output = output.replace(address, DOCUMENTED[name])
        return output


def stand_in(directory: Path) -> Path:
    """A directory with a `grpcurl` that is `buf curl`; see `grpcurl.py`."""
    program = directory / "grpcurl"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.readme.grpcurl "$@"\n')
    program.chmod(0o755)
    return directory
