"""`python -m tests.upgrade.record NAME`: a store with everything in it, as this version writes it, packed into corpus/.

Time stands still but for what the script lets pass, and ids are drawn from a seed: the same version records the same.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from knhk_workflow import (
    CallMeta,
    NotFound,
    PurgeRequest,
    SeededIds,
    SigningKey,
    StateStore,
    VirtualClock,
    WorkflowEngine,
    WrongState,
    __version__,
)
from knhk_workflow.core.commands import ENDED
from tests.runtime.test_backup import backup

CORPUS: Final = Path(__file__).parent / "corpus"
CLERK: Final = {"required_roles": ["clerk"]}
TENANTS: Final = ("default", "other")
UPDATES: Final = 80  # more than there are records between two snapshots
NOT_KEPT: Final = frozenset({"RESERVE", "OWNER", "LOCK", "LOG", "LOG.old"})

Look = dict[str, Any]
"""What can be seen of a case, as JSON."""

DOCUMENTS: Final[tuple[Mapping[str, object], ...]] = (
    {
        "id": "line",
        "tasks": {"first": CLERK, "second": {**CLERK, "priority": 3}},
        "flows": [{"from": "start", "to": "first"}, {"from": "first", "to": "second"}, {"from": "second", "to": "end"}],
    },
    {
        "id": "parallel",
        "tasks": {"s": {"split": "and"}, "a": CLERK, "b": {**CLERK, "timeout": "2d"}, "j": {"join": "and"}},
        "flows": [
            {"from": "start", "to": "s"},
            {"from": "s", "to": "a"},
            {"from": "s", "to": "b"},
            {"from": "a", "to": "j"},
            {"from": "b", "to": "j"},
            {"from": "j", "to": "end"},
        ],
    },
    {
        "id": "choice",
        "tasks": {"a": CLERK, "b": CLERK, "c": CLERK},
        "flows": [
            {"from": "start", "to": "a"},
            {"from": "a", "to": "b", "when": "data.amount > 100"},
            {"from": "a", "to": "c", "default": True},
            {"from": "b", "to": "end"},
            {"from": "c", "to": "end"},
        ],
    },
    {
        "id": "waits",
        "tasks": {"hear": {"trigger": {"name": "news", "mode": "persistent"}}, "rest": {"timer": "3d"}},
        "flows": [{"from": "start", "to": "hear"}, {"from": "hear", "to": "rest"}, {"from": "rest", "to": "end"}],
    },
    {
        "id": "many",
        "tasks": {"each": {**CLERK, "instances": {"min": 2, "max": 5, "threshold": 2, "create": "dynamic"}}},
        "flows": [{"from": "start", "to": "each"}, {"from": "each", "to": "end"}],
    },
    {
        "id": "nested",
        "tasks": {"part": {"net": "inner"}, "after": {}},
        "flows": [{"from": "start", "to": "part"}, {"from": "part", "to": "after"}, {"from": "after", "to": "end"}],
        "nets": {
            "inner": {
                "tasks": {"deep": {**CLERK, "retry": {"max_attempts": 2}}},
                "flows": [{"from": "start", "to": "deep"}, {"from": "deep", "to": "end"}],
            }
        },
    },
)


async def record(into: Path) -> None:
    """Write `store`, `whole` and `more` (backups), `export.json`, `key.pub` and `expected.json` into a directory."""
    clock = VirtualClock()
    key = SigningKey.generate()
    async with WorkflowEngine(StateStore(str(into / "store")), clock=clock, ids=SeededIds(4)) as engine:
        engine.sign_with(key)
        for tenant in TENANTS:
            for document in DOCUMENTS:
                await engine.register_workflow(document, meta=CallMeta(tenant=tenant))
        await _first_half(engine, clock)
        token = await backup(engine, into / "whole")
        await _second_half(engine, clock)
        await backup(engine, into / "more", token)
        (into / "export.json").write_bytes(await engine.export_case("long"))
        (into / "key.pub").write_bytes(key.public_pem())
        looks = {tenant: await looked_at(engine, tenant) for tenant in TENANTS}
        now = clock.now()
    expected = {"version": __version__, "now": now, "cases": looks, "purged": ["gone"]}
    (into / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True))


async def _first_half(engine: WorkflowEngine, clock: VirtualClock) -> None:
    for tenant in TENANTS:
        meta = CallMeta(tenant=tenant, principal="spiffe://example.org/app", request_id="r", trace_id="t")
        await engine.run_case("line", {"n": 1, "text": "ü€𝄞"}, case_id="line", business_key="key-1", meta=meta)
        await engine.complete_work_item(
            "1.1.1@line", {"by": "first"}, "ada", meta=CallMeta(tenant=tenant, request_id="c")
        )
        await engine.create_case("line", {}, case_id="created", meta=CallMeta(tenant=tenant))
    clock.advance(60)
    for name, spec in (
        ("parallel", "parallel"), ("chosen", "choice"), ("waits", "waits"), ("many", "many"), ("nested", "nested"),
        ("stopped", "parallel"), ("paused", "parallel"), ("gone", "line"), ("long", "line"), ("stuck", "choice"),
    ):  # fmt: skip
        amount: Mapping[str, object] = {} if name == "stuck" else {"amount": 250, "list": [1, 2.5, None, True]}
        await engine.run_case(spec, amount, case_id=name, business_key="key-1")
        clock.advance(1)
    for index in range(UPDATES):
        await engine.update_case_data("long", {f"field{index % 7}": index})
    await engine.complete_work_item("1.1.1@gone")
    await engine.complete_work_item("2.1.1@gone")


async def _second_half(engine: WorkflowEngine, clock: VirtualClock) -> None:
    clock.advance(3_600)
    await engine.claim_work_item("1.1.1@long", "ada")
    await engine.start_work_item("1.1.1@chosen", "bob")
    await engine.complete_work_item("1.1.1@stuck")  # its guard finds no amount: an incident
    await engine.add_instance("many", "each", {})
    await engine.complete_work_item("1.1.1@many")
    await engine.fail_work_item((await engine.get_case("nested")).work[0].item_id, "broken", "it broke")
    await engine.cancel_case("stopped", "not needed")
    await engine.suspend_case("paused", "wait")
    await engine.trigger_case("news", {"from": "outside"}, case_id="waits")
    await engine.trigger_case("news", {"kept": True}, key="key-of-nobody", time_to_live=10**17)
    await engine.purge_cases(PurgeRequest(("gone",)))


async def looked_at(engine: WorkflowEngine, tenant: str) -> dict[str, Look]:
    """All cases of a tenant as anybody sees them."""
    meta = CallMeta(tenant=tenant)
    found: dict[str, Look] = {}
    for each in (await engine.list_cases(page_size=500, meta=meta)).items:
        case = await engine.get_case(each.case_id, meta=meta)
        told = await engine.explain_case(each.case_id, meta=meta)
        page = await engine.get_case_history(each.case_id, page_size=1_000, meta=meta)
        found[each.case_id] = {
            "state": case.state,
            "sequence": case.sequence,
            "spec": [case.spec_id, case.spec_version],
            "business_key": case.business_key,
            "data": json.loads(case.data),
            "marking": dict(told.marking),
            "work": sorted([w.item_id, w.task_id, w.state, w.owner, w.attempt] for w in case.work),
            "incidents": sorted([i.kind, i.task_id] for i in case.incidents),
            "history": [[e.sequence, e.timestamp, e.event_type, json.loads(e.data)] for e in page.items],
        }
    return found


async def brought_to_an_end(engine: WorkflowEngine, clock: VirtualClock, tenant: str) -> dict[str, str]:
    """Do all that is left to do for every case; the states that they end in."""
    meta = CallMeta(tenant=tenant)
    names = [each.case_id for each in (await engine.list_cases(page_size=500, meta=meta)).items]
    for _ in range(12):
        for name in names:
            case = await engine.get_case(name, meta=meta)
            if case.state in ENDED:
                continue
            if case.state == "suspended":
                await engine.resume_case(name, meta=meta)
            elif case.state == "created":
                await engine.start_case(name, meta=meta)
            for incident in case.incidents:
                action = "complete" if incident.kind != "guard_error" else "retry"
                if action == "retry":
                    await engine.update_case_data(name, {"amount": 5}, meta=meta)
                await engine.resolve_incident(incident.incident_id, action, {} if action == "complete" else None)
            for item in case.work:
                try:
                    await engine.complete_work_item(item.item_id, {}, item.owner, meta=meta)
                except (NotFound, WrongState):
                    continue  # withdrawn, or waiting for its next attempt
        clock.advance(86_400)
        await engine.fire_due_timers()
    return {name: (await engine.get_case(name, meta=meta)).state for name in names}


def packed(directory: Path, file: Path) -> None:
    """The directory as an archive without what belongs to one machine or moment."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if Path(member.name).name in NOT_KEPT:
            return None
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(file, "w:xz") as archive:
        for path in sorted(directory.iterdir()):
            archive.add(path, path.name, filter=kept)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else __version__
    file = CORPUS / f"{name}.tar.xz"
    if file.exists():
        sys.exit(f"{file} is there already, and what was recorded is never changed")
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(record(Path(directory)))
        packed(Path(directory), file)
    sys.stdout.write(f"{file}: {file.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
