"""One point after the other: run the workload into the fault, and judge what is left."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Literal

import msgspec

from tests.sweep.disk import Disk, What, read_trace
from tests.sweep.judge import Ending, Verdict, judge, reference
from tests.sweep.shim import Plan, build
from tests.sweep.workload import CASES, STEPS

Mode = Literal["crash", "torn", "power", "both", "again", "stop", "ENOSPC", "EIO"]
MODES: Final[tuple[Mode, ...]] = ("crash", "torn", "power", "both", "again", "stop", "ENOSPC", "EIO")
ROOT: Final = Path(__file__).parents[2]
RESUME_MS: Final = 60_000  # after space or the device is back; the promise is less (tests/store/test_journal.py)
RECOVERY_POINTS: Final = 40  # of the beginning of a run: opening has about 25
BURSTS: Final = ((1, 0), (7, 0), (1, 150))  # failing points, and how long everything fails after the first, in ms


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the workload told."""

    status: int
    acknowledged: Counter[str]
    resumed_ms: tuple[int, ...]
    points: int
    failure: str


@dataclass(slots=True)
class Tally:
    """What the sweep found in one mode."""

    points: int = 0
    """I/O points that a fault was put at."""
    faults: int = 0
    """Volumes judged after a fault."""
    lost: int = 0
    twice: int = 0
    partial: int = 0
    refused: int = 0
    slowest_ms: int = 0
    """Longest that an operation had to be tried again, from its first refusal to its success."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, each with the command that shows it."""

    def add(self, where: str, verdict: Verdict) -> None:
        """Count one volume."""
        self.faults += 1
        self.lost += bool(verdict.lost)
        self.twice += bool(verdict.twice)
        self.partial += bool(verdict.partial)
        self.refused += bool(verdict.refused)
        self.problems += [f"{where}: {problem}" for problem in verdict.problems]


class Sweep:
    """A process that runs the workload, again and again, and a place for its volumes. Close it after use."""

    def __init__(
        self, place: Path, *, seed: int = 1, sync: bool = True, strict: bool = False, reorder: bool = False
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.seed = seed
        self.sync = sync
        self.strict = strict
        """Power loss by the letter of POSIX: see disk.py."""
        self.reorder = reorder
        self.volume = place / "volume"
        self.trace = place / "trace"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweep.workload"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LD_PRELOAD": str(build(place))},
            text=True,
        )
        self._expected: list[Ending] | None = None

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, plan: Plan, *, fresh: bool = True) -> Run:
        """Run the workload by a plan, on an empty volume or on what is there."""
        if fresh:
            shutil.rmtree(self.volume, ignore_errors=True)
            self.volume.mkdir()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(plan).decode() + "\n")
        self._process.stdin.flush()
        acknowledged: Counter[str] = Counter()
        resumed: list[int] = []
        points, failure = 0, ""
        for line in self._process.stdout:
            kind, *rest = msgspec.json.decode(line, type=list[str | int])
            if kind == "ack":
                acknowledged[str(rest[0])] += 1
            elif kind == "resumed":
                resumed.append(int(rest[0]))
            elif kind == "points":
                points = int(rest[0])
            elif kind == "failed":
                failure = str(rest[0])
            elif kind == "end":
                return Run(int(rest[0]), acknowledged, tuple(resumed), points, failure)
        raise AssertionError("the workload's process ended")

    def plan(self, mode: str = "none", point: int = -1, **more: int) -> Plan:
        """A plan for this sweep's volume."""
        return Plan(str(self.volume), str(self.trace), mode, point, sync=self.sync, **more)

    def points(self) -> int:
        """How many points the workload has when nothing happens; its trace is checked against the volume."""
        ran = self.run(self.plan())
        assert ran.status == 0, ran.failure
        assert len(ran.acknowledged) == 1 + CASES
        assert all(count == len(STEPS) for case, count in ran.acknowledged.items() if case)
        disk = Disk(self.place / "nothing")
        disk.root = self.volume
        for call in read_trace(self.trace):
            disk.apply(call)
        there = {str(file): file.read_bytes() for file in self.volume.rglob("*") if file.is_file()}
        shown = {path: held for path, held in there.items() if Path(path).name not in ("LOG", "LOG.old")}
        assert disk.content() == shown, "the shim missed a call"
        return ran.points

    def expected(self) -> list[Ending]:
        """How the cases end when nothing happens."""
        if self._expected is None:
            shutil.rmtree(self.place / "reference", ignore_errors=True)
            self._expected = asyncio.run(reference(self.place / "reference"))
        return self._expected

    def crash(self, point: int, torn: bool) -> Iterator[tuple[Mode, Verdict]]:
        """Kill the workload at a point; judge the volume as it is, and as a loss of power leaves it.

        Yields nothing when the workload ended before the point.
        """
        random = Random(f"{self.seed} {point}")
        ran = self.run(self.plan("torn" if torn else "crash", point, cut=random.choice((1, 64, 128, 255))))
        if ran.status == 0:
            return
        assert ran.status == -9, ran.failure
        disk = self._disk()
        expected = self.expected()
        yield "torn" if torn else "crash", asyncio.run(judge(self.volume, ran.acknowledged, expected))
        after = self.place / "after"
        if torn:
            disk.after_disorder(after, random, reorder=self.reorder)
        else:
            disk.after_power_loss(after)
        yield "both" if torn else "power", asyncio.run(judge(after, ran.acknowledged, expected))

    def crash_again(self, point: int) -> Iterator[tuple[str, Verdict]]:
        """Kill the workload at a point, and the next one, which begins with what is left, early on: while it recovers.
        The verdicts on the volume, and after a loss of power. Yields nothing when the workload ended before the point.
        """
        random = Random(f"{self.seed} {point} again")
        first = self.run(self.plan("torn", point, cut=128))
        if first.status == 0:
            return
        disk = Disk(self.volume, strict=self.strict)
        second = self.run(self.plan("torn", random.randrange(RECOVERY_POINTS), cut=128), fresh=False)
        assert second.status == -9, second.failure
        for call in read_trace(self.trace):
            disk.apply(call)
        acknowledged = first.acknowledged | second.acknowledged  # the second acknowledges what it finds once more
        yield "", asyncio.run(judge(self.volume, acknowledged, self.expected()))
        disk.after_power_loss(self.place / "after")
        yield ", then power loss", asyncio.run(judge(self.place / "after", acknowledged, self.expected()))

    def stop(self, point: int) -> Verdict | None:
        """Stop the process at a point as SIGSTOP does, let it go on later; None when it ended before the point."""
        ran = self.run(self.plan("stop", point))
        if ran.points <= point:
            return None
        verdict = asyncio.run(judge(self.volume, ran.acknowledged, self.expected()))
        if ran.status:
            verdict.refused.append(f"the workload did not go on: {ran.failure or ran.status}")
        return verdict

    def fail(
        self, point: int, error: Literal["ENOSPC", "EIO"], count: int, hold_ms: int
    ) -> tuple[Run, Verdict, Verdict]:
        """Let calls from a point on fail, then go on to the end; the verdicts on it, and after a loss of power."""
        code = errno.ENOSPC if error == "ENOSPC" else errno.EIO
        cut = (0, 100)[point % 2]
        ran = self.run(self.plan("fail", point, error=code, count=count, hold_ms=hold_ms, cut=cut))
        expected = self.expected()
        disk = self._disk()
        verdict = asyncio.run(judge(self.volume, ran.acknowledged, expected))
        if ran.status:
            verdict.refused.append(f"the workload did not go on: {ran.failure or ran.status}")
        verdict.refused += [f"an operation took {ms} ms" for ms in ran.resumed_ms if ms - hold_ms > RESUME_MS]
        disk.after_power_loss(self.place / "after")
        return ran, verdict, asyncio.run(judge(self.place / "after", ran.acknowledged, expected))

    def _disk(self) -> Disk:
        disk = Disk(self.place / "nothing", strict=self.strict)
        disk.root = self.volume
        for call in read_trace(self.trace):
            disk.apply(call)
        return disk

    def faults(self) -> int:
        """How many calls of the last run were made to fail."""
        return sum(call.what is What.FAULT for call in read_trace(self.trace))


