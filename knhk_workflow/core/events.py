"""Every fact that can be recorded about a case.

Events carry the decision: which tokens were consumed, which flows were taken, which ids were given. Replaying them
never evaluates a guard. They are stored as msgpack arrays behind an integer tag; for ever: a tag is never reused,
fields are only appended and have defaults.

Numbers: `net` is a net instance (1 = the case's root), `activation` one enabling of a task, `instance` 1..n inside it,
`attempt` 1..n of one work item. `*_data`, `patch` and `output` are JSON objects as bytes.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all events."""


class CaseCreated(Event, frozen=True, tag=1):
    """The case exists; nothing runs yet. `salt` keys the digests of this case's records."""

    tenant: str
    case_id: str
    spec_id: str
    version: int
    digest: bytes
    salt: bytes
    data: bytes = b"{}"
    business_key: str = ""


class StateChanged(Event, frozen=True, tag=2):
    """The case went from one life-cycle state to another."""

    before: str
    state: str
    reason: str = ""


class NetStarted(Event, frozen=True, tag=3):
    """A net instance got its start token. Sub-nets name the activation and instance that they carry out."""

    net: int
    name: str
    parent: int = 0
    activation: int = 0
    instance: int = 0
    depth: int = 0
    data: bytes = b"{}"


class NetCompleted(Event, frozen=True, tag=4):
    """A net instance ended properly; leftover tokens (explicit termination) are gone."""

    net: int
    name: str


class NetCancelled(Event, frozen=True, tag=5):
    """A net instance was removed with everything in it."""

    net: int
    name: str


class TaskEnabled(Event, frozen=True, tag=6):
    """An activation of `task` came to be over the tokens in `inputs`.

    `started`: the tokens were consumed at once (routing tasks and sub-nets); otherwise they stay until work starts.
    `count` instances begin with it; `threshold` of them (0 = all) let the flow go on; `elements` are the
    JSON values that they are made from.
    """

    net: int
    task: str
    activation: int
    inputs: tuple[str, ...]
    started: bool = False
    count: int = 1
    threshold: int = 0
    elements: tuple[bytes, ...] = ()


class TaskStarted(Event, frozen=True, tag=7):
    """An activation consumed its tokens without outside work having begun: its incident was skipped or completed."""

    net: int
    task: str
    activation: int
    consumed: tuple[str, ...]


class TaskCompleted(Event, frozen=True, tag=8):
    """An activation ended and put one token into each condition of `produced` (repetition = several tokens).

    `dead`: conditions of branches that were not taken and lead to a local synchronizing merge (WCP-37).
    `condition_met`: of a task whose instances are collected until a condition holds, whether it ever did (WCP-36).
    """

    net: int
    task: str
    activation: int
    produced: tuple[str, ...]
    dead: tuple[str, ...] = ()
    condition_met: bool | None = None


class TaskCancelled(Event, frozen=True, tag=9):
    """An activation ended without effect. `reason`: withdrawn (never started), cancelled; `detail`: why, in words."""

    net: int
    task: str
    activation: int
    reason: str
    detail: str = ""


class ItemOffered(Event, frozen=True, tag=10):
    """Outside work is there to be taken. `data` is empty when the work sees the net's own data."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    data: bytes = b""


class ItemAllocated(Event, frozen=True, tag=11):
    """Somebody took the work but has not begun."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    owner: str


class ItemReleased(Event, frozen=True, tag=12):
    """Allocated work went back to everybody."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int


class ItemStarted(Event, frozen=True, tag=13):
    """Work began. The first start of an activation consumes its tokens: a deferred choice ends here (WCP-16).

    `lease`: for how many nanoseconds a worker has it unless it asks for longer; 0 = for ever. `worker`: its own name.
    """

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    owner: str = ""
    consumed: tuple[str, ...] = ()
    worker: str = ""
    lease: int = 0


class ItemCompleted(Event, frozen=True, tag=14):
    """Work ended well with `output`."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    output: bytes = b""


class ItemFailed(Event, frozen=True, tag=15):
    """Work ended badly; what follows (retry, incident) is in later events. `data`: what is known beyond the message."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    code: str
    message: str = ""
    data: bytes = b""


class ItemSkipped(Event, frozen=True, tag=16):
    """Work was passed over without output."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    reason: str = ""


