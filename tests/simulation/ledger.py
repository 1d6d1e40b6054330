"""What is true of the bytes, kept by a second reader that shares nothing with the engine but the format.

Every commit that reaches the disk is read here at once: its records are folded into a case of the ledger's own, and
the rows, the head, the effects and the chain beside them are compared with it, of the cases that it touched. Every
answer that a caller gets is compared with what is written by then. After crashes, and at the end of an episode,
everything is read again from the first byte. What a damaged disk shows to the engine is not read here.

    lost      an acknowledged command whose record is not there
    twice     a command, a request id or a work item that has more than one record of the same
    undead    a command that was refused, and is there all the same
    ahead     an answer that shows what is not written
    differs   live state, snapshot, head, row or effect that is not what the records say
    early     a timer that fired before it was due
    late      a timer that is due for a long time while nothing is in its way
    unmade    a result of a connector's call that nobody outside has made, or a call that nothing written asks for
    chain     a batch record that does not follow the one before, or does not cover its records
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from knhk_workflow import CaseView, WorkflowEngine
from knhk_workflow.core import events as e
from knhk_workflow.core.apply import replay
from knhk_workflow.core.case import Case, decode_state, encode_state
from knhk_workflow.core.commands import ENDED
from knhk_workflow.runtime.records import CALLS, COMMITS, HEADS, INCIDENTS, ITEMS, SNAPSHOTS, CommitRecord
from knhk_workflow.store import GENESIS, META_SHARD, CaseKeys, Keyspace, Write, digest, unseal, unseal_log
from knhk_workflow.store.keys import (
    EFFECT,
    HEAD,
    INCIDENT,
    ITEM,
    LOG,
    RECORD,
    SNAPSHOT,
    TIMER,
    parse_case_head,
    parse_case_record,
    parse_effect,
    parse_incident,
    parse_item,
    parse_log,
    parse_timer,
    shard_in,
)
from tests.inside import parts
from tests.simulation.disk import Disk

if TYPE_CHECKING:
    from tests.simulation.clients import Asked

ROWS_EVERY: Final = 8  # commits; the rows beside the records of a case are compared then, and what is wrong stays wrong
VIOLATIONS_MAX: Final = 20  # more of the same says nothing new
CALL: Final = "call "  # what the ids of effects begin with that are calls
_SYSTEM: Final = b"\x00\x02"
_END: Final = b"\x00\x01"

_decode: Final = msgspec.msgpack.Decoder(CommitRecord).decode
_SYSTEM_KINDS: Final = frozenset({LOG, EFFECT, TIMER})

Name = tuple[str, str]
"""(tenant, case id)"""

Request = tuple[str, str, str, str]
"""(tenant, principal, method, request id)"""


class Seen:
    """A case as its records tell it."""

    __slots__ = ("case", "completed", "encoded", "fired", "keys", "offered", "undoable")

    def __init__(self, keys: CaseKeys, case: Case) -> None:
        self.keys = keys
        self.case = case
        self.completed: set[tuple[int, int, int]] = set()
        self.offered: set[tuple[int, int, int]] = set()
        self.fired: set[int] = set()
        self.undoable: dict[int, set[tuple[int, int]]] = {}  # by net: what was completed and can be undone
        self.encoded: bytes | None = None

    def state(self) -> bytes:
        """The canonical bytes of the case."""
        if self.encoded is None:
            self.encoded = encode_state(self.case)
        return self.encoded


def _name(seen: Seen) -> Name:
    return seen.keys.tenant, seen.keys.case_id


def _call_key(seen: Seen, event: e.ConnectorBegun | e.ConnectorCompleted) -> str:
    name = f"{event.activation}.{event.instance}".encode()
    return blake2b(name, digest_size=16, key=seen.case.salt).hexdigest()


def _kind(key: bytes) -> bytes:
    """The kind byte of a key; empty for keys of the system area other than log and effect."""
    if key[2:4] == _SYSTEM:
        kind = key[4:5]
        return kind if kind in _SYSTEM_KINDS else b""
    at = key.find(_END, 2) + 2
    return key[at : at + 1]


class Ledger:
    """Everything known of one disk. `violations` says what is wrong, in the order it was found."""

    def __init__(self, disk: Disk, stop: Callable[[], None]) -> None:
        self.disk = disk
        self._stop = stop
        self.keys = Keyspace(disk.shards)
        self.violations: list[str] = []
        self.cases: dict[Name, Seen] = {}
        self.events = 0
        self.fired = 0
        self.reads_from_start = 0
        self.hashed = 0
        self.met: Counter[tuple[str, str]] = Counter()
        """How often events of a type met a kind of fault: in the commit that it struck, or the next one after it."""
        self._meeting: set[str] = set()
        self.damaged: set[Name] = set()
        """Cases that were damaged at some time in this episode."""
        self._traces: dict[str, dict[Name, int]] = {}
        self._requests: dict[Request, str] = {}
        self._refused: set[tuple[str, Name | None]] = set()
        self._acknowledged: list[tuple[str, Name]] = []
        self._links: dict[int, tuple[int, bytes]] = {}
        self._followed = 0
        self._resolving = False
        self._unchecked: dict[Name, Seen] = {}
        self._wanted: set[str] = set()
        """Keys of the connectors' calls that were ever written."""
        self._acted: Counter[str] = Counter()
        """How often the outside has acted, by the key of the call."""
        self._begun: Counter[str] = Counter()
        self._doubtful: set[tuple[Name, int, int]] = set()
        """Calls that must not be made again, since nobody knows whether they were made."""

    def report(self, what: str) -> None:
        """Note a violation, and let the episode end."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(what)
        self._stop()

    # -- faults -------------------------------------------------------------------------------------------------------

    def struck(self, fault: str, writes: Sequence[Write]) -> None:
        """A fault meets a commit, or, without writes, whatever is written next."""
        if not writes:
            self._meeting.add(fault)
            return
        for key, value in writes:
            if value is not None and _kind(key) == RECORD:
                self._meet((fault,), COMMITS.read(key, value).events)

    def _meet(self, faults: Iterable[str], events: Sequence[e.Event]) -> None:
        names = {type(event).__name__ for event in events}
        self.met.update((fault, name) for fault in faults for name in names)

    # -- the outside --------------------------------------------------------------------------------------------------

    def called(self, key: str) -> None:
        """A call comes to the outside."""
        if key not in self._wanted:
            self.report(f"unmade: call {key} is made, and nothing written asks for it")

    def acted(self, key: str, *, once: bool) -> None:
        """The outside acts on a call. `once`: it must not be asked to twice."""
        self._acted[key] += 1
        if once and self._acted[key] > self._begun[key]:
            self.report(f"twice: call {key} is made {self._acted[key]} times, begun {self._begun[key]} times")

    def has_acted(self, key: str) -> bool:
        """Whether the outside has acted on a call."""
        return self._acted[key] > 0

    # -- what is written ----------------------------------------------------------------------------------------------

    def written(self, writes: Sequence[Write]) -> None:
        """Follow one commit that has just reached the disk."""
        try:
            self._follow(writes)
            self._followed += 1
            if self._followed % ROWS_EVERY == 0:
                self._compare_all_rows()
        except Exception as error:  # noqa: BLE001  # whatever the reader stumbles over is what it is here to find
            self.report(f"differs: what was written cannot be read: {error!r}")

    def reread(self) -> None:
        """Start over from the bytes, after a crash that took some of them. What was acknowledged must be there."""
        self.cases.clear()
        self._traces.clear()
        self._requests.clear()
        self._links.clear()
        self._unchecked.clear()
        self._begun.clear()
        self._doubtful.clear()
        try:
            self._follow_log()
        except Exception as error:  # noqa: BLE001  # as in `written`
            self.report(f"differs: what survived cannot be read: {error!r}")
        for trace, name in self._acknowledged:
            if not self.wrote(trace, name):
                self.report(f"lost: {trace} was acknowledged, and its record in {'/'.join(name)} is gone")

    def _follow_log(self) -> None:
        """Every batch of every log, in order, with its records."""
        for shard in self.keys.all_shards():
            for key, value in self.disk.scan(*self.keys.log_range(shard)):
                batch: list[Write] = []
                for entry in unseal_log(key, value)[0].entries:
                    record_key = self.keys.case_record(entry.tenant, entry.case_id, entry.first_sequence)
                    batch.append((record_key, self.disk.bytes.get(record_key)))
                self._follow([*batch, (key, value)])

    def _follow(self, writes: Sequence[Write]) -> None:
        touched: dict[Name, Seen] = {}
        digests: list[tuple[str, str, int, int, bytes]] = []
        for key, value in writes:
            kind = _kind(key)
            if kind == RECORD:
                if value is None:
                    self.report(f"lost: record {key.hex()} was deleted")
                    continue
                tenant, case_id, first = parse_case_record(key)
                payload = unseal(key, value)
                record = _decode(payload)
                seen = self._record(tenant, case_id, first, record)
                touched[tenant, case_id] = seen
                digests.append((tenant, case_id, first, len(record.events), digest(payload, seen.case.salt)))
            elif kind == LOG and value is not None:
                self._link(key, value, digests)
                digests = []
            elif kind == EFFECT and value and parse_effect(key)[2].startswith(CALL):
                self._wanted.add(CALLS.read(key, value).key)
        for name, seen in touched.items():
            self._compare_marking(seen.case, "/".join(name))
        self._unchecked.update(touched)
        if digests:
            self.report(f"chain: records of {digests[0][1]!r} were written without a batch record")

    def _record(self, tenant: str, case_id: str, first: int, record: CommitRecord) -> Seen:
        """Fold one commit record; it must be the next one of its case."""
        name = (tenant, case_id)
        seen = self.cases.get(name)
        where = f"{tenant}/{case_id}"
        expected = seen.case.sequence + 1 if seen is not None else 1
        if first != expected:
            self.report(f"differs: {where} has {expected - 1} events, and a record of event {first} was written")
            if seen is not None and first < expected:
                return seen
        if seen is None:
            seen = self.cases[name] = Seen(self.keys.case(tenant, case_id), replay(None, record.time, record.events))
        else:
            if record.time < seen.case.now:
                self.report(f"differs: time runs backwards in {where}")
            seen.case = replay(seen.case, record.time, record.events)
            seen.encoded = None
        self.events += len(record.events)
        self._meet(self._meeting, record.events)
        self._meeting.clear()
        if record.trace_id:
            trace = record.trace_id
            places = self._traces.setdefault(trace, {})
            places[name] = places.get(name, 0) + 1
            if places[name] > 1:
                self.report(f"twice: command {trace} has {places[name]} records in {where}")
            if (trace, None) in self._refused or (trace, name) in self._refused:
                self.report(f"undead: command {trace} was refused, now it is written in {where}")
        if record.request_id:
            request = (tenant, record.principal, record.method, record.request_id)
            if request in self._requests:
                self.report(f"twice: request {request} was carried out again, in {where}")
            self._requests[request] = record.trace_id
        self._resolving = record.method == "resolve_incident"
        if self._resolving:
            self._doubtful = {each for each in self._doubtful if each[0] != name}
        for event in record.events:
            judge = _JUDGES.get(type(event))
            if judge is not None:
                judge(self, seen, event, record.time, where)
        return seen

    def _completed(self, seen: Seen, event: e.ItemCompleted, now: int, where: str) -> None:
        if self._resolving:  # somebody may replace what an item gave when nothing could follow from it
            seen.completed.add((event.activation, event.instance, event.attempt))
        else:
            self._once(seen.completed, event, "completed", where)

    def _offered(self, seen: Seen, event: e.ItemOffered, now: int, where: str) -> None:
        self._once(seen.offered, event, "offered", where)

    def _call_begun(self, seen: Seen, event: e.ConnectorBegun, now: int, where: str) -> None:
        self._begun[_call_key(seen, event)] += 1
        if (_name(seen), event.activation, event.instance) in self._doubtful:
            self.report(f"twice: a call of {event.task} of {where} is begun again, and nobody knows of the one before")

    def _call_completed(self, seen: Seen, event: e.ConnectorCompleted, now: int, where: str) -> None:
        if not self._acted[_call_key(seen, event)]:
            self.report(f"unmade: the call of {event.task} of {where} has a result, and was not made")

    def _call_failed(self, seen: Seen, event: e.ConnectorFailed, now: int, where: str) -> None:
        if event.code == "outcome_unknown":
            self._doubtful.add((_name(seen), event.activation, event.instance))

    def _fired(self, seen: Seen, event: e.TimerFired, now: int, where: str) -> None:
        self.fired += 1
        if event.due > now:
            self.report(f"early: timer {event.timer} of {where} fired {event.due - now} ns before it was due")
        if event.timer in seen.fired:
            self.report(f"twice: timer {event.timer} of {where} fired again")
        seen.fired.add(event.timer)

    def _remembered(self, seen: Seen, event: e.CompletionRemembered, now: int, where: str) -> None:
        seen.undoable.setdefault(event.net, set()).add((event.activation, event.instance))

    def _undoing(self, seen: Seen, event: e.CompensationBegun, now: int, where: str) -> None:
        work = (event.of_activation, event.of_instance)
        if work not in seen.undoable.get(event.net, ()):
            self.report(f"twice: what {event.of} of {where} did is undone again, or was never done")
        else:
            seen.undoable[event.net].remove(work)

    def _final(self, seen: Seen, event: e.CompletionsForgotten | e.NetCompleted, now: int, where: str) -> None:
        seen.undoable.pop(event.net, None)

    def _net_gone(self, seen: Seen, event: e.NetCancelled, now: int, where: str) -> None:
        if left := seen.undoable.pop(event.net, None):
            self.report(f"lost: net {event.net} of {where} is gone, and {sorted(left)} of it were not undone")

    def _once(
        self, known: set[tuple[int, int, int]], event: e.ItemCompleted | e.ItemOffered, what: str, where: str
    ) -> None:
        item = (event.activation, event.instance, event.attempt)
        if item in known:
            self.report(f"twice: item {item} of {where} was {what} again")
        known.add(item)

    def _link(self, key: bytes, value: bytes, digests: list[tuple[str, str, int, int, bytes]]) -> None:
        """A batch record must follow the one before and cover the records written with it."""
        self.hashed = zlib.crc32(value, self.hashed)  # it has the digests of all records that were written with it
        shard, position = parse_log(key)
        record, hashed = unseal_log(key, value)
        before, previous = self._links.get(shard, (0, GENESIS))
        if position != before + 1:
            self.report(f"chain: shard {shard} has position {position} after {before}")
        elif record.previous != previous:
            self.report(f"chain: position {position} of shard {shard} does not follow the one before")
        entries = [(each.tenant, each.case_id, each.first_sequence, each.count, each.digest) for each in record.entries]
        if entries != digests and shard != META_SHARD:
            self.report(f"chain: position {position} of shard {shard} does not cover what was written with it")
        self._links[shard] = (position, hashed)

    def _compare_all_rows(self) -> None:
        """Of the cases that were touched since the last time."""
        for name, seen in self._unchecked.items():
            self._compare_rows(name, seen)
        self._unchecked.clear()

    def _compare_rows(self, name: Name, seen: Seen) -> None:
        """Head, item rows, incident rows and effect of a case against its records."""
        case, keys, held = seen.case, seen.keys, self.disk
        where = "/".join(name)
        stored = held.get(keys.head)
        head = HEADS.read(keys.head, stored) if stored is not None else None
        if head is None or (head.sequence, head.state, head.open_items, head.open_incidents, head.updated_at) != (
            case.sequence,
            case.state,
            case.open_items,
            len(case.incidents),
            case.updated_at,
        ):
            self.report(f"differs: the head of {where} is {head}, its records end at {case.sequence} in {case.state}")
        wanted = {
            keys.item(activation.number, run.number): (run.state, run.attempt, run.owner, activation.task)
            for activation, run in case.open_work()
        }
        found = {}
        for key, value in held.scan(*keys.items()):
            row = ITEMS.read(key, value)
            found[key] = (row.state, row.attempt, row.owner, row.task)
        if found != wanted:
            self.report(
                f"differs: work list of {where} is {sorted(found.values())}, should be {sorted(wanted.values())}"
            )
        if case.open_items != len(wanted):
            self.report(f"differs: {where} counts {case.open_items} open items and has {len(wanted)}")
        incidents = {key: INCIDENTS.read(key, value).kind for key, value in held.scan(*keys.incidents())}
        open_incidents = {keys.incident(number): incident.kind for number, incident in case.incidents.items()}
        if incidents != open_incidents:
            self.report(f"differs: incident rows of {where} are {incidents}, should be {open_incidents}")
        effects = {parse_effect(key)[2] for key, _ in held.scan(*keys.effects())}
        calling = {
            f"{CALL}{activation.number}.{run.number}"
            for activation, run in case.open_work()
            if run.connector and run.state == "started"
        }
        expected = calling | ({"continue"} if case.ready else set())
        if effects != expected:
            self.report(f"differs: {where} has the effects {effects}, should have {expected}")
        for number, timer in case.timers.items():
            if held.get(keys.timer(timer.due, str(number))) is None:
                self.report(f"lost: timer {number} of {where} has no row")

    def _compare_marking(self, case: Case, where: str) -> None:
        for net in case.nets.values():
            counts = net.marking.values()
            if sum(counts) != net.tokens or any(count <= 0 for count in counts):
                self.report(f"differs: net {net.number} of {where} counts {net.tokens} tokens and has {net.marking}")
            for task, numbers in net.active.items():
                for number in numbers:
                    activation = case.activations.get(number)
                    if activation is None or activation.task != task or activation.net != net.number:
                        self.report(f"differs: net {net.number} of {where} lists activation {number} that is not there")
        for activation in case.activations.values():
            if activation.net not in case.nets:
                self.report(f"differs: activation {activation.number} of {where} is in a net that is gone")
            for run in activation.instances.values():
                if run.child and run.child not in case.nets:
                    self.report(f"differs: activation {activation.number} of {where} waits for a net that is gone")
        if case.state in ENDED and (
            case.activations or case.incidents or case.timers or case.ready or len(case.nets) > 1
        ):
            self.report(f"differs: {where} is {case.state} with something open in it")
        for timer in case.timers.values():
            owner = case.activations.get(timer.activation)
            if owner is None or (
                timer.number not in owner.timers
                and timer.number not in {instance.timer for instance in owner.instances.values()}
            ):
                self.report(f"differs: timer {timer.number} of {where} is about something that is over")
        cut = any(incident.kind == "settle_limit" for incident in case.incidents.values())
        if case.state == "running" and not case.ready and not cut:
            for name, lock in case.locks.items():
                if (lock.activation and lock.activation not in case.activations) or (
                    lock.net and lock.net not in case.nets
                ):
                    self.report(f"differs: lock {name!r} of {where} is held by what is gone")
            for activation in case.activations.values():
                marking = case.nets[activation.net].marking if activation.net in case.nets else {}
                if not activation.started and any(place not in marking for place in activation.inputs):
                    self.report(f"differs: {activation.task} of {where} is offered without the token that it needs")

    def damage(self, random: Random) -> str:
        """Spoil what the engine reads of a case: some of its records, or its snapshot. Which case that was."""
        names = [name for name, seen in self.cases.items() if name not in self.damaged]
        if not names:
            return ""
        name = random.choice(names)
        keys = self.cases[name].keys
        found = [key for key, _ in self.disk.scan(*keys.records())]
        if keys.snapshot in self.disk.bytes:
            found.append(keys.snapshot)
        key = random.choice(found)
        value = bytearray(self.disk.bytes[key])
        if random.random() < 0.3:
            del value[random.randrange(len(value)) :]
        else:
            value[random.randrange(len(value))] ^= 1 << random.randrange(8)
        self.disk.damaged[key] = bytes(value)
        self.damaged.add(name)
        return "/".join(name)

    def restore(self) -> None:
        """What was damaged is as it was."""
        self.disk.damaged.clear()

    def may_be_damaged(self, tenant: str, asked: Asked) -> bool:
        """Whether a command may rightly find something damaged."""
        if not self.damaged:
            return False
        if asked.case_id:
            return (tenant, asked.case_id) in self.damaged
        if asked.method in ("run_case", "run_cases", "create_case", "trigger_case"):
            return True  # the id follows from the request
        return any((tenant, case_id) in self.damaged for case_id in asked.case_ids)

    # -- what callers are told ----------------------------------------------------------------------------------------

    def wrote(self, trace: str, name: Name) -> bool:
        """Whether this command has its record in this case."""
        return self._traces.get(trace, {}).get(name, 0) == 1

    def acknowledged(self, trace: str, name: Name) -> bool:
        """A command was acknowledged: whether it has its record. If so, the record stays."""
        wrote = self.wrote(trace, name)
        if wrote:
            self._acknowledged.append((trace, name))
        return wrote

    def request(self, request: Request) -> str | None:
        """The trace of the command that carried this request out, if it was."""
        return self._requests.get(request)

    def refused(self, trace: str, name: Name | None = None) -> None:
        """A caller was told that a command changed nothing, in one case of a batch or at all. It must stay so."""
        self._refused.add((trace, name))
        places = self._traces.get(trace, {})
        if places and (name is None or name in places):
            self.report(f"undead: command {trace} was refused, but it is written in {sorted(places)}")

    def shown(self, view: CaseView) -> None:
        """A caller sees a case: no newer than what is written, and equal to it when as new."""
        seen = self.cases.get((view.tenant, view.case_id))
        where = f"{view.tenant}/{view.case_id}"
        if seen is None:
            self.report(f"ahead: {where} was shown, but it is not written")
            return
        case = seen.case
        if view.sequence > case.sequence:
            self.report(f"ahead: {where} was shown at {view.sequence}, it is written up to {case.sequence}")
        elif view.sequence == case.sequence and (
            (view.state, view.open_items, view.open_incidents, view.spec_id, view.spec_version)
            != (case.state, case.open_items, len(case.incidents), case.spec_id, case.version)
            or (view.data and view.data != case.root.data)
        ):
            self.report(f"differs: {where} was shown as {view.state}, it is {case.state} at the same sequence")

    def told(self, name: Name, sequences: Sequence[int], after: int) -> None:
        """A caller reads a history: what is written, without a gap."""
        seen = self.cases.get(name)
        if seen is None or list(sequences) != list(range(after + 1, after + 1 + len(sequences))):
            self.report(f"lost: the history of {'/'.join(name)} after {after} was shown as {sequences}")
        elif sequences and sequences[-1] > seen.case.sequence:
            self.report(f"ahead: the history of {'/'.join(name)} was shown up to {sequences[-1]}")

    def compare_live(self, engine: WorkflowEngine, name: Name) -> None:
        """The state that the engine holds in memory, when nobody is at work on it; a closed one holds none."""
        if not engine.status().open:
            return
        live = parts(engine).cases.peek(*name)
        if live is None or live.busy or live.state is None:
            return
        seen = self.cases.get(name)
        if seen is None:
            self.report(f"ahead: {'/'.join(name)} is in memory, but it is not written")
        elif live.state.sequence != seen.case.sequence:
            self.report(
                f"differs: {'/'.join(name)} is at {live.state.sequence} in memory, {seen.case.sequence} on disk"
            )
        elif live.state != seen.case and encode_state(live.state) != seen.state():
            self.report(f"differs: {'/'.join(name)} in memory is not what its records say")

    # -- everything ---------------------------------------------------------------------------------------------------

    def check_rows(self) -> None:
        """What was not compared yet."""
        try:
            self._compare_all_rows()
        except Exception as error:  # noqa: BLE001  # as in `written`
            self.report(f"differs: rows cannot be read: {error!r}")

    def read_everything(self) -> None:
        """Replay every case and every log from the first byte, with and without snapshots; nothing may be left over."""
        self.reads_from_start += 1
        self._unchecked.clear()
        try:
            self._read_cases()
            self._read_leftovers()
            self._read_logs()
        except Exception as error:  # noqa: BLE001  # as in `written`
            self.report(f"differs: the disk cannot be read from the start: {error!r}")

    def _read_cases(self) -> None:
        for name, seen in self.cases.items():
            self._compare_rows(name, seen)
            records = [(key, COMMITS.read(key, value)) for key, value in self.disk.scan(*seen.keys.records())]
            whole: Case | None = None
            stored = self.disk.get(seen.keys.snapshot)
            short: Case | None = None
            if stored is not None:
                snapshot = SNAPSHOTS.read(seen.keys.snapshot, stored)
                short = decode_state(snapshot.state)
                if short.sequence != snapshot.sequence or snapshot.sequence > seen.case.sequence:
                    self.report(f"differs: the snapshot of {'/'.join(name)} is of {short.sequence}")
            for key, record in records:
                first = int.from_bytes(key[-8:], "big")
                if first != (whole.sequence + 1 if whole is not None else 1):
                    self.report(f"lost: {'/'.join(name)} has no record before event {first}")
                whole = replay(whole, record.time, record.events)
                if short is not None and first > short.sequence:
                    short = replay(short, record.time, record.events)
            if whole is None or encode_state(whole) != seen.state():
                self.report(f"differs: {'/'.join(name)} replayed from the start is another case")
            if short is not None and encode_state(short) != seen.state():
                self.report(f"differs: {'/'.join(name)} replayed from its snapshot is another case")

    def _read_leftovers(self) -> None:
        parse = {
            HEAD: parse_case_head,
            RECORD: lambda key: parse_case_record(key)[:2],
            ITEM: lambda key: parse_item(key)[:2],
            INCIDENT: lambda key: parse_incident(key)[:2],
            EFFECT: lambda key: parse_effect(key)[:2],
            SNAPSHOT: None,
        }
        for key in self.disk.bytes:
            if _kind(key) == TIMER:
                due, tenant, case_id, number = parse_timer(key)
                timer = self.cases[tenant, case_id].case.timers.get(int(number))
                if timer is None or timer.due != due:
                    self.report(f"differs: timer {number} of {tenant}/{case_id} has a row and is gone")
            reader = parse.get(_kind(key)) if shard_in(key) != META_SHARD else None
            if reader is not None and reader(key) not in self.cases:
                self.report(f"differs: {'/'.join(reader(key))} has a key of kind {_kind(key)!r} and no case")

    def _read_logs(self) -> None:
        for shard in self.keys.all_shards():
            position, previous = 0, GENESIS
            for key, value in self.disk.scan(*self.keys.log_range(shard)):
                _, found = parse_log(key)
                record, hashed = unseal_log(key, value)
                if found != position + 1 or record.previous != previous:
                    self.report(f"chain: shard {shard} is broken at position {found}")
                for entry in record.entries:
                    keys = self.keys.case(entry.tenant, entry.case_id)
                    stored = self.disk.get(keys.record(entry.first_sequence))
                    if stored is None:
                        self.report(f"lost: {entry.case_id!r} has no record of event {entry.first_sequence}")
                        continue
                    payload = unseal(keys.record(entry.first_sequence), stored)
                    if digest(payload, self.cases[entry.tenant, entry.case_id].case.salt) != entry.digest:
                        self.report(f"chain: a record of {entry.case_id!r} is not the one that was chained")
                position, previous = found, hashed
            if self._links.get(shard, (0, GENESIS))[0] != position:
                self.report(f"lost: the log of shard {shard} ends at {position}")


_Judge = Callable[[Ledger, Seen, Any, int, str], None]
_JUDGES: Final[Mapping[type[e.Event], _Judge]] = {
    e.ItemCompleted: Ledger._completed,
    e.ItemOffered: Ledger._offered,
    e.TimerFired: Ledger._fired,
    e.ConnectorBegun: Ledger._call_begun,
    e.ConnectorCompleted: Ledger._call_completed,
    e.ConnectorFailed: Ledger._call_failed,
    e.CompletionRemembered: Ledger._remembered,
    e.CompensationBegun: Ledger._undoing,
    e.CompletionsForgotten: Ledger._final,
    e.NetCompleted: Ledger._final,
    e.NetCancelled: Ledger._net_gone,
}
"""Events that say by themselves whether something happens twice, early, or not at all."""
