"""A poisoned case: the core made a mistake with it. It stops and asks for a person; no other case notices.

What a command of the outside met, its caller is told, and nothing of that command is kept. What is done in the
background has no caller: without the incident a cascade or a timer would stand still and nobody would know. The mistake
itself goes to the event loop's exception handler, with its traceback.
"""

from __future__ import annotations

import asyncio
from typing import Final

from knhk_workflow.core import events as e
from knhk_workflow.core.commands import ENDED
from knhk_workflow.core.incidents import raise_incident
from knhk_workflow.core.step import begin
from knhk_workflow.errors import Busy, StoreUnavailable, WorkflowError
from knhk_workflow.runtime.clock import Clock
from knhk_workflow.runtime.live import LiveCases
from knhk_workflow.runtime.meta import CallMeta
from knhk_workflow.runtime.problems import tell_operator
from knhk_workflow.store import ExpectationFailed, OutcomeUnknown

INTERNAL_ERROR: Final = "internal_error"
ROOT: Final = 1
PAUSE_S: Final = 0.5  # between attempts while the store cannot write


async def poisoned(cases: LiveCases, clock: Clock, case_id: str, meta: CallMeta, error: Exception) -> None:
    """Stop what the case was doing and raise an incident, once, however long it takes until that can be written;
    whoever resolves it by `retry` lets it go on. Raises nothing of its own."""
    tell_operator(f"case {case_id!r} of tenant {meta.tenant!r} is stopped by a mistake of ours", error)
    what = f"{type(error).__name__} in {meta.method or 'a command'}"
    while True:
        try:
            await _stop(cases, clock, case_id, meta, what)
        except (StoreUnavailable, Busy, OutcomeUnknown, ExpectationFailed):
            await asyncio.sleep(PAUSE_S)  # nobody else would: what is stopped comes to nobody's mind again
            continue
        except WorkflowError:
            return  # it cannot be read; whoever touches it is told
        except Exception as worse:  # noqa: BLE001  # not even the incident can be applied: the case stays as it was
            tell_operator(f"case {case_id!r} of tenant {meta.tenant!r} cannot be stopped either", worse)
        return


async def _stop(cases: LiveCases, clock: Clock, case_id: str, meta: CallMeta, what: str) -> None:
    live = await cases.hold(meta.tenant, case_id)
    case, model = live.loaded()
    if case.state in ENDED or case.root.incident:
        cases.done(live)
        return
    try:
        step = begin(case, model, clock.now())
        if case.ready:
            step.emit(e.SettlePaused((), 0))
        raise_incident(
            step,
            INTERNAL_ERROR,
            ROOT,
            f"the engine made a mistake with this case ({what}); no other is concerned; the log has the details; "
            "retry to let the case go on, or fail it",
        )
        unit = cases.unit(live, step, meta, None)
    except BaseException:
        cases.drop(live)
        live.release()
        raise
    outcome = await cases.commit(live, unit)
    if not isinstance(outcome, int):
        raise outcome