class ItemWithdrawn(Event, frozen=True, tag=17):
    """Work that never began is gone."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int


class ItemTerminated(Event, frozen=True, tag=18):
    """Work that had begun was stopped."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int


class DataUpdated(Event, frozen=True, tag=19):
    """Top-level keys of a net instance's data were replaced by those of `patch`; with `replace`, all of the data."""

    net: int
    patch: bytes
    replace: bool = False


class IncidentRaised(Event, frozen=True, tag=20):
    """Something needs a person. The case goes on elsewhere; `kind` is stable, `message` is for people."""

    incident: int
    kind: str
    net: int
    message: str
    task: str = ""
    activation: int = 0
    instance: int = 0


class IncidentResolved(Event, frozen=True, tag=21):
    """An incident is closed. `action`: retry, skip, complete, fail_case, cancelled."""

    incident: int
    action: str
    reason: str = ""


class SettlePaused(Event, frozen=True, tag=22):
    """A slice of automatic firing ended with work left: `ready` lists (net, task) in order.

    `firings` counts since the last outside work.
    """

    ready: tuple[tuple[int, str], ...]
    firings: int


class SettleResumed(Event, frozen=True, tag=23):
    """The work left by SettlePaused was taken up."""


class TokensRemoved(Event, frozen=True, tag=24):
    """A cancel region took one token out of each condition (repetition = several tokens)."""

    net: int
    task: str
    conditions: tuple[str, ...]


class TaskReleased(Event, frozen=True, tag=25):
    """The flow goes on while instances of the activation still run (WCP-12, 34, 36)."""

    net: int
    task: str
    activation: int
    produced: tuple[str, ...]
    dead: tuple[str, ...] = ()


class InstanceAdded(Event, frozen=True, tag=26):
    """A multiple-instance task got one more instance (WCP-15)."""

    net: int
    task: str
    activation: int
    instance: int
    element: bytes = b""


class InstancesClosed(Event, frozen=True, tag=27):
    """A multiple-instance task takes no further instances."""

    net: int
    task: str
    activation: int


class ItemForceCompleted(Event, frozen=True, tag=28):
    """Work was ended from outside and counts as done (WCP-27)."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int


class JoinMoved(Event, frozen=True, tag=29):
    """A partial join's round: the branches seen so far (none = the round is over) and the tokens absorbed now."""

    net: int
    task: str
    seen: tuple[str, ...]
    absorbed: tuple[str, ...] = ()


class BranchesExpected(Event, frozen=True, tag=30):
    """A split told its structured merge which inputs to wait for (WCP-7)."""

    net: int
    task: str
    inputs: tuple[str, ...]


class ExpectationMet(Event, frozen=True, tag=31):
    """The structured merge fired: its oldest expectation is done with."""

    net: int
    task: str


class DeadPathMoved(Event, frozen=True, tag=32):
    """False tokens went past a task that is skipped, together with true ones that can go no further (WCP-37)."""

    net: int
    task: str
    dead: tuple[str, ...]
    taken: tuple[str, ...] = ()
    produced: tuple[str, ...] = ()


class TriggerReceived(Event, frozen=True, tag=33):
    """A signal came. `outcome`: taken (by the activation), kept (until somebody waits), lost (nobody waits).

    `expires`: until when it is kept, nanoseconds since the epoch; 0 = as long as the case lives.
    """

    trigger: int
    name: str
    outcome: str
    data: bytes = b""
    net: int = 0
    task: str = ""
    activation: int = 0
    expires: int = 0


class TriggerTaken(Event, frozen=True, tag=34):
    """A kept signal was taken by an activation (WCP-24)."""

    trigger: int
    name: str
    net: int
    task: str
    activation: int


class LockTaken(Event, frozen=True, tag=35):
    """A critical section or mutex is held by a net instance (section) or an activation (mutex).

    `again`: the activation that had let go of it by failing, and goes on now.
    """

    lock: str
    net: int
    task: str
    activation: int
    again: int = 0


