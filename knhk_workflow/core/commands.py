"""Everything that can be asked of a case, as values.

A command names its case elsewhere (the engine routes it); here is only what is asked. Commands are hashed for
idempotency, so two callers that mean the same build equal commands, whichever protocol they speak.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CaseState = Literal["created", "running", "completed", "cancelled", "failed", "suspended"]
ENDED = frozenset({"completed", "cancelled", "failed"})


class ItemRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which work item of a case: its text form is `activation.instance.attempt@case`."""

    activation: int
    instance: int
    attempt: int

    def name(self, case_id: str) -> str:
        """The item for people and callers."""
        return f"{self.activation}.{self.instance}.{self.attempt}@{case_id}"


class Command(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all commands."""


class CreateCase(Command, frozen=True, tag=1):
    """Create a case of an exact workflow version. `start` also starts it, in the same step."""

    tenant: str
    case_id: str
    spec_id: str
    version: int
    digest: bytes
    salt: bytes
    data: bytes = b"{}"
    business_key: str = ""
    start: bool = False


class StartCase(Command, frozen=True, tag=2):
    """created -> running. `again`: an already running case is fine (ExecuteCase)."""

    again: bool = False


class SuspendCase(Command, frozen=True, tag=3):
    """running -> suspended. Results of work already out are still accepted and wait."""

    reason: str = ""


class ResumeCase(Command, frozen=True, tag=4):
    """suspended -> running; what waited is taken up."""

    reason: str = ""


class CancelCase(Command, frozen=True, tag=5):
    """End the case unsuccessfully with everything in it. Cancelling a cancelled case changes nothing."""

    reason: str = ""


class UpdateCaseData(Command, frozen=True, tag=6):
    """Replace top-level keys of a net's data, or with `replace` all of it. `expected_sequence` 0 = any.

    `net`: name of a sub-net, or number of a net instance; empty = the case's own net.
    """

    patch: bytes
    expected_sequence: int = 0
    replace: bool = False
    net: str = ""


class ClaimItem(Command, frozen=True, tag=7):
    """offered -> allocated to `owner`."""

    item: ItemRef
    owner: str


class ReleaseItem(Command, frozen=True, tag=8):
    """allocated -> offered. With an `owner` only when it is that one's."""

    item: ItemRef
    owner: str = ""


class StartItem(Command, frozen=True, tag=9):
    """offered or allocated -> started. The tokens are consumed and rivals withdrawn here."""

    item: ItemRef
    owner: str = ""


class CompleteItem(Command, frozen=True, tag=10):
    """The work ended well. An item not yet started is started first, in the same step."""

    item: ItemRef
    output: bytes = b""
    owner: str = ""


class FailItem(Command, frozen=True, tag=11):
    """The work ended badly. `permanent`: trying again is pointless, the remaining attempts are given up."""

    item: ItemRef
    code: str
    message: str = ""
    owner: str = ""
    data: bytes = b""
    permanent: bool = False
    retry_after: int | None = None  # nanoseconds until another attempt, if there is one; None = as the task says


class SkipItem(Command, frozen=True, tag=12):
    """Go on without this work. An item not yet started is started first, in the same step."""

    item: ItemRef
    reason: str = ""
    owner: str = ""


Resolution = Literal["retry", "skip", "complete", "fail_case"]


class ResolveIncident(Command, frozen=True, tag=13):
    """Close an incident: retry what failed, skip it, complete it with `data`, or fail the case."""

    incident: int
    action: Resolution
    data: bytes = b""
    reason: str = ""


class Continue(Command, frozen=True, tag=14):
    """Take up the automatic firing that a slice left over."""


class Signal(Command, frozen=True, tag=15):
    """A named trigger comes in from outside.

    `time_to_live`: for how many nanoseconds it is kept when nobody waits; None = as long as the case lives, 0 = not
    at all. `expires`: until when, for a signal that was sent before it came here; 0 = `time_to_live` from now.
    """

    name: str
    data: bytes = b""
    time_to_live: int | None = None
    expires: int = 0


class CancelTask(Command, frozen=True, tag=16):
    """Withdraw or stop one activation of a task (WCP-19); 0 when there is only one. Nothing flows on."""

    task: str
    activation: int = 0
    reason: str = ""


class AddInstance(Command, frozen=True, tag=17):
    """One more instance of a dynamic multiple-instance task (WCP-15)."""

    task: str
    activation: int = 0
    element: bytes = b""


class CloseInstances(Command, frozen=True, tag=18):
    """No further instances of a dynamic multiple-instance task."""

    task: str
    activation: int = 0


class CompleteInstances(Command, frozen=True, tag=19):
    """End a multiple-instance task now; what runs counts as done and the flow goes on (WCP-27)."""

    task: str
    activation: int = 0


class CancelInstances(Command, frozen=True, tag=20):
    """Stop a multiple-instance task; the flow does not go on (WCP-26)."""

    task: str
    activation: int = 0


class FireTimer(Command, frozen=True, tag=21):
    """A timer is due. One that is not there any more changes nothing; one that is not due yet is refused."""

    timer: int


class LeaseItem(Command, frozen=True, tag=31):
    """offered -> started, by a worker that has it for `period` nanoseconds and can have it longer."""

    item: ItemRef
    owner: str
    worker: str
    period: int


class ReturnItem(Command, frozen=True, tag=32):
    """A worker's lease is over without a result: the same work is offered again as its next attempt."""

    item: ItemRef
    reason: str = ""


class BeginCall(Command, frozen=True, tag=40):
    """A connector is about to make a call that must not be made twice: whoever finds it begun does not repeat it."""

    item: ItemRef


class CompleteCall(Command, frozen=True, tag=41):
    """A connector's call was answered. `answer` is a JSON object, `status` its status in words or numbers.

    For an item that is gone by now only the fact is recorded.
    """

    item: ItemRef
    answer: bytes
    status: str = ""


class FailCall(Command, frozen=True, tag=42):
    """A connector's call has failed. `permanent`: the same call would fail again, or must not be repeated.

    `pause`: for how many nanoseconds at least the other side does not want to be asked again.
    """

    item: ItemRef
    code: str
    message: str = ""
    data: bytes = b""
    permanent: bool = False
    pause: int = 0
