"""`python -m tests.e2e.recovery [CASES]`: how long a daemon takes from its start to ready after a kill -9.

The store has that many open cases (10,000 when none is named), each with a work item, a time-out and a business key.
Three starts are measured, and as many of an empty store: the difference is what the cases cost.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from knhk_sidecar.api import pb
from tests.e2e.sidecar import Sidecar, sidecar

CASES: Final = 10_000
BATCH: Final = 500
STARTS: Final = 3
SECONDS: Final = 60.0
SPEC: Final = json.dumps(
    {
        "id": "open",
        "tasks": {"sign": {"required_roles": ["clerk"], "timeout": "30d"}},
        "flows": [{"from": "start", "to": "sign"}, {"from": "sign", "to": "end"}],
    }
).encode()


def restarts(daemon: Sidecar) -> list[float]:
    """Seconds from the start of the process to ready, each after a kill."""
    found: list[float] = []
    for _ in range(STARTS):
        daemon.kill()
        began = time.monotonic()
        daemon.start()
        found.append(time.monotonic() - began)
    return found


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else CASES
    with tempfile.TemporaryDirectory() as place, sidecar(Path(place)) as daemon:
        empty = restarts(daemon)
        with daemon.stubs() as stubs:
            stubs.workflows.RegisterWorkflow(pb.RegisterWorkflowRequest(spec_json=SPEC), timeout=SECONDS)
            for first in range(0, cases, BATCH):
                runs = [
                    pb.RunCaseRequest(spec_id="open", case_id=f"case-{number}", business_key=f"key-{number}")
                    for number in range(first, min(first + BATCH, cases))
                ]
                stubs.cases.RunCases(pb.RunCasesRequest(cases=runs), timeout=SECONDS)
        full = restarts(daemon)
        with daemon.stubs() as stubs:
            assert stubs.cases.GetCase(pb.GetCaseRequest(case_id=f"case-{cases - 1}"), timeout=SECONDS).case.case_id
    print(f"ready after {min(full):.2f} s with {cases} open cases, {min(empty):.2f} s with none")
    print(f"all: {', '.join(f'{each:.2f}' for each in full)}; none: {', '.join(f'{each:.2f}' for each in empty)}")


if __name__ == "__main__":
    main()
