"""Reading a range that may be long: in portions, so that a read costs one hop to a thread and never much memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from knhk_workflow.store.store import Range, Reads


async def portions(reads: Reads, range_: Range, size: int) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """The pairs of a range in order, `size` at a time, never none. Of a store that is written meanwhile it is not one
    moment: what is new behind the last portion is still seen."""
    start, end = range_
    while rows := await reads.scan(start, end, limit=size):
        yield rows
        if len(rows) < size:
            return
        start = rows[-1][0] + b"\0"
