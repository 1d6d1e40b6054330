"""`scripts/quickstart`: the newcomer's first command, to its end and when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readme.walk import ROOT

RUN_SECONDS = 120.0
STEPS = 8


def quickstart(temporary: Path) -> subprocess.Popen[str]:
    """The script in the environment of this run, with its own directory for temporary files."""
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "TMPDIR": str(temporary)}
    # What points another sidecar at its store must not reach this one.
    environment["WORKFLOW_STATE_PATH"] = str(temporary / "somebody else's")
    return subprocess.Popen(
        [ROOT / "scripts" / "quickstart"],
        cwd=temporary,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.long
def test_it_tells_its_story_and_leaves_nothing(tmp_path: Path) -> None:
    process = quickstart(tmp_path)
    out, _ = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, out
    assert re.findall(r"^(\d)/(\d)  ", out, re.MULTILINE) == [(str(step + 1), str(STEPS)) for step in range(STEPS)]
    assert re.search(r"Installation: \d+ s\. Running: \d+ s\.", out)
    assert re.search(r"^\s+order-2 .* completed ", out, re.MULTILINE), out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = quickstart(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("3/"):
            break
    (pid,) = [file.read_text().split('"pid": ')[1].split("\n")[0] for file in tmp_path.glob("*/ready.json")]
    os.killpg(process.pid, number)
    process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, "the sidecar runs on"
        time.sleep(0.05)
