"""A process with several workers, which a test kills, pauses and starts again.

    python -m tests.e2e.worker_process READY_FILE LOG COUNT SEED

A line in the log says that SIGTERM will stop the workers in order. Each item that comes is a line: its token. At the
end the counts are the last line.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from knhk_sidecar.client import Endpoint, Job, Worker, read_ready

LEASE_S = 1.0  # short, so that what a killed process had comes back within the test


async def main(ready: Path, log: Path, count: int, seed: int) -> None:
    """Work until told to stop."""
    draw = random.Random(seed)
    tokens = log.open("a", encoding="utf-8", buffering=1)

    def endpoint() -> Endpoint:
        return read_ready(ready).endpoint

    async def carry_out(job: Job) -> dict[str, object]:
        tokens.write(json.dumps(["begun", job.item_id]) + "\n")
        await asyncio.sleep(draw.uniform(0.0, 0.05))
        return {f"by-{job.task_id}": job.item_id}

    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with AsyncExitStack() as stack:
        workers = [Worker(endpoint, {"work": carry_out}, credit=3, lease=LEASE_S, grace=5.0) for _ in range(count)]
        for worker in workers:
            await stack.enter_async_context(worker)
        tokens.write(json.dumps(["ready", os.getpid()]) + "\n")
        await asked.wait()
    counts = [sum(each.completed for each in workers), sum(each.refused for each in workers)]
    tokens.write(json.dumps(["counts", *counts]) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
