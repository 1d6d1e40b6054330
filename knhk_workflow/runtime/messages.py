"""Messages: signals addressed to a business key, or to every case that waits for their name.

    sent -> durable message (whom it goes to, until when it lives) -> one command for each case -> done, or it waits

Once the message is durable it reaches every case that it names, whatever happens to the caller, the connection or the
process: what was under way when the engine ended is finished when it opens again. Each case takes a message once,
because its delivery is a command with the message's id as its request id.

Whom it goes to is decided when it is sent: the open cases with the business key; without a key the open cases whose
workflow has a task that waits for the name. A message that finds none whose workflow knows the name waits for its time
to live, for the first case that is created later, fits, and keeps such signals (WCP-24). A signal that is transient
there is not for it (WCP-23): nobody was waiting when it was sent. Messages whose time is over are swept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final, NamedTuple

import msgspec

from knhk_workflow.core.commands import ENDED, Signal
from knhk_workflow.errors import (
    Busy,
    LimitExceeded,
    RequestMismatch,
    StoreCorrupt,
    StoreError,
    StoreFormat,
    StoreUnavailable,
    WorkflowError,
)
from knhk_workflow.model.units import NS_PER_S
from knhk_workflow.runtime.audited import audited
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.definitions import Definitions
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.problems import Damaged
from knhk_workflow.runtime.records import HEADS, MESSAGES, REQUESTS, CaseHead, MessageRecord, RequestRecord, pack
from knhk_workflow.runtime.views import MessageView, TriggerDelivery
from knhk_workflow.store import ExpectationFailed, Journal, Keyspace, OutcomeUnknown, Reads, Unit, Write
from knhk_workflow.store.keys import parse_business_key, parse_case_head, parse_message
from knhk_workflow.store.portions import portions

CASES_MAX: Final = 10_000  # that one message reaches; its answer lists them all in about 600 KB
WAITING_MAX: Final = 10_000  # messages without receiver; each new case looks at those of its key
TIME_TO_LIVE: Final = 3_600 * NS_PER_S  # of a message that says nothing
TIME_TO_LIVE_MAX: Final = 10 * 366 * 24 * 3_600 * NS_PER_S  # ten years: points in time are 64 bits of nanoseconds
TOGETHER: Final = 128  # deliveries under way at once; they share commits
PAGE: Final = 500  # rows per read while looking for cases
RECOVER_PAGE: Final = 16  # messages per read; each may hold 2 MB
PAUSE_S: Final = 0.5  # between attempts while the store cannot write

Deliver = Callable[[str, Signal, CallMeta], Awaitable[TriggerDelivery]]
Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]

_Place = tuple[str, bytes]
"""(tenant, scope): the scope is the hash of principal, method and request id, as for every request."""


class Sending(NamedTuple):
    """What is to be sent. `scope` and `fingerprint` are those of the request; `time_to_live` None is the default."""

    meta: CallMeta
    scope: bytes
    fingerprint: bytes
    name: str
    key: str
    data: bytes
    time_to_live: int | None


class _Going(NamedTuple):
    """A message on its way."""

    fingerprint: bytes
    answer: asyncio.Future[MessageView]


class _Waiting(NamedTuple):
    """A message without receiver, as much of it as is kept in memory."""

    name: str
    expires: int


class Messages:
    """The messages of every tenant."""

    def __init__(
        self,
        reads: Reads,
        journal: Journal,
        keyspace: Keyspace,
        definitions: Definitions,
        clock: Clock,
        deliver: Deliver,
        spawn: Spawn,
        most: int = CASES_MAX,
    ) -> None:
        self._reads = reads
        self._journal = journal
        self._keys = keyspace
        self._definitions = definitions
        self._clock = clock
        self._deliver = deliver
        self._spawn = spawn
        self._most = most
        self._going: dict[_Place, _Going] = {}
        self._waiting: dict[tuple[str, str], dict[bytes, _Waiting]] = {}  # by tenant and business key
        self._newcomers: deque[tuple[str, str]] = deque()  # cases that waiting messages have not been held against
        self._looking: asyncio.Task[None] | None = None
        self._damaged = Damaged()
        self._closed = False

    def close(self) -> None:
        """Begin nothing more. What is under way ends with the tasks that carry it, and goes on at the next start."""
        self._closed = True
        for going in self._going.values():
            if not going.answer.done():
                going.answer.set_exception(_unfinished())

    async def send(self, asked: Sending) -> MessageView:
        """Make a message durable and deliver it. Repeated with its request id, the answer is the first one.

        Raises LimitExceeded and StoreUnavailable with nothing sent, RequestMismatch, and OutcomeUnknown when the engine
        ends before all cases have it: the message is then delivered after the next start.
        """
        place = (asked.meta.tenant, asked.scope)
        if place not in self._going:
            answered = await self._answered(asked)
            if answered is not None:
                return answered
            if self._closed:
                raise StoreUnavailable("the engine is closed")  # meanwhile: nobody would carry the message any further
        going = self._going.get(place)
        if going is None:
            going = self._begin(place, asked.fingerprint)
            self._spawn(self._carry(place, going, asked))
        elif going.fingerprint != asked.fingerprint:
            raise RequestMismatch(asked.meta.request_id)
        return await asyncio.shield(going.answer)

    def notice(self, units: Sequence[Unit]) -> None:
        """Cases were committed: new ones may be what a message waits for. Never blocks."""
        if self._closed or not (self._going or self._waiting):
            return
        self._newcomers.extend(
            (unit.tenant, unit.case_id) for unit in units if unit.case_id and unit.first_sequence == 1
        )
        if self._newcomers and self._looking is None:
            self._looking = self._spawn(self._look())

    async def flush(self) -> None:
        """Return once no message is on its way and no new case is still to be held against those that wait."""
        while self._going or self._looking is not None:
            looking = (self._looking,) if self._looking is not None else ()
            await asyncio.wait((*(going.answer for going in self._going.values()), *looking))
            await asyncio.sleep(0)  # the ends of what was waited for are taken note of by tasks of their own

    async def recover(self) -> None:
        """Take up what was under way when the engine last ended, and know what waits."""
        for shard in range(self._keys.shards):
            async for rows in portions(self._reads, self._keys.messages(shard), RECOVER_PAGE):
                for key, value in rows:
                    tenant, scope = parse_message(key)
                    try:
                        message = MESSAGES.read(key, value)
                    except (StoreCorrupt, StoreFormat) as error:  # the others go on; verifying the store names it
                        self._passed_over(key, f"a message of tenant {tenant!r}", error)
                        continue
                    if message.targets or not message.answered:
                        going = self._begin((tenant, scope), message.fingerprint)
                        self._spawn(self._finish_of((tenant, scope), going, message, value))
                    else:
                        self._wait(tenant, scope, message)

    async def sweep(self) -> None:
        """Delete the messages whose time is over."""
        now = self._clock.now()
        over = [
            (tenant, key, scope, waiting)
            for (tenant, key), each in self._waiting.items()
            for scope, waiting in each.items()
            if waiting.expires <= now
        ]
        for tenant, key, scope, waiting in over:
            if not self._unwait(tenant, key, scope):
                continue
            try:
                await self._write((tenant, scope), [(self._key((tenant, scope)), None)])
            except StoreError:
                self._waiting.setdefault((tenant, key), {})[scope] = waiting  # the next round does it
                raise

    # -- on its way ---------------------------------------------------------------------------------------------------

    def _begin(self, place: _Place, fingerprint: bytes) -> _Going:
        answer: asyncio.Future[MessageView] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # a caller may have gone
        going = self._going[place] = _Going(fingerprint, answer)
        return going

    async def _carry(self, place: _Place, going: _Going, asked: Sending) -> None:
        """From what was asked to the last delivery."""

        async def work() -> MessageView:
            found, known = await self._receivers(asked.meta.tenant, asked.name, asked.key)
            lives = TIME_TO_LIVE if asked.time_to_live is None else asked.time_to_live
            meta, expires = asked.meta, self._clock.now() + lives
            waits = not known and lives > 0
            if waits and sum(map(len, self._waiting.values())) >= WAITING_MAX:
                raise LimitExceeded("messages that wait for a receiver", WAITING_MAX, WAITING_MAX + 1)
            message = MessageRecord(
                meta.request_id,
                asked.name,
                asked.key,
                asked.data,
                asked.time_to_live,
                expires,
                meta.principal,
                meta.method,
                asked.fingerprint,
                waits,
                found,
            )
            if not found:
                return await self._ended(place, message, None, (), meta)
            value = pack(message)
            await self._write(place, [(self._key(place), value)], None, None, (meta, asked.name))
            return await self._finish(place, message, value)

        await self._settle(place, going, work())

    async def _finish_of(self, place: _Place, going: _Going, message: MessageRecord, value: bytes) -> None:
        await self._settle(place, going, self._finish(place, message, value))

    async def _settle(self, place: _Place, going: _Going, work: Coroutine[object, object, MessageView]) -> None:
        """Tell whoever waits for a message how its way ended."""
        try:
            view = await work
        except BaseException as error:
            if not going.answer.done():
                going.answer.set_exception(_unfinished() if isinstance(error, asyncio.CancelledError) else error)
            if not isinstance(error, WorkflowError):
                raise
        else:
            if not going.answer.done():
                going.answer.set_result(view)
        finally:
            del self._going[place]

    async def _finish(self, place: _Place, message: MessageRecord, value: bytes) -> MessageView:
        """Deliver a durable message to every case that it names, then let it go or wait."""
        signal = Signal(message.name, message.data, message.time_to_live, message.expires)
        meta = CallMeta(tenant=place[0], principal=message.principal, method=message.method)
        deliveries: list[TriggerDelivery] = []
        for first in range(0, len(message.targets), TOGETHER):
            cases = message.targets[first : first + TOGETHER]
            metas = [msgspec.structs.replace(meta, request_id=f"{message.message_id}#{case}") for case in cases]
            found = await asyncio.gather(
                *(self._one(case, signal, one) for case, one in zip(cases, metas, strict=True))
            )
            deliveries += (each for each in found if each is not None)
        return await self._ended(place, message, value, tuple(deliveries))

    async def _one(self, case_id: str, signal: Signal, meta: CallMeta) -> TriggerDelivery | None:
        """One case's delivery, as often tried as it takes. None: the case has ended or is gone."""
        while True:
            try:
                return await self._deliver(case_id, signal, meta)
            except (StoreUnavailable, OutcomeUnknown, Busy):
                if self._closed:
                    raise _unfinished() from None  # the next start goes on with it
                await asyncio.sleep(PAUSE_S)  # the request id makes it safe to try again
            except LimitExceeded:
                return TriggerDelivery(case_id, "lost")  # it keeps too many signals already
            except WorkflowError:
                return None

    async def _ended(
        self,
        place: _Place,
        message: MessageRecord,
        value: bytes | None,
        deliveries: tuple[TriggerDelivery, ...],
        meta: CallMeta | None = None,
    ) -> MessageView:
        """All cases have it: it goes, or waits for one that is not there yet. `meta`: the call that sent it, when
        nothing of it is durable yet."""
        received = any(each.outcome != "lost" for each in deliveries)
        left: MessageRecord | None = None
        if message.waits and not received and message.expires > self._clock.now():
            left = msgspec.structs.replace(message, targets=(), answered=True)
        view = MessageView(message.message_id, deliveries, left.expires if left is not None else 0)
        writes: list[Write] = []
        if left is not None or value is not None:
            writes.append((self._key(place), pack(left) if left is not None else None))
        request = None
        if not message.answered:
            request = self._request(place)
            writes.append((request, pack(RequestRecord(message.fingerprint, "", 0, _encode(view)))))
        unknown = False
        while True:
            try:
                await self._write(place, writes, value, request, (meta, message.name) if meta is not None else None)
                break
            except ExpectationFailed:
                if unknown:
                    break  # the attempt before has done it
                raise
            except (StoreUnavailable, OutcomeUnknown, Busy) as error:
                if value is None:
                    raise  # nothing of it is durable: the caller sends it again
                if self._closed:
                    raise _unfinished() from None
                unknown = unknown or isinstance(error, OutcomeUnknown)
                await asyncio.sleep(PAUSE_S)
        if left is not None:
            self._wait(place[0], place[1], left)
        return view

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self, tenant: str, scope: bytes, message: MessageRecord) -> None:
        self._waiting.setdefault((tenant, message.key), {})[scope] = _Waiting(message.name, message.expires)

    def _unwait(self, tenant: str, key: str, scope: bytes) -> bool:
        """Whether the message still waited; it does no longer."""
        each = self._waiting.get((tenant, key), {})
        found = each.pop(scope, None) is not None
        if found and not each:
            del self._waiting[tenant, key]
        return found

    async def _look(self) -> None:
        """Hold new cases against what waits, one after the other."""
        try:
            while self._newcomers:
                tenant, case_id = self._newcomers.popleft()
                under_way = [going.answer for place, going in self._going.items() if place[0] == tenant]
                if under_way:
                    await asyncio.wait(under_way)  # one of them may come to wait for this very case
                if not self._waiting:
                    continue
                try:
                    await self._offer(tenant, case_id)
                except (StoreUnavailable, OutcomeUnknown, Busy):
                    self._newcomers.append((tenant, case_id))
                    await asyncio.sleep(PAUSE_S)
                except WorkflowError:
                    continue  # the case cannot be read; whoever touches it is told
        finally:
            self._looking = None

    async def _offer(self, tenant: str, case_id: str) -> None:
        """Give a new case the messages that have waited for it, oldest first."""
        head = await self._head(tenant, case_id)
        if head is None:
            return
        model = await self._definitions.model(tenant, head.spec_id, head.version)
        now = self._clock.now()
        fitting = [
            (waiting.expires, scope, key)
            for key in dict.fromkeys((head.business_key, ""))
            for scope, waiting in self._waiting.get((tenant, key), {}).items()
            if waiting.expires > now and model.keeps(waiting.name)
        ]
        for _, scope, key in sorted(fitting):
            try:
                await self._claim((tenant, scope), key, case_id)
            except (StoreCorrupt, StoreFormat) as error:
                self._passed_over(scope, f"a message that waits for case {case_id!r} of tenant {tenant!r}", error)

    async def _claim(self, place: _Place, key: str, case_id: str) -> None:
        """Say durably that a waiting message goes to this case, then deliver it."""
        stored = await self._reads.get(self._key(place))
        if stored is None or not self._unwait(place[0], key, place[1]):
            return
        waiting = MESSAGES.read(self._key(place), stored)
        message = msgspec.structs.replace(waiting, targets=(case_id,))
        going, value = self._begin(place, message.fingerprint), pack(message)

        async def work() -> MessageView:
            try:
                await self._write(place, [(self._key(place), value)], stored)
            except WorkflowError:
                self._wait(*place, waiting)
                raise
            return await self._finish(place, message, value)

        await self._settle(place, going, work())
        if (error := going.answer.exception()) is not None:
            raise error

    # -- who is there -------------------------------------------------------------------------------------------------

    async def _receivers(self, tenant: str, name: str, key: str) -> tuple[tuple[str, ...], bool]:
        """The open cases that a message goes to, and whether a workflow of theirs knows the name. Raises LimitExceeded
        before anything was sent."""
        found: list[str] = []
        hearing: dict[tuple[str, int], bool] = {}
        for shard in range(self._keys.shards):
            cases = self._keys.business_keys(shard, tenant, key) if key else self._keys.cases(shard, tenant)
            async for rows in portions(self._reads, cases, PAGE):
                for row, value in rows:
                    case_id = parse_business_key(row)[2] if key else parse_case_head(row)[1]
                    head = await self._head(tenant, case_id, None if key else value)
                    if head is None or head.state in ENDED:
                        continue
                    version = (head.spec_id, head.version)
                    if version not in hearing:
                        hearing[version] = await self._hears(tenant, *version, name)
                    if key or hearing[version]:
                        found.append(case_id)
                    if len(found) > self._most:
                        what = "cases that one message reaches"
                        raise LimitExceeded(what, self._most, len(found), "use narrower keys")
        return tuple(found), any(hearing.values())

    async def _head(self, tenant: str, case_id: str, value: bytes | None = None) -> CaseHead | None:
        """What is stored of a case (`value`, when it was read already). None: nothing, or it cannot be read, and then
        no message reaches the case."""
        key = self._keys.case_head(tenant, case_id)
        stored = value if value is not None else await self._reads.get(key)
        try:
            return HEADS.read(key, stored) if stored is not None else None
        except (StoreCorrupt, StoreFormat) as error:
            self._passed_over(key, f"case {case_id!r} of tenant {tenant!r}", error)
            return None

    async def _hears(self, tenant: str, spec_id: str, version: int, name: str) -> bool:
        try:
            model = await self._definitions.model(tenant, spec_id, version)
        except (StoreCorrupt, StoreFormat) as error:
            key = self._keys.definition(tenant, spec_id, version)
            self._passed_over(key, f"workflow '{spec_id}@{version}' of tenant {tenant!r}", error)
            return False
        return any(
            task.trigger is not None and task.trigger.name == name for net in model.spec.nets for task in net.tasks
        )

    def _passed_over(self, key: bytes, what: str, error: StoreError) -> None:
        """Say once that something which is damaged gets no messages, or is one that nobody gets."""
        self._damaged.met(key, f"{what} cannot be read and is passed over", error)

    # -- the store ----------------------------------------------------------------------------------------------------

    def _shard(self, place: _Place) -> int:
        return self._keys.shard_of(place[0], place[1].hex())

    def _key(self, place: _Place) -> bytes:
        return self._keys.message(self._shard(place), *place)

    def _request(self, place: _Place) -> bytes:
        return self._keys.request(self._shard(place), *place)

    async def _write(
        self,
        place: _Place,
        writes: list[Write],
        before: bytes | None = b"",
        request: bytes | None = None,
        sent: tuple[CallMeta, str] | None = None,
    ) -> None:
        """Commit a change of one message. `before`: what is stored of it now; empty = whatever it is. `sent`: the call
        that sends it under this name, for the audit; the cases that get it tell of their deliveries themselves."""
        expect = [(self._key(place), before)] if before != b"" else []
        shard = self._shard(place)
        audits: tuple[bytes, ...] = ()
        if sent is not None:
            entry = audited(self._keys, shard, sent[0], f"signals/{sent[1]}", self._clock.now())
            writes, audits = [*writes, entry.write], (entry.reference,)
        await self._journal.append(Unit.aside(shard, place[0], writes, expect, request, audits))

    async def _answered(self, asked: Sending) -> MessageView | None:
        """The answer that this request id got before."""
        key = self._request((asked.meta.tenant, asked.scope))
        stored = await self._reads.get(key)
        if stored is None:
            return None
        record = REQUESTS.read(key, stored)
        if record.fingerprint != asked.fingerprint:
            raise RequestMismatch(asked.meta.request_id)
        return _decode(record.receipt)


def _unfinished() -> OutcomeUnknown:
    return OutcomeUnknown("the engine is closing; what is durable of the message is delivered later", full=False)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MessageView).decode
