"""Units as a case makes them: a record, a head that counts, and the expectation that nobody else moved it."""

from __future__ import annotations

from knhk_workflow.store import Keyspace, Store, Unit, digest, seal, unseal

TENANT = "default"
KEYS = Keyspace(1)


class Case:
    """A case that only counts its steps."""

    def __init__(self, name: str, steps: int = 0) -> None:
        self.keys = KEYS.case(TENANT, name)
        self.steps = steps

    def step(self, size: int = 200, request: bytes | None = None) -> Unit:
        """The next step's unit; counts it as done."""
        record = seal(b"%08d" % self.steps + b"r" * size)
        held = _head(self.steps) if self.steps else None
        self.steps += 1
        writes = [(self.keys.record(self.steps), record), (self.keys.head, _head(self.steps))]
        if request is not None:
            writes.append((request, seal(b"receipt")))
        return Unit(
            self.keys.shard,
            TENANT,
            self.keys.case_id,
            self.steps,
            1,
            digest(record, b"salt"),
            writes,
            [(self.keys.head, held)],
            request,
        )

    async def stored_steps(self, store: Store) -> int:
        """How many steps the store has of it; every record up to there must be there."""
        head = await store.get(self.keys.head)
        steps = int(unseal(self.keys.head, head)) if head is not None else 0
        records = await store.scan(*self.keys.records(), limit=steps + 10)
        assert [key for key, _ in records] == [self.keys.record(number + 1) for number in range(steps)]
        return steps


def _head(steps: int) -> bytes:
    return seal(b"%d" % steps)
