"""A process that forks with a store open: `python -m tests.store.fork DIRECTORY`."""

from __future__ import annotations

import asyncio
import os
import sys

from knhk_workflow.errors import StoreUnavailable
from knhk_workflow.store.leveldb import LevelDBStore


async def main(path: str) -> None:
    store = await LevelDBStore.open(path)
    child = os.fork()
    if not child:
        for use in (store.get(b"a"), store.commit([(b"a", b"")], [], True), store.close()):
            try:
                await use
            except StoreUnavailable as error:
                if "fork" in str(error):
                    continue
            os._exit(1)
        os.write(1, b"child refused\n")
        os._exit(0)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
    await store.commit([(b"a", b"1")], [], True)
    assert await store.get(b"a") == b"1"
    await store.close()
    print("parent goes on")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
