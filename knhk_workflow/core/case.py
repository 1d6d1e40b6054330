"""The state of a case: what folding its events yields, and nothing else.

Markings are counters (WCP 8, 12, 28, 33, 41, 42 need more than one token in a place) and never hold zeros. The whole
state is one tree of structs, so a snapshot is its encoding and the state hash is the hash of that. Fields are only
appended, with defaults. No struct refers back up the tree: there are no cycles, so the garbage collector need not look
at any of them (`gc=False`), however many cases live in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from knhk_workflow.core.commands import ItemRef

OPEN_ITEM_STATES = frozenset({"offered", "allocated", "started", "suspended"})
BEGUN_ITEM_STATES = frozenset({"started", "suspended"})
DONE_STATES = frozenset({"completed", "skipped", "forced"})
STOPPED_STATES = frozenset({"withdrawn", "terminated"})
RETRYING = "retrying"  # it failed and is offered again when its timer fires
LIVE_STATES = OPEN_ITEM_STATES | {"running", RETRYING}

TOKENS_MAX = 10_000  # live tokens of a net; snapshots and explain stay small


class Instance(msgspec.Struct, array_like=True, gc=False):
    """One of the 1..n runs inside an activation: outside work, a sub-net, or a failed attempt at either."""

    number: int
    state: str = "offered"  # item states of commands.py; `running` while a sub-net carries it out
    attempt: int = 1
    owner: str = ""
    data: bytes = b""  # the recorded input; empty = the net's own data
    output: bytes = b""
    child: int = 0  # net instance of a sub-net
    changed_at: int = 0
    offered_at: int = 0
    held: bool = False  # it ended while the case was suspended: what follows from that is still to come
    timer: int = 0  # its time-out while it is open, its retry while it waits for one; 0 = none
    worker: str = ""  # who has it for a while
    lease: int = 0  # for how long, nanoseconds; 0 = not leased
    connector: str = ""  # that does it; its call is wanted as long as the work is started
    calling: bool = False  # a connector is making a call that must not be made twice


class Completion(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Work that was completed and can be undone."""

    task: str
    activation: int
    instance: int  # 0 = the activation as a whole
    undo: str  # the task that undoes it
    data: bytes  # what it gave


class Activation(msgspec.Struct, array_like=True, gc=False):
    """One enabling of a task. Offered activations hold no tokens; started ones have consumed theirs."""

    number: int
    net: int
    task: str
    inputs: tuple[str, ...]
    sequence: int  # of the event that enabled it
    started: bool = False
    instances: dict[int, Instance] = {}
    incidents: list[int] = []
    count: int = 1  # instances that were decided when it was enabled, and those added since
    threshold: int = 0  # so many done let the flow go on; 0 = all
    elements: list[bytes] = []  # the JSON values that instances are made from
    closed: bool = False  # no further instances
    released: bool = False  # the flow has gone on, instances still run
    signalled: bool = False  # the trigger it waited for has come
    signal: bytes = b""  # what that brought
    left: list[str] = []  # locks that it let go of when its work failed, and takes again before it goes on
    timers: tuple[int, ...] = ()  # those of the activation as a whole
    undoes: Completion | None = None  # of a compensation: what it undoes


class NetInstance(msgspec.Struct, array_like=True, gc=False):
    """One running net: its marking, its own data, and which activations of which task live in it."""

    number: int
    name: str
    parent: int = 0
    activation: int = 0
    instance: int = 0
    depth: int = 0
    data: bytes = b"{}"
    marking: dict[str, int] = {}
    active: dict[str, list[int]] = {}
    incident: int = 0
    tokens: int = 0
    seen: dict[str, tuple[str, ...]] = {}  # partial joins: branches of the present round
    expected: dict[str, list[tuple[str, ...]]] = {}  # structured merges: inputs to wait for, oldest first
    dead: dict[str, int] = {}  # false tokens on their way to a local merge
    completions: list[Completion] = []  # what can be undone, oldest first
    outcome: str = ""  # it is being undone, and this is what follows (`RollbackBegun`)
    detail: str = ""

    def put(self, conditions: tuple[str, ...]) -> None:
        """Add one token to each condition (repetition = several tokens)."""
        self.move((), conditions)

    def take(self, conditions: tuple[str, ...]) -> None:
        """Remove one token from each condition; a missing one is a broken invariant and stops the step."""
        self.move(conditions, ())

    def move(self, taken: tuple[str, ...], put: tuple[str, ...]) -> None:
        """`take`, then `put`."""
        marking = self.marking
        for condition in taken:
            left = marking.get(condition, 0)
            if left == 1:
                del marking[condition]
            elif left:
                marking[condition] = left - 1
            else:
                raise AssertionError(f"no token in {condition!r} of net instance {self.number}")
        for condition in put:
            marking[condition] = marking.get(condition, 0) + 1
        if len(put) != len(taken):
            self.tokens += len(put) - len(taken)

    def empty(self) -> None:
        """Remove every token, false ones too, and what joins remember of them."""
        self.marking.clear()
        self.tokens = 0
        self.seen.clear()
        self.expected.clear()
        self.dead.clear()


