"""Where an engine keeps everything: a directory, opened when the engine is."""

from __future__ import annotations

from knhk_workflow.store import MEMORY_PATH, Store, open_store


class StateStore:
    """The store at `path`, made when the directory is absent or empty; `create=False` refuses to make one.

    `StateStore(":memory:")` keeps nothing after `close`. Opening happens with the engine: this names the place.
    """

    __slots__ = ("_opened", "create", "path")

    def __init__(self, path: str = "./workflow_db", *, create: bool = True) -> None:
        self.path = path
        self.create = create
        self._opened: Store | None = None

    @classmethod
    def over(cls, store: Store) -> StateStore:
        """A state store over an already open store, which it closes."""
        made = cls(MEMORY_PATH)
        made._opened = store
        return made

    async def open(self) -> Store:
        """The open store. Raises StoreLocked, StoreFormat, StoreCorrupt, StoreFull, NotFound."""
        if self._opened is None:
            self._opened = await open_store(self.path, self.create)
        return self._opened

    async def close(self) -> None:
        """Release it. Twice is fine."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None