def sweep(place: Path, modes: tuple[Mode, ...], every: int, *, offset: int = 0, seed: int = 1, strict: bool = False,
reorder: bool = False,
          sync: bool = True, bursts: tuple[tuple[int, int], ...] = BURSTS) -> dict[Mode, Tally]:  # fmt: skip
    """Every `every`-th point from `offset` on, in each of the modes."""
    tallies: dict[Mode, Tally] = {mode: Tally() for mode in modes}
    made = Sweep(place, seed=seed, sync=sync, strict=strict, reorder=reorder)
    try:
        points = made.points()
        for point in range(offset, points + points // 4, every):  # background work may add some
            reached = False
            for torn, pair in ((False, ("crash", "power")), (True, ("torn", "both"))):
                if not {*pair} & {*modes}:
                    continue
                for mode, verdict in made.crash(point, torn):
                    reached = True
                    if mode in modes:
                        tallies[mode].points += 1
                        tallies[mode].add(_again(mode, point, seed, strict, reorder), verdict)
            if "again" in modes:
                volumes = list(made.crash_again(point))
                tallies["again"].points += bool(volumes)
                reached = reached or bool(volumes)
                for what, verdict in volumes:
                    tallies["again"].add(f"{_again('again', point, seed, strict)}{what}", verdict)
            if "stop" in modes:
                stopped = made.stop(point)
                if stopped is not None:
                    reached = True
                    tallies["stop"].points += 1
                    tallies["stop"].add(_again("stop", point, seed, strict), stopped)
            for error in ("ENOSPC", "EIO"):
                if error not in modes:
                    continue
                hit = False
                for count, hold_ms in bursts:
                    ran, verdict, after = made.fail(point, error, count, hold_ms)
                    tally = tallies[error]
                    if not made.faults() and ran.points <= point:
                        continue
                    hit = True
                    where = f"{_again(error, point, seed, strict)}  # {count} points, {hold_ms} ms"
                    tally.slowest_ms = max((tally.slowest_ms, *(ms - hold_ms for ms in ran.resumed_ms)))
                    tally.add(where, verdict)
                    tally.add(f"{where}, then power loss", after)
                tallies[error].points += hit
                reached = reached or hit
            if not reached and point >= points:
                break
    finally:
        made.close()
    return tallies


def _again(mode: Mode, point: int, seed: int, strict: bool, reorder: bool = False) -> str:
    more = f"{' --strict' if strict else ''}{' --reorder' if reorder else ''}"
    return f"python -m tests.sweep --mode {mode} --point {point} --seed {seed}{more}"
