"""What each part of a CompleteWorkItem costs on its way, measured apart in one process, without a network.

A stage costs what a chain of all stages takes more than the same chain without it. Everything else is called as the
daemon calls it, pair by pair with what lies below.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import uvloop
from google.protobuf.message import Message

from knhk_sidecar.api import pb
from knhk_sidecar.api.services.work_items import WorkItemService
from knhk_sidecar.identity.grants import Rate
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS, of_certificate
from knhk_sidecar.identity.spiffe_id import SpiffeId
from knhk_sidecar.identity.tls import FileSource, TlsFiles, TlsSource
from knhk_sidecar.pipeline import Call, Method
from knhk_sidecar.pipeline.admission import Admit
from knhk_sidecar.pipeline.audit import Audit
from knhk_sidecar.pipeline.call import Request, methods_of
from knhk_sidecar.pipeline.memory import Memory
from knhk_sidecar.pipeline.rates import Rates, Throttle
from knhk_sidecar.pipeline.stages import Authorize, Identify, Invoke, Observe, Proceed, Translate
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import CallMeta, StateStore, WorkflowEngine
from tests.benchmark.inside import concurrently, item_ids
from tests.benchmark.processes import serve_questions
from tests.benchmark.samples import Estimate, estimate
from tests.benchmark.workloads import DATA, DOCUMENTS, OUTPUT, STEPWISE

PATH = "/knhk.sidecar.v1.WorkItemService/CompleteWorkItem"
AT_ONCE = 32
METHODS = methods_of(next(one for one in pb.SERVICES if one.name == "WorkItemService"))
NEVER_REACHED = Rate(1e9, 1_000_000_000)
POLICIES = Policies.without_file("knhk.dev", "application")  # the domain of the developer's certificates
CALLER = of_certificate(SpiffeId.parse("spiffe://knhk.dev/app"))


class Measure(msgspec.Struct):
    """Measure so many pairs, each of so many calls; an engine on disk works below `directory`."""

    directory: str
    pairs: int
    calls: int


class Hop(msgspec.Struct):
    """A part of the way, and its microseconds of processor time per call."""

    name: str
    us: Estimate


class Hops(msgspec.Struct):
    """All parts, outermost first."""

    hops: list[Hop]


Run = Callable[[], Awaitable[float]]


class Way:
    """The parts, ready to be called."""

    def __init__(self, tls: TlsSource, leaf: bytes) -> None:
        self._method: Method = METHODS[PATH]
        self._tls = tls
        self._leaf = leaf
        self._text = pb.CompleteWorkItemRequest(item_id="3.1.1@bench-1234-5678", output_json=OUTPUT).SerializeToString()

    async def measure(self, asked: Measure) -> Hops:
        """Every hop."""
        plain = await WorkflowEngine(StateStore(":memory:")).open()
        durable = await WorkflowEngine(StateStore(asked.directory)).open()
        for engine in (plain, durable):
            for text in DOCUMENTS:
                await engine.register_workflow(text)
        items = await item_ids(plain)
        gc.collect()
        answer = await self._answer(plain, items[0])
        calls = asked.calls
        hops = [
            Hop("parse the request", await _alone(lambda: self._parsing(calls), asked.pairs)),
            Hop("make the call", await _alone(lambda: self._calling(calls), asked.pairs)),
        ]
        for name in STAGES:
            both = (lambda: self._stages(calls), lambda name=name: self._stages(calls, without=name))
            hops.append(Hop(name, await _difference(*both, asked.pairs)))
        steps = max(calls // 10, len(items))
        on_disk = (lambda: self._engine(durable, items, steps), lambda: self._engine(plain, items, steps))
        served = (lambda: self._service(plain, items, steps), lambda: self._engine(plain, items, steps))
        hops += [
            Hop("service and wire", await _difference(*served, asked.pairs)),
            Hop("engine, in memory", await _alone(served[1], asked.pairs)),
            Hop("engine, LevelDB on top", await _difference(*on_disk, asked.pairs)),
            Hop("serialize the answer", await _alone(lambda: self._serializing(answer, calls), asked.pairs)),
        ]
        for engine in (plain, durable):
            await engine.close()
        return Hops(hops)

    async def _answer(self, engine: WorkflowEngine, item: str) -> Message:
        case = await engine.run_case(STEPWISE, DATA)
        request = pb.CompleteWorkItemRequest(item_id=f"{item}@{case.case_id}", output_json=OUTPUT)
        return await WorkItemService(engine).complete_work_item(request, CallMeta())

    async def _parsing(self, calls: int) -> float:
        parse, text = pb.CompleteWorkItemRequest.FromString, self._text
        began = time.process_time()
        for _ in range(calls):
            parse(text)
        return (time.process_time() - began) / calls

    async def _serializing(self, answer: Message, calls: int) -> float:
        began = time.process_time()
        for _ in range(calls):
            answer.SerializeToString()
        return (time.process_time() - began) / calls

    async def _calling(self, calls: int) -> float:
        began = time.process_time()
        for _ in range(calls):
            self._call()
        return (time.process_time() - began) / calls

    def _call(self) -> Call:
        return Call(
            self._method,
            protocol="grpc",
            peer="ipv4:127.0.0.1:1234",
            leaf=self._leaf,
            deadline=time.time_ns() + 60_000_000_000,
        )

    async def _stages(self, calls: int, without: str = "") -> float:
        """The stages around a handler that gives a ready answer."""
        answer = pb.CompleteWorkItemResponse()

        async def ready(request: Request, meta: CallMeta) -> Message:
            if meta.witness is not None:
                meta.witness.recorded = True  # as the commit of the effect does
            return answer

        async def nothing(call: Call, request: Request) -> Message | None:
            return answer

        run: Proceed = nothing if without == "invoke" else Invoke({PATH: ready}).run
        for name, make in reversed(tuple(STAGES.items())):
            if name not in ("invoke", without):
                run = make(run, self._tls)
        request, made = pb.CompleteWorkItemRequest.FromString(self._text), [self._call() for _ in range(calls)]
        for call in made:
            call.principal = CALLER  # whom the chain without `identify` has
        began = time.process_time()
        for call in made:
            await run(call, request)
        return (time.process_time() - began) / calls

    async def _engine(self, engine: WorkflowEngine, items: Sequence[str], steps: int) -> float:
        async def complete(item: str) -> None:
            await engine.complete_work_item(item, OUTPUT, "clerk")

        return await self._steps(engine, items, steps, complete)

    async def _service(self, engine: WorkflowEngine, items: Sequence[str], steps: int) -> float:
        service, meta = WorkItemService(engine), CallMeta(principal="clerk", deadline=time.time_ns() + 60_000_000_000)

        async def complete(item: str) -> None:
            await service.complete_work_item(pb.CompleteWorkItemRequest(item_id=item, output_json=OUTPUT), meta)

        return await self._steps(engine, items, steps, complete)

    async def _steps(
        self, engine: WorkflowEngine, items: Sequence[str], steps: int, complete: Callable[[str], Awaitable[None]]
    ) -> float:
        """Whole cases from outside, 32 at a time; the cases are made beforehand."""
        cases = [(await engine.run_case(STEPWISE, DATA)).case_id for _ in range(-(-steps // len(items)))]
        waiting = iter(cases)

        async def one() -> None:
            case_id = next(waiting)
            for item in items:
                await complete(f"{item}@{case_id}")

        gc.collect()
        began = time.process_time()
        await concurrently(one, len(cases), AT_ONCE)
        return (time.process_time() - began) / (len(cases) * len(items))


STAGES: dict[str, Callable[[Proceed, TlsSource], Proceed]] = {
    "observe": lambda proceed, _: Observe(proceed, Log("warning"), Counters()).run,
    "audit": lambda proceed, _: (
        Audit(
            proceed,
            METHODS,
            record=lambda *_: None,
            again=lambda _: True,
            full=lambda: False,
            now=time.time_ns,
            reads=True,
        ).run
    ),
    "translate": lambda proceed, _: Translate(proceed).run,
    "identify": lambda proceed, tls: Identify(proceed, tls.leaves, ANONYMOUS).run,
    "authorize": lambda proceed, _: Authorize(proceed, POLICIES).run,
    "throttle": lambda proceed, _: Throttle(proceed, Rates(NEVER_REACHED, time.time_ns)).run,
    "admit": lambda proceed, _: (
        Admit(
            proceed,
            now=time.time_ns,
            in_flight=256,
            queued=512,
            waiting=1_024,
            streams_per_connection=16,
            stream_messages=1_000_000,
            memory=Memory(1 << 40, 85),
        ).run
    ),
    "invoke": lambda proceed, _: proceed,
}


async def _alone(run: Run, pairs: int) -> Estimate:
    await run()
    return estimate([await run() * 1e6 for _ in range(pairs)])


async def _difference(whole: Run, part: Run, pairs: int) -> Estimate:
    await whole()
    await part()
    return estimate([(await whole() - await part()) * 1e6 for _ in range(pairs)])


async def main(cert: str, key: str, ca: str, client: str) -> None:
    """Measures when the parent says so."""
    tls = FileSource(TlsFiles(cert, key, ca))
    leaf = await asyncio.to_thread(Path(client).read_bytes)
    gc.freeze()
    await serve_questions(Measure, Way(tls, leaf).measure)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