class LockReleased(Event, frozen=True, tag=36):
    """Nobody is inside any more. `failed`: activations that let go of it because their work has failed."""

    lock: str
    failed: tuple[int, ...] = ()


class LockAwaited(Event, frozen=True, tag=37):
    """A task that would start by itself waits for a lock; waiting tasks are looked at in this order."""

    lock: str
    net: int
    task: str


class NetReset(Event, frozen=True, tag=38):
    """Bookkeeping of joins was dropped because a cancel region covers them."""

    net: int
    tasks: tuple[str, ...]


class TimerArmed(Event, frozen=True, tag=39):
    """Something will happen at `due` (nanoseconds since the epoch) unless it is disarmed before.

    `kind`: timer (the task completes), timeout (an attempt at the work has taken too long), deadline (the task has),
    retry (failed work is offered again). `instance` 0 = the activation as a whole.
    """

    net: int
    task: str
    activation: int
    instance: int
    timer: int
    kind: str
    due: int


class TimerFired(Event, frozen=True, tag=40):
    """A timer was due; what follows is in later events."""

    net: int
    task: str
    activation: int
    instance: int
    timer: int
    kind: str
    due: int


class TimerDisarmed(Event, frozen=True, tag=41):
    """A timer was not needed any more: what it was about has ended."""

    net: int
    task: str
    activation: int
    instance: int
    timer: int
    kind: str
    due: int


class TriggerExpired(Event, frozen=True, tag=50):
    """The time to live of a kept signal was over before anybody took it. (Tags 39 to 49 are left to timers.)"""

    trigger: int
    name: str


class CompletionRemembered(Event, frozen=True, tag=51):
    """Work was completed that `undo` can undo. `data`: what it gave. `instance` 0 = the activation as a whole."""

    net: int
    task: str
    activation: int
    instance: int
    undo: str
    data: bytes = b""


class CompletionsForgotten(Event, frozen=True, tag=52):
    """What was completed in a net is not going to be undone (any further)."""

    net: int


class RollbackBegun(Event, frozen=True, tag=53):
    """A net ended unsuccessfully: its tokens are gone, and what was completed in it is undone, newest first.

    What follows then is `outcome`: cancelled, failed (the case); leave (its task goes on to `detail` alone), incident
    (its task has failed, `detail` says how), cancelled, withdrawn (its task, `detail`: why), stopped (nothing: the task
    goes on without this one of its sub-nets). completed: the net has completed, and only what was still running below
    it is undone.
    """

    net: int
    outcome: str
    detail: str = ""


class CompensationBegun(Event, frozen=True, tag=54):
    """An activation undoes the newest completion of its net: instance `of_instance` of activation `of_activation`."""

    net: int
    task: str
    activation: int
    of: str
    of_activation: int
    of_instance: int


class ItemReturned(Event, frozen=True, tag=70):
    """A worker's lease on work that had begun is over: the work is on offer again as attempt + 1, its tokens stay
    consumed and its locks taken. `reason`: expired, given back, gone."""

    net: int
    task: str
    activation: int
    instance: int
    attempt: int
    reason: str = ""


EventType = (
    CaseCreated
    | StateChanged
    | NetStarted
    | NetCompleted
    | NetCancelled
    | TaskEnabled
    | TaskStarted
    | TaskCompleted
    | TaskCancelled
    | ItemOffered
    | ItemAllocated
    | ItemReleased
    | ItemStarted
    | ItemCompleted
    | ItemFailed
    | ItemSkipped
    | ItemWithdrawn
    | ItemTerminated
    | DataUpdated
    | IncidentRaised
    | IncidentResolved
    | SettlePaused
    | SettleResumed
    | TokensRemoved
    | TaskReleased
    | InstanceAdded
    | InstancesClosed
    | ItemForceCompleted
    | JoinMoved
    | BranchesExpected
    | ExpectationMet
    | DeadPathMoved
    | TriggerReceived
    | TriggerTaken
    | LockTaken
    | LockReleased
    | LockAwaited
    | NetReset
    | TimerArmed
    | TimerFired
    | TimerDisarmed
    | TriggerExpired
    | CompletionRemembered
    | CompletionsForgotten
    | RollbackBegun
    | CompensationBegun
    | ItemReturned
)