class Kept(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A persistent signal that nobody has taken yet."""

    number: int
    name: str
    data: bytes
    expires: int = 0  # 0 = kept as long as the case lives


class Lock(msgspec.Struct, array_like=True, gc=False):
    """A critical section or mutex: who is inside, and which automatic tasks wait, oldest first."""

    net: int = 0
    activation: int = 0  # 0 = free
    waiting: list[tuple[int, str]] = []


class Timer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Something that happens by itself at `due` (nanoseconds since the epoch), or later, never earlier."""

    number: int
    kind: str
    net: int
    task: str
    activation: int
    instance: int  # 0 = the activation as a whole
    due: int


class Incident(msgspec.Struct, array_like=True, gc=False):
    """An open question to a person."""

    number: int
    kind: str
    net: int
    message: str
    task: str
    activation: int
    instance: int
    raised_at: int


class Case(msgspec.Struct, array_like=True, gc=False):
    """A case. `sequence` counts its events; times are nanoseconds since the epoch."""

    tenant: str
    case_id: str
    spec_id: str
    version: int
    digest: bytes
    salt: bytes
    state: str = "created"
    business_key: str = ""
    sequence: int = 0
    created_at: int = 0
    updated_at: int = 0
    now: int = 0  # the time of the event being folded; never decreases
    nets: dict[int, NetInstance] = {}
    activations: dict[int, Activation] = {}
    incidents: dict[int, Incident] = {}
    last_net: int = 0
    last_activation: int = 0
    last_incident: int = 0
    ready: tuple[tuple[int, str], ...] = ()
    firings: int = 0
    open_items: int = 0
    reason: str = ""
    signals: list[Kept] = []
    last_trigger: int = 0
    locks: dict[str, Lock] = {}
    timers: dict[int, Timer] = {}
    last_timer: int = 0

    @property
    def root(self) -> NetInstance:
        """The case's own net. It stays when the case ends, with the final data."""
        return self.nets[1]

    def open_work(self) -> Iterator[tuple[Activation, Instance]]:
        """Every work item that can still be acted on, oldest first."""
        for activation in self.activations.values():
            for instance in activation.instances.values():
                if instance.state in OPEN_ITEM_STATES:
                    yield activation, instance

    def kept(self, name: str, now: int) -> list[Kept]:
        """The signals that are kept under a name and have not expired, oldest first."""
        return [each for each in self.signals if each.name == name and not 0 < each.expires <= now]

    def holder(self, lock: str) -> Lock | None:
        """Who is inside a critical section or mutex, None when nobody is."""
        found = self.locks.get(lock)
        return found if found is not None and (found.net or found.activation) else None

    def due(self, activation: Activation, run: Instance) -> int:
        """By when open work is to be done: the nearer one of its time-out and the task's deadline; 0 = no such time."""
        numbers = (*activation.timers, run.timer) if run.state in OPEN_ITEM_STATES else ()
        return min((self.timers[number].due for number in numbers if number), default=0)

    def tokens(self) -> int:
        """Live tokens over all nets."""
        return sum(net.tokens for net in self.nets.values())


def item_ref(activation: Activation, instance: Instance) -> ItemRef:
    """The reference of an item as it is now."""
    return ItemRef(activation.number, instance.number, instance.attempt)


def place_of(activation: Activation, run: Instance) -> tuple[int, str, int, int, int]:
    """The leading fields of every event about a work item: net, task, activation, instance, attempt."""
    return activation.net, activation.task, activation.number, run.number, run.attempt


def encode_state(case: Case) -> bytes:
    """Canonical bytes of a case: equal states give equal bytes, whatever order they were built in."""
    return _encode(
        msgspec.structs.replace(
            case,
            nets={number: _ordered(net) for number, net in sorted(case.nets.items())},
            activations=dict(sorted(case.activations.items())),
            incidents=dict(sorted(case.incidents.items())),
            locks=dict(sorted(case.locks.items())),
            timers=dict(sorted(case.timers.items())),
        )
    )


def _ordered(net: NetInstance) -> NetInstance:
    """The net with its maps in the order of their keys. (msgspec orders only maps whose keys are all text.)"""
    if len(net.marking) < 2 and len(net.active) < 2 and not (net.seen or net.expected or net.dead):
        return net
    return msgspec.structs.replace(
        net,
        marking=dict(sorted(net.marking.items())),
        active=dict(sorted(net.active.items())),
        seen=dict(sorted(net.seen.items())),
        expected=dict(sorted(net.expected.items())),
        dead=dict(sorted(net.dead.items())),
    )


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Case)


def decode_state(data: bytes) -> Case:
    """The case that `encode_state` gave these bytes for. Raises msgspec.DecodeError on anything else."""
    return _decoder.decode(data)
