"""`scripts/bench`: one run, everything side by side. Exit status 0 whatever the figures say: they are no test."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from tests.benchmark import analysis, calls, client, empty, hops, inside, simulated
from tests.benchmark.processes import (
    Certificates,
    Child,
    certificates,
    cpu_seconds,
    daemon,
    machine_cpu_seconds,
    resident_bytes,
)
from tests.benchmark.report import EMPTY, Figure, Goal, Machine, Report, Row
from tests.benchmark.samples import Estimate, estimate, ratio
from tests.benchmark.workloads import BATCH, STEPS

PAIRS: Final = 15
QUICK_PAIRS: Final = 5
SLICE_SECONDS: Final = 0.5
QUICK_SLICE_SECONDS: Final = 0.2
FIRST_CALLS: Final = 20  # of a warm-up, per call in flight: enough to know how many calls fill a slice
STARTS: Final = 5
SYNCS: Final = 200
ROUNDS: Final = 5  # portions of the simulation
SIMULATED_RATE: Final = 5_000
WEIGHED_CASES: Final = 5_000
HOP_CALLS: Final = 2_000
AT_ONCE: Final = (1, 32, 128)
DEMAND: Final = 64  # callers that keep the daemon just busy
OVERLOADS: Final = (1, 2, 5, 10)
OPEN_DEADLINE_S: Final = 0.5
GOOD_SECONDS: Final = 0.05  # a call of 4 ms is answered in this when nothing else is there
BUSY: Final = 0.8  # of one processor: an event loop that has hardly anything left


class Plan(NamedTuple):
    """How much to measure."""

    pairs: int = PAIRS
    slice_seconds: float = SLICE_SECONDS
    at_once: Sequence[int] = AT_ONCE
    starts: int = STARTS
    syncs: int = SYNCS
    weighed_cases: int = WEIGHED_CASES
    hop_calls: int = HOP_CALLS
    most_calls: int = 1_000_000
    connector_calls: int = 1_000
    verifications: int = 10
    verified_tasks: int = 1_000
    verdicts: int = 3_000
    sizes: tuple[int, ...] = analysis.SIZES
    simulated_steps: int = 20_000
    open_seconds: float = 1.0


QUICK: Final = Plan(
    QUICK_PAIRS,
    QUICK_SLICE_SECONDS,
    starts=3,
    weighed_cases=2_000,
    hop_calls=1_000,
    verifications=3,
    verdicts=600,
    simulated_steps=5_000,
    connector_calls=300,
)


class Sample(NamedTuple):
    """One slice: units of work done, seconds, processor seconds of server and client, and of anybody else."""

    units: int
    seconds: float
    server: float
    client: float
    others: float
    p50_ms: float = 0.0
    refused: int = 0

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds

    @property
    def cpu(self) -> float:
        """Server seconds per unit."""
        return self.server / self.units


Measure = Callable[[int], Sample]
Told = Callable[[str], None]


class Asked(NamedTuple):
    """Over how many connections, and in an open loop so many per second (0: each answer is waited for)."""

    many: bool = False
    rate: float = 0.0


ONE_BY_ONE: Final = Asked()


class Side(NamedTuple):
    """Something that can be measured in slices."""

    name: str
    unit: str
    measure: Measure
    per_call: int = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures, side by side, and says what limits.")
    parser.add_argument("--quick", action="store_true", help="about a minute, with wide intervals")
    parser.add_argument("--pairs", type=int, help=f"interleaved pairs per row (default {PAIRS}, quick {QUICK_PAIRS})")
    parser.add_argument("--directory", help="where to keep data meanwhile; the disk below it is what is measured")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    asked = parser.parse_args(arguments)
    plan = QUICK if asked.quick else Plan()
    if asked.pairs is not None:
        if asked.pairs < 1:
            parser.error("--pairs must be at least 1")
        plan = plan._replace(pairs=asked.pairs)
    work = Path(tempfile.mkdtemp(prefix="knhk-bench-", dir=asked.directory))
    try:
        report = measure(plan, work, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(work)
    print(report.json() if asked.output == "json" else report.text())
    return 0


def measure(plan: Plan, work: Path, tell: Told) -> Report:
    """Everything, below the directory `work`."""
    began, machine_before = time.perf_counter(), machine_cpu_seconds()
    own: list[float] = []
    files = certificates(work / "authority")
    tell("start-up and memory")
    figures = _starts(plan, work, files)
    rows: list[Row] = []
    tell("verification and or-joins")
    with Child("analysis") as child:
        asked = analysis.Analyse(plan.verified_tasks, plan.verifications, plan.verdicts, plan.sizes)
        figures += _analysed(child.ask(asked, analysis.Analysed))
        own.append(cpu_seconds(child.pid))
    tell("simulation")
    with Child("simulated") as child:
        figures.append(_simulated(child.ask(simulated.Simulate(plan.simulated_steps, ROUNDS), simulated.Simulated)))
    tell("connector calls")
    with Child("calls") as child:
        called = child.ask(calls.Call(str(work / "calls"), plan.connector_calls, plan.pairs), calls.Called)
        figures.append(Figure("connector calls over HTTP, durable, 64 at once", estimate(called.rates), "/s"))
        own.append(cpu_seconds(child.pid))
    with ExitStack() as stack:
        servers = stack.enter_context(Child("empty", files.server, files.server_key, files.ca))
        real = stack.enter_context(daemon(work / "daemon", files))
        callers = stack.enter_context(Child("client"))
        engine = stack.enter_context(Child("inside"))
        apart = stack.enter_context(Child("hops", files.server, files.server_key, files.ca, files.client))
        where = servers.ask(empty.WhereAreYou(), empty.Addresses)
        callers.ask(client.Connect(where.bare, where.piped, real.address, files), client.Done)
        engine.ask(inside.Open(str(work / "inside")), inside.Ran)
        pids: dict[client.Target, int] = {"bare": servers.pid, "piped": servers.pid, "daemon": real.pid}
        bench = _Bench(plan, callers, engine, pids, work, tell)
        rows += bench.over_tls()
        rows += bench.overload()
        figures.append(bench.recovery())
        rows += bench.in_process()
        tell("hop by hop")
        parts = apart.ask(hops.Measure(str(work / "hops"), plan.pairs, plan.hop_calls), hops.Hops).hops
        tell("bytes on disk")
        weighed = engine.ask(inside.Weigh(str(work / "weighed"), plan.weighed_cases), inside.Ran)
        figures.append(Figure("fsync of 4 KB, p50 beside the durable step", estimate(bench.syncs_us), "us"))
        figures.append(_weight(weighed))
        tell("timers")
        timed = engine.ask(inside.Time(str(work / "timed"), plan.weighed_cases), inside.Ran)
        for what, took in (("armed, one durable command each", timed.seconds), ("fired", timed.firing_seconds)):
            figures.append(Figure(f"timers {what}, {timed.cases:,} of them", _one(timed.cases / took), "/s"))
        figures.append(Figure("daemon after the run, resident", _one(resident_bytes(real.pid) / 2**20), "MiB"))
        own += [cpu_seconds(pid) for pid in (servers.pid, real.pid, callers.pid, engine.pid, apart.pid)]
    seconds = time.perf_counter() - began
    others = max(0.0, machine_cpu_seconds() - machine_before - sum(own) - time.process_time()) / seconds
    machine = Machine(os.cpu_count() or 1, platform.python_version(), grpc.__version__, others)
    return Report(machine, plan.pairs, plan.slice_seconds, tuple(rows), tuple(parts), tuple(figures))


class _Bench:
    """The rows that several processes have a part in."""

    def __init__(
        self,
        plan: Plan,
        callers: Child,
        engine: Child,
        pids: dict[client.Target, int],
        directory: Path,
        tell: Told,
    ) -> None:
        self._plan = plan
        self._callers = callers
        self._engine = engine
        self._pids = pids
        self._directory = directory
        self._tell = tell
        self.syncs_us: list[float] = []

    # -- over mTLS ----------------------------------------------------------------------------------------------------

    def over_tls(self) -> list[Row]:
        """Each kind of call beside an empty one, and the list of 100 beside the engine alone."""
        group = "Over mTLS; ratios to an empty call on the same server stack (cases count singly)"
        rows: list[Row] = []
        for at_once in self._plan.at_once:
            floor = self._remote(EMPTY, "bare", "empty", at_once)
            sides = (
                self._remote("empty call, our pipeline", "piped", "empty", at_once),
                self._remote("durable step (CompleteWorkItem)", "daemon", "step", at_once),
                self._remote("whole case (RunCase)", "daemon", "run", at_once, "cases"),
                self._remote("RunCases of 100", "daemon", "batch", at_once, "cases", BATCH),
                self._remote("StreamRunCase", "daemon", "stream", at_once, "cases"),
                self._remote("GetCase", "daemon", "get", at_once),
            )
            floors: list[Sample] = []
            found: list[Row] = []
            for side in sides:
                step = side.name.startswith("durable step")
                if step:
                    self.syncs_us.append(_sync_us(self._directory, self._plan.syncs))
                pairs = self._pairs(floor, side, at_once)
                if step:
                    self.syncs_us.append(_sync_us(self._directory, self._plan.syncs))
                floors += [first for first, _ in pairs]
                goals, later = self._step_goals(pairs, at_once) if step else ((), ())
                found.append(self._row(group, side, at_once, "empty", pairs, goals, later))
            rows.append(self._alone(group, floor, at_once, floors))
            rows += found
        most = max(self._plan.at_once)
        group = "Worker streams over mTLS; ratio to the durable step one by one. A worker's step has two: start and end"
        single = self._remote("durable step (CompleteWorkItem)", "daemon", "step", most, "steps")
        works: tuple[client.Work, ...] = ("worker1", "worker8", "worker64")
        for work in works:
            name = f"worker, {client.PER_MESSAGE[work]} results a message"
            worker = self._remote(name, "daemon", work, most, "steps")
            rows.append(self._row(group, worker, most, "step", self._pairs(single, worker, most), (), ()))
        group = "Over mTLS beside the engine alone; ratio to the routing net in one command in process"
        alone = self._inside("routing net, one command", "leveldb", "command", most)
        batch = self._remote("RunCases of 100", "daemon", "batch", most, "cases", BATCH)
        pairs = self._pairs(alone, batch, most)
        rates = ratio([(first.rate, second.rate) for first, second in pairs])
        goals = (_at_least("0.5 of the command in process", rates.median, 0.5),)
        rows.append(self._row(group, batch, most, "in process", pairs, goals, ()))
        return rows

    def _step_goals(
        self, pairs: Sequence[tuple[Sample, Sample]], at_once: int
    ) -> tuple[tuple[Goal, ...], tuple[Goal, ...]]:
        rates = ratio([(first.rate, second.rate) for first, second in pairs])
        costs = ratio([(first.cpu, second.cpu) for first, second in pairs])
        if at_once == 1:
            sync_ms = sum(self.syncs_us[-2:]) / 2 / 1e3
            allowed = estimate([first.p50_ms for first, _ in pairs]).median + sync_ms + 0.15
            p50 = estimate([second.p50_ms for _, second in pairs]).median
            return (), (Goal(f"p50 <= empty p50 + fsync + 0.15 = {allowed:.2f} ms", p50 <= allowed, p50),)
        now = _at_least("rate 0.6 of empty", rates.median, 0.6)
        later = (
            _at_least("rate 0.8 of empty", rates.median, 0.8),
            Goal("CPU <= 1.25 of empty, upper end <= 1.35", costs.median <= 1.25 and costs.high <= 1.35, costs.median),
        )
        return (now,), later

    def _remote(
        self,
        name: str,
        target: client.Target,
        work: client.Work,
        at_once: int,
        unit: str = "calls",
        per_call: int = 1,
        asked: Asked = ONE_BY_ONE,
    ) -> Side:
        pid = self._pids[target]

        def measure(calls: int) -> Sample:
            wanted = client.Prepare(target, work, at_once, calls, asked.many, asked.rate, OPEN_DEADLINE_S)
            self._callers.ask(wanted, client.Done)
            machine, before = machine_cpu_seconds(), cpu_seconds(pid)
            done = self._callers.ask(client.Go(), client.Done)
            spent = cpu_seconds(pid) - before
            others = max(0.0, machine_cpu_seconds() - machine - spent - done.cpu_seconds)
            return Sample(
                done.calls * per_call, done.seconds, spent, done.cpu_seconds, others, done.p50_ms, done.refused
            )

        return Side(name, unit, measure, per_call)

    # -- overload -----------------------------------------------------------------------------------------------------

    def overload(self) -> list[Row]:
        """More than there is room for: from callers that wait as they are asked, and from an open loop."""
        group = f"Overload: whole cases, {client.MANY_CONNECTIONS} connections; ratio to the same at 1x demand"
        rows: list[Row] = []

        def demand(times: int) -> Side:
            callers = DEMAND * times
            return self._remote(
                f"{times}x demand, {callers} callers", "daemon", "run", callers, "cases", asked=Asked(many=True)
            )

        for times in OVERLOADS:
            pairs = self._pairs(demand(1), demand(times), DEMAND * times)
            rates = ratio([(first.rate, second.rate) for first, second in pairs])
            goals = (_at_least("0.9 of 1x", rates.median, 0.9),)
            rows.append(self._row(group, demand(times), DEMAND * times, "1x", pairs, goals, ()))
        milliseconds, deadline = empty.WORK_SECONDS * 1e3, OPEN_DEADLINE_S
        group = (
            f"Overload: {milliseconds:g} ms of work each, open loop, deadline {deadline:g} s, good answers; "
            "ratio to 1x, which is 90% of what one processor can do"
        )

        def offered(times: int) -> Side:
            rate = 0.9 / empty.WORK_SECONDS * times
            side = self._remote(
                f"{times}x offered, {rate:,.0f}/s", "piped", "busy", 1, asked=Asked(many=True, rate=rate)
            )
            return side._replace(measure=lambda _: side.measure(max(1, int(rate * self._plan.open_seconds))))

        for times in OVERLOADS:
            pairs = self._pairs(offered(1), offered(times), times)
            rates = ratio([(first.rate, second.rate) for first, second in pairs])
            later = (_at_least("0.9 of 1x", rates.median, 0.9),)
            rows.append(self._row(group, offered(times), times, "1x", pairs, (), later))
        return rows

    def recovery(self) -> Figure:
        """From the end of ten times the load to the first call that is answered as usual."""
        rate = 0.9 / empty.WORK_SECONDS * max(OVERLOADS)
        took: list[float] = []
        for _ in range(self._plan.pairs):
            calls = max(1, int(rate * self._plan.open_seconds))
            asked = client.Prepare("piped", "busy", 1, calls, many=True, rate=rate, deadline=OPEN_DEADLINE_S)
            self._callers.ask(asked, client.Done)
            self._callers.ask(client.Go(), client.Done)
            took.append(self._callers.ask(client.Recover("piped", "busy", GOOD_SECONDS), client.Done).seconds)
        found = estimate(took)
        return Figure("recovery after 10x", found, "s", (_at_most("2 s", found.high, 2),))

    # -- in process ---------------------------------------------------------------------------------------------------

    def in_process(self) -> list[Row]:
        """The engine on LevelDB beside the one in memory, and lists beside single commands."""
        group = "In process, LevelDB; ratios to the same in memory"
        rows: list[Row] = []
        kinds: tuple[tuple[str, inside.Work], ...] = (
            ("five tasks from outside", "outside"),
            ("routing net, one command", "command"),
            ("RunCases of 100", "batch"),
        )
        for at_once in self._plan.at_once:
            for name, work in kinds:
                memory = self._inside(f"{name}, in memory", "memory", work, at_once)
                disk = self._inside(name, "leveldb", work, at_once)
                pairs = self._pairs(memory, disk, at_once)
                rate = estimate([second.rate for _, second in pairs]).median
                wanted = _RATES.get(work) if at_once == max(self._plan.at_once) else None
                goals = (_at_least(f"{wanted[0]:,} cases/s", rate, wanted[0]),) if wanted else ()
                later = (_at_least(f"{wanted[1]:,} cases/s", rate, wanted[1]),) if wanted else ()
                rows.append(self._row(group, disk, at_once, "memory", pairs, goals, later))
        most = max(self._plan.at_once)
        group = "In process, LevelDB; ratio to the routing net in one command"
        pairs = self._pairs(
            self._inside("command", "leveldb", "command", most),
            batch := self._inside("RunCases of 100", "leveldb", "batch", most),
            most,
        )
        rates = ratio([(first.rate, second.rate) for first, second in pairs])
        goals = (_at_least("0.5 of the command", rates.median, 0.5),)
        later = (_at_least("0.6 of the command", rates.median, 0.6),)
        return [*rows, self._row(group, batch, most, "command", pairs, goals, later)]

    def _inside(self, name: str, place: inside.Place, work: inside.Work, at_once: int) -> Side:
        per_call = BATCH if work == "batch" else 1

        def measure(calls: int) -> Sample:
            machine = machine_cpu_seconds()
            ran = self._engine.ask(inside.Run(place, work, at_once, calls * per_call), inside.Ran)
            others = max(0.0, machine_cpu_seconds() - machine - ran.cpu_seconds)
            return Sample(ran.cases, ran.seconds, ran.cpu_seconds, 0.0, others)

        return Side(name, "cases", measure, per_call)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _pairs(self, first: Side, second: Side, at_once: int) -> list[tuple[Sample, Sample]]:
        """A B A B ..., slices of about the same length, after a warm-up that tells how many calls that is."""
        self._tell(f"{second.name}, {at_once} at once")
        calls = [self._calls(side, at_once) for side in (first, second)]
        return [(first.measure(calls[0]), second.measure(calls[1])) for _ in range(self._plan.pairs)]

    def _calls(self, side: Side, at_once: int) -> int:
        least = min(at_once * FIRST_CALLS // side.per_call or 1, self._plan.most_calls)
        warm = side.measure(max(least, 1))
        return max(1, min(int(warm.rate / side.per_call * self._plan.slice_seconds), self._plan.most_calls))

    def _row(
        self,
        group: str,
        side: Side,
        at_once: int,
        against: str,
        pairs: Sequence[tuple[Sample, Sample]],
        goals: tuple[Goal, ...],
        later: tuple[Goal, ...],
    ) -> Row:
        samples = [second for _, second in pairs]
        return Row(
            group,
            side.name,
            at_once,
            side.unit,
            estimate([sample.rate for sample in samples]),
            estimate([sample.cpu * 1e6 for sample in samples]),
            estimate([sample.p50_ms for sample in samples]).median,
            against,
            ratio([(first.rate, second.rate) for first, second in pairs]),
            ratio([(first.cpu, second.cpu) for first, second in pairs]),
            _limit(samples, at_once),
            goals,
            later,
        )

    def _alone(self, group: str, side: Side, at_once: int, samples: Sequence[Sample]) -> Row:
        return Row(
            group,
            side.name,
            at_once,
            side.unit,
            estimate([sample.rate for sample in samples]),
            estimate([sample.cpu * 1e6 for sample in samples]),
            estimate([sample.p50_ms for sample in samples]).median,
            "",
            None,
            None,
            _limit(samples, at_once),
        )


_RATES: Final[dict[inside.Work, tuple[int, int]]] = {"outside": (4_000, 8_000), "command": (10_000, 20_000)}


def _limit(samples: Sequence[Sample], at_once: int) -> str:
    """What a row ran against, by who was busy."""
    seconds = sum(sample.seconds for sample in samples)
    server = sum(sample.server for sample in samples) / seconds
    caller = sum(sample.client for sample in samples) / seconds
    others = sum(sample.others for sample in samples) / seconds
    refused = sum(sample.refused for sample in samples)
    idle = (os.cpu_count() or 1) - server - caller - others
    shares = f"server {server:.2f}" + (f", client {caller:.2f}" if caller else "") + f", others {others:.2f}"
    if server >= BUSY:
        reason = "server CPU"
    elif caller >= BUSY:
        reason = "client CPU"
    elif idle < 1 - BUSY:
        reason = "no CPU left"
    elif at_once == 1:
        reason = "one by one: waits for each answer"
    else:
        reason = "waits: fsync, wake-ups"
    return f"{reason} ({shares})" + (f", {refused} refused" if refused else "")


def _at_least(wanted: str, value: float, least: float) -> Goal:
    return Goal(f">= {wanted}", value >= least, value)


def _one(value: float) -> Estimate:
    return Estimate(value, value, value)


def _sync_us(directory: Path, count: int) -> float:
    """Microseconds of a write of 4 KB with fdatasync, p50."""
    times: list[float] = []
    descriptor = os.open(directory / "sync", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(count):
            os.write(descriptor, b"\0" * 4096)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(descriptor)
    return estimate(times).median


def _starts(plan: Plan, work: Path, files: Certificates) -> list[Figure]:
    took: list[float] = []
    resident: list[float] = []
    for number in range(plan.starts):
        with daemon(work / f"start-{number}", files) as started:
            took.append(started.took)
            resident.append(resident_bytes(started.pid) / 2**20)
    times, memory = estimate(took), estimate(resident)
    return [
        Figure("exec until ready, empty directory", times, "s", later=(_at_most("0.8 s", times.median, 0.8),)),
        Figure("daemon idle, resident", memory, "MiB", later=(_at_most("100 MB", memory.median * 1.048576, 100),)),
    ]


def _weight(weighed: inside.Ran) -> Figure:
    size = weighed.disk_bytes / weighed.cases
    name = f"disk per case of {STEPS} commands, {weighed.cases:,} cases"
    return Figure(name, _one(size / 1e3), "KB", later=(_at_most("3 KB", size / 1e3, 3),))


_VERDICT_US: Final = {200: 1_000.0, 800: 5_000.0}  # p99 that is wanted, by tasks


def _analysed(found: analysis.Analysed) -> list[Figure]:
    name = f"verification, {found.tasks:,} tasks, free choice: {found.verdict}"
    figures = [Figure(name, found.seconds, "s")]
    for each in found.verdicts:
        most = _VERDICT_US.get(each.size)
        what = f"or-join, {each.tasks} tasks, {each.shape}"
        p99 = each.p99_us
        wanted = () if most is None else (_at_most(f"{most / 1e3:g} ms", p99.median / 1e3, most / 1e3),)
        figures += [Figure(f"{what}: p50", each.p50_us, "us"), Figure(f"{what}: p99", p99, "us", wanted)]
    return figures


def _simulated(found: simulated.Simulated) -> Figure:
    goals = (_at_least(f"{SIMULATED_RATE:,} steps per second of one processor", found.rate.median, SIMULATED_RATE),)
    name = f"simulation, {found.steps:,} steps, {found.violations} violations"
    return Figure(name, found.rate, "/s", goals)


def _at_most(wanted: str, value: float, most: float) -> Goal:
    return Goal(f"<= {wanted}", value <= most, value)


if __name__ == "__main__":
    sys.exit(main())
