"""Checkpoints of the audit, carried off the host: what is kept elsewhere tells later whether the log has lost anything.

Now and then, when there is something new, the signed checkpoints of all logs go to a file in a directory (a mounted
volume, best one of another host that nobody but this daemon can write to) and as a POST to an address. The file is
named after the store, so many daemons can share a directory. Before it is replaced, what is there is held against the
store: one that does not continue it (an older copy was brought back, or history was rewritten) is not pushed; the
daemon says so in its log, its health and its metrics, and the evidence stays as it is until an operator moves it away.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from knhk_sidecar import files
from knhk_sidecar.telemetry.counters import Family
from knhk_workflow import Checkpoint, InvalidInput, WorkflowEngine, WorkflowError, read_checkpoints

if TYPE_CHECKING:
    import httpx2

SUFFIX: Final = ".checkpoint"
FILE_BYTES_MAX: Final = 16 * 1024 * 1024  # 4,097 logs of 400 bytes are a tenth of that
FILE_MODE: Final = 0o666  # nothing in it is secret: the umask decides
POST_SECONDS: Final = 10.0  # whoever takes longer is asked again at the next time
LAST_SECONDS: Final = 2.0  # for what is pushed while going down

_log = structlog.get_logger("knhk_sidecar.audit")


class CheckpointPush:
    """Pushes the checkpoints of one engine. `problem` says why that does not work, or what was found; empty when all is
    well."""

    def __init__(self, engine: WorkflowEngine, directory: str, url: str, every_s: float) -> None:
        """`directory` and `url` may be empty; then checkpoints are made for whoever asks."""
        self._engine = engine
        self._directory = Path(directory) if directory else None
        self._url = url
        self._receiver = _origin(url)
        self._every_s = every_s
        self._pushed: dict[int, int] = {}
        self._client: httpx2.AsyncClient | None = None
        self._turn = asyncio.Lock()
        self.problem = ""
        self.conflict = False
        """Whether what was pushed earlier is not continued by this store."""
        self.pushed_at = 0.0
        """When the last one was pushed, in seconds since the epoch; 0 = never."""

    async def run(self) -> None:
        """Push now and then, for ever."""
        while True:
            await self.push()
            await asyncio.sleep(self._every_s)

    async def close(self) -> None:
        """Push what is there, and let go of the connection."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.push()
        except TimeoutError:
            _log.warning("checkpoint_not_pushed", problem="there was no time for the last one")
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def push(self) -> None:
        """Push once, if there is something new. What fails is told in `problem`, and tried again the next time."""
        async with self._turn:
            problem = ""
            try:
                checkpoints = await self._engine.audit_checkpoints()
                sizes = {each.shard: each.size for each in checkpoints}
                if not checkpoints or (sizes == self._pushed and not self.problem):
                    return
                problem = await self._to_directory(checkpoints) or await self._to_url(checkpoints)
                if not problem:
                    self._pushed, self.pushed_at = sizes, time.time()
            except WorkflowError as error:
                problem = f"no checkpoint can be made: {error.message}"
            if problem and problem != self.problem:
                _log.error("checkpoint_not_pushed", problem=problem, conflict=self.conflict)
            self.problem = problem

    async def _to_directory(self, checkpoints: Sequence[Checkpoint]) -> str:
        if self._directory is None:
            return ""
        path = self._directory / f"{checkpoints[0].store}{SUFFIX}"
        try:
            held = await asyncio.to_thread(_read, path)
            self.conflict = False
            for known in read_checkpoints(held) if held else ():
                why = await self._engine.check_checkpoint(known)
                if why:
                    self.conflict = True
                    return f"{path} is not continued by this store: {why}"
            text = "\n".join(each.note for each in checkpoints)
            await asyncio.to_thread(files.replace, path, text.encode(), FILE_MODE, durable=True)
        except InvalidInput as error:
            return f"{path} is there and cannot be understood ({error.message}); it is left as it is"
        except OSError as error:
            return f"{path} cannot be written: {error.strerror}"
        return ""

    async def _to_url(self, checkpoints: Sequence[Checkpoint]) -> str:
        if not self._url:
            return ""
        import httpx2  # noqa: PLC0415 - 60 ms that only a daemon which pushes there pays

        if self._client is None:
            self._client = httpx2.AsyncClient(follow_redirects=False, timeout=POST_SECONDS, trust_env=False)
        try:
            answer = await self._client.post(
                self._url,
                content="\n".join(each.note for each in checkpoints).encode(),
                headers={"content-type": "text/plain; charset=utf-8"},
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return f"{self._receiver} cannot be reached: {type(error).__name__}"
        return "" if answer.is_success else f"{self._receiver} answered {answer.status_code}"


def audit_numbers(engine: WorkflowEngine, pushing: Callable[[], CheckpointPush | None]) -> Iterable[Family]:
    """The audit as numbers, now."""
    push = pushing()
    counts = engine.audit_counts()
    yield Family(
        "audit_recorded_total", "Calls without effect taken into the audit.", "counter", [((), counts.recorded)]
    )
    yield Family("audit_overflow_total", "Refusals that the audit only counted.", "counter", [((), counts.overflowed)])
    yield Family("audit_waiting", "Entries of the audit that are not written yet.", "gauge", [((), counts.waiting)])
    sizes = [((("shard", str(shard)),), float(size)) for shard, size in sorted(counts.sizes.items())]
    yield Family("audit_checkpoint_size", "Batch records in the newest checkpoint of a log.", "gauge", sizes)
    if push is not None:
        yield Family("audit_push_failing", "1: checkpoints are not pushed.", "gauge", [((), bool(push.problem))])
        yield Family(
            "audit_push_conflict",
            "1: this store does not continue what was pushed; it was rolled back or rewritten.",
            "gauge",
            [((), push.conflict)],
        )
        yield Family(
            "audit_pushed_timestamp_seconds", "When checkpoints were last pushed.", "gauge", [((), push.pushed_at)]
        )


def _origin(url: str) -> str:
    """As much of an address as everybody may know, which health tells: no password, no path, no key in a query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
