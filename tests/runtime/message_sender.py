"""A process that sends one message and is killed as soon as so many commits have followed it.

python -m tests.runtime.message_sender DIRECTORY COMMITS
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from knhk_workflow import CallMeta, StateStore, WorkflowEngine
from knhk_workflow.store import Unit
from tests.inside import parts

REQUEST = CallMeta(request_id="m-1", method="TriggerCase")
KEY = "order-7"


async def main(directory: str, commits: int) -> None:
    """Never returns: the message is sent to a store with cases in it."""
    engine = await WorkflowEngine(StateStore(directory)).open()
    left = commits

    def committed(shard: int, position: int, units: Sequence[Unit]) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    parts(engine).journal.on_commit(committed)
    await engine.trigger_case("paid", {"n": 1}, key=KEY, meta=REQUEST)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
