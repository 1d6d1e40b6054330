"""A process that writes until it is killed: `python -m tests.store.load DIRECTORY`.

Prints `ready`, then one line `case steps` for each step that was acknowledged, straight to the pipe.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from knhk_workflow.store import Journal
from knhk_workflow.store.leveldb import LevelDBStore
from tests.store.cases import Case

CASES = 64


async def main(path: str) -> None:
    store = await LevelDBStore.open(path)
    journal = await Journal.open(store, time.time_ns)
    cases = [Case(f"case-{number}") for number in range(CASES)]
    for case in cases:
        case.steps = await case.stored_steps(store)
    os.write(1, b"ready\n")
    await asyncio.gather(*(steps_for_ever(journal, case) for case in cases))


async def steps_for_ever(journal: Journal, case: Case) -> None:
    while True:
        await journal.append(case.step())
        os.write(1, f"{case.keys.case_id} {case.steps}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
