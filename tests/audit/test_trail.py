"""What the audit tells: every effect and every other call once, newest first, filtered, in pages, and for ever."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from knhk_workflow import (
    AuditEntry,
    AuditFilter,
    CallMeta,
    InvalidInput,
    Moment,
    NotFound,
    Operation,
    PurgeRequest,
    ScheduleSpec,
    SigningKey,
    StateStore,
    Unsupported,
    WorkflowEngine,
    check_store_audit,
    checkpoint_signed,
    checkpoints_consistent,
    prove_audit,
    prove_receipt,
    restore_store,
)
from knhk_workflow.runtime import audit_stream, audit_trail
from knhk_workflow.runtime.audit_stream import AuditStream
from knhk_workflow.runtime.clock import VirtualClock
from knhk_workflow.runtime.pages import encode_token
from knhk_workflow.store import Journal, Keyspace, MemoryStore, seal
from tests.audit.conftest import ALICE, BOB, SIGN, by, lived, read_of
from tests.inside import parts
from tests.store.faulty import FaultyStore

BAREST = AuditFilter()


async def everything(
    engine: WorkflowEngine, wanted: AuditFilter = BAREST, tenant: str = "default", size: int = 7
) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    token = ""
    while True:
        page = await engine.list_audit(wanted, page_size=size, page_token=token, meta=CallMeta(tenant))
        found += page.items
        token = page.next_token
        if not token:
            return found


async def eventually(asked: Callable[[], Awaitable[list[AuditEntry]]]) -> None:
    """Ask again until there is an answer."""
    async with asyncio.timeout(60):
        while not await asked():  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0.02)


def told(entries: list[AuditEntry]) -> list[tuple[str, str, str]]:
    return [
        (entry.operation.principal, entry.operation.method.rpartition("/")[2], entry.operation.resource)
        for entry in entries
    ]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as opened:
        opened.sign_with(SigningKey.generate())
        yield opened


async def test_effects_reads_and_denials_newest_first(engine: WorkflowEngine) -> None:
    await lived(engine, 6)
    await parts(engine).stream.flush()
    found = told(await everything(engine))
    assert sorted(found[:6]) == [
        ("anonymous", "GetCase", "cases/case-0"),
        *((BOB, "GetCase", f"cases/case-{number}") for number in range(5)),
    ]
    assert (ALICE, "TriggerCase", "signals/hello") in found[6:9]
    assert (ALICE, "CreateSchedule", "schedules/nightly") in found[6:9]
    rest = [each for each in found[6:] if each[1] not in ("TriggerCase", "CreateSchedule")]
    assert rest == [
        (BOB, "PurgeCases", "cases/case-1"),
        (BOB, "CancelCase", "cases/case-1"),
        (ALICE, "RunCase", "cases/case-4"),
        (ALICE, "RunCase", "cases/case-3"),
        (ALICE, "RunCase", "cases/case-1"),
        (ALICE, "RunCase", "cases/case-0"),
        (ALICE, "RegisterWorkflow", "workflows/sign"),
    ]
    times = [entry.operation.time for entry in await everything(engine, AuditFilter(principal=ALICE))]
    assert times == sorted(times, reverse=True)


async def test_like_denials_of_a_second_are_one_entry_with_a_count(engine: WorkflowEngine) -> None:
    await lived(engine, 2)
    await parts(engine).stream.flush()
    (denied,) = await everything(engine, AuditFilter(outcome="UNAUTHENTICATED"))
    assert denied.operation.count == 7
    assert denied.operation.reason == "UNAUTHENTICATED: two URI names"
    assert denied.operation.peer == "ipv4:10.0.0.1:7"


async def test_reads_are_written_by_themselves_within_moments(engine: WorkflowEngine) -> None:
    await engine.register_workflow(SIGN)
    engine.record_operation(read_of(BOB, "workflows/sign", engine.now()), "default")
    await eventually(lambda: everything(engine, AuditFilter(principal=BOB)))


async def test_other_tenants_are_not_told_of(engine: WorkflowEngine) -> None:
    await lived(engine, 6)
    await parts(engine).stream.flush()
    assert told(await everything(engine, tenant="other")) == [
        (ALICE, "RunCase", "cases/case-5"),
        (ALICE, "RunCase", "cases/case-2"),
        (ALICE, "RegisterWorkflow", "workflows/sign"),
    ]
    (entry,) = await everything(engine, AuditFilter(resource_prefix="cases/case-5"), tenant="other")
    with pytest.raises(NotFound):
        await engine.audit_proof(entry.audit_id, meta=CallMeta("default"))
    assert await everything(engine, tenant="nobody") == []


async def test_filters(engine: WorkflowEngine) -> None:
    await lived(engine, 6)
    await parts(engine).stream.flush()
    whole = await everything(engine)
    wanted_and_kept: list[tuple[AuditFilter, Callable[[Operation], bool]]] = [
        (AuditFilter(principal=BOB), lambda one: one.principal == BOB),
        (AuditFilter(method="RunCase"), lambda one: one.method.endswith("/RunCase")),
        (AuditFilter(method="knhk.sidecar.v1.CaseService/RunCase"), lambda one: one.method.endswith("/RunCase")),
        (AuditFilter(method="Run"), lambda one: False),
        (AuditFilter(resource_prefix="cases/case-1"), lambda one: one.resource == "cases/case-1"),
        (AuditFilter(resource_prefix="workflows/"), lambda one: one.resource.startswith("workflows/")),
        (AuditFilter(outcome="OK"), lambda one: one.outcome == "OK"),
        (AuditFilter(principal=BOB, method="GetCase"), lambda one: one.principal == BOB and "/Get" in one.method),
    ]
    for at in (whole[3].operation.time, whole[-2].operation.time):
        wanted_and_kept += [
            (AuditFilter(after=at), partial(_within, at, 1 << 63)),
            (AuditFilter(before=at), partial(_within, 0, at)),
            (AuditFilter(after=at, before=at + 1), partial(_within, at, at + 1)),
        ]
    for wanted, keep in wanted_and_kept:
        assert await everything(engine, wanted) == [entry for entry in whole if keep(entry.operation)], wanted


def _within(start: int, end: int, one: Operation) -> bool:
    return start <= one.time < end


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
async def test_pages_have_everything_once(engine: WorkflowEngine, size: int) -> None:
    await lived(engine, 9)
    await parts(engine).stream.flush()
    whole = await everything(engine, size=1000)
    assert len({entry.audit_id for entry in whole}) == len(whole)
    assert await everything(engine, size=size) == whole


async def test_a_filter_that_matches_little_gives_short_pages_not_long_searches(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "LOOKED_MAX", 50)
    await lived(engine, 200)
    page = await engine.list_audit(AuditFilter(method="RegisterWorkflow"), page_size=10)
    assert page.next_token
    assert len(page.items) < 10
    assert told(await everything(engine, AuditFilter(method="RegisterWorkflow"))) == [
        (ALICE, "RegisterWorkflow", "workflows/sign")
    ]


async def test_a_token_of_another_filter_or_nonsense_is_refused(engine: WorkflowEngine) -> None:
    await lived(engine, 6)
    page = await engine.list_audit(page_size=2)
    bound = f"audit default {AuditFilter(principal=BOB)!r}"
    places = ([(0, -5, 0)], [(7, 1, 0)], [(0, 1 << 63, 0)], [1], "text")
    forged = [encode_token(msgspec.msgpack.encode(place), bound) for place in places]
    for token in (page.next_token, "nonsense", "!", *forged):
        with pytest.raises(InvalidInput):
            await engine.list_audit(AuditFilter(principal=BOB), page_size=2, page_token=token)


async def test_a_repeated_request_is_no_second_effect(engine: WorkflowEngine) -> None:
    await engine.register_workflow(SIGN)
    meta = by(ALICE, "RunCase", request_id="once")
    for _ in range(3):
        await engine.run_case("sign", case_id="one", meta=meta)
    (entry,) = await everything(engine, AuditFilter(resource_prefix="cases/one"))
    assert entry.operation.request_id == "once"
    assert entry.operation.trace_id == "ab" * 16


async def test_a_purged_case_is_still_told_of(tmp_path: Path) -> None:
    """Who did what and when stays, over several portions of a purge, a restart and a backup."""
    path = tmp_path / "store"
    async with WorkflowEngine(StateStore(str(path))) as engine:
        await engine.register_workflow(SIGN)
        await engine.run_case("sign", case_id="long", meta=by(ALICE, "RunCase"))
        for number in range(80):
            await engine.update_case_data("long", {"n": number}, meta=by(BOB, f"Update{number}"))
        await engine.cancel_case("long", meta=by(ALICE, "CancelCase"))
        before = await everything(engine, AuditFilter(resource_prefix="cases/long"))
        assert len(before) == 82
        await engine.purge_cases(PurgeRequest(case_ids=("long",)), meta=by(BOB, "PurgeCases"))
        backup = tmp_path / "backup"
        backup.write_bytes(b"".join([piece.chunk async for piece in engine.backup()]))
    await restore_store([str(backup)], str(tmp_path / "restored"))
    for place in (path, tmp_path / "restored"):
        async with WorkflowEngine(StateStore(str(place))) as engine:
            after = await everything(engine, AuditFilter(resource_prefix="cases/long"))
            assert told(after[:1]) == [(BOB, "PurgeCases", "cases/long")]
            assert [entry.audit_id for entry in after[1:]] == [entry.audit_id for entry in before]
            assert {entry.operation.reason for entry in after[1:]} == {"PURGED"}
            assert [msgspec.structs.replace(entry.operation, reason="") for entry in after[1:]] == [
                entry.operation for entry in before
            ]
            assert (await engine.verify_store()).intact


async def test_backups_have_the_audit_whole_incremental_and_as_of_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with WorkflowEngine(StateStore(str(path))) as engine:
        engine.sign_with(SigningKey.generate())
        await lived(engine, 6)
        await parts(engine).stream.flush()
        await engine.audit_checkpoints()
        first = [piece async for piece in engine.backup()]
        moment = engine.now()
        early = await everything(engine)
        await engine.run_case("sign", case_id="later", meta=by(BOB, "RunCase"))
        await engine.register_workflow({"id": "later", "tasks": {}}, meta=by(BOB, "RegisterWorkflow"))
        engine.record_operation(read_of(BOB, "cases/later", engine.now()), "default")
        await parts(engine).stream.flush()
        second = [piece async for piece in engine.backup(after_token=first[-1].token)]
        late = await everything(engine)
        pushed = await engine.audit_checkpoints()
    for name, pieces in (("first", first), ("second", second)):
        (tmp_path / name).write_bytes(b"".join(piece.chunk for piece in pieces))
    archives = [str(tmp_path / "first"), str(tmp_path / "second")]
    await restore_store(archives, str(tmp_path / "newest"))
    await restore_store(archives, str(tmp_path / "then"), until=Moment(time_ns=moment))
    for name, expected in (("newest", late), ("then", early)):
        async with WorkflowEngine(StateStore(str(tmp_path / name))) as engine:
            assert await everything(engine) == expected
            assert (await engine.verify_store()).intact
            problems = [await engine.check_checkpoint(each) for each in pushed]
            assert all("older state" in each for each in problems) if name == "then" else problems == ["", ""]


async def test_a_full_audit_says_so_and_counts_what_it_cannot_take(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_stream, "ENTRIES_MAX", 5)
    for number in range(5):
        assert not engine.audit_full()
        engine.record_operation(read_of(BOB, f"cases/{number}", engine.now()), "default")
    assert engine.audit_full()
    for number in range(3):
        refused = read_of(f"somebody-{number}", "", engine.now(), "PERMISSION_DENIED", "PERMISSION_DENIED")
        engine.record_operation(refused, "default")
    assert engine.audit_counts().overflowed == 3
    await parts(engine).stream.flush()
    assert not engine.audit_full()
    (overflow,) = await everything(engine, AuditFilter(principal="system:audit"))
    assert overflow.operation.count == 3
    assert len(await everything(engine)) == 6


async def test_what_waits_is_written_when_the_engine_closes(tmp_path: Path) -> None:
    store = StateStore(str(tmp_path / "store"))
    async with WorkflowEngine(store) as engine:
        engine.record_operation(read_of(BOB, "cases/1", engine.now()), "default")
    async with WorkflowEngine(store) as engine:
        assert told(await everything(engine)) == [(BOB, "GetCase", "cases/1")]


async def test_checkpoints_continue_each_other_over_restarts_and_tiles(tmp_path: Path) -> None:
    """More batch records than two tiles; each start begins with the stored tiles, and reads no more than a tile."""
    key = SigningKey.generate()
    seen: list[tuple[int, bytes]] = []
    for life in range(4):
        async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
            engine.sign_with(key)
            for number in range(190):
                engine.record_operation(read_of(BOB, f"cases/{number}", engine.now()), "default")
                await parts(engine).stream.flush()
                if number % 60 == 0:
                    (checkpoint,) = [each for each in await engine.audit_checkpoints() if each.shard == 0]
                    assert checkpoint_signed(checkpoint, key.public)
                    assert not checkpoint_signed(checkpoint, SigningKey.generate().public)
                    seen.append((checkpoint.size, checkpoint.root))
            size, root = seen[-1]
            for earlier, was in seen:
                assert await parts(engine).trees.root(0, earlier) == was
                path = await engine.audit_consistency(0, earlier, size)
                assert checkpoints_consistent(earlier, size, was, root, path)
            if life == 3:
                store = parts(engine).store
                stored = await store.scan(*parts(engine).keyspace.tiles(0, 0), limit=10)
                assert len(stored) == 2
                assert (await engine.verify_store()).intact
                await store.commit([(stored[1][0], seal(bytes(256 * 32)))], (), True)
                found = (await engine.verify_store()).findings
                assert [(one.code, one.position) for one in found] == [("TREE_WRONG", 512)]
    assert len({size for size, _ in seen}) == len(seen)


async def test_every_entry_has_a_proof(engine: WorkflowEngine) -> None:
    await lived(engine, 6)
    await parts(engine).stream.flush()
    public = engine._key.public if engine._key is not None else b""
    for entry in await everything(engine):
        found = await engine.audit_proof(entry.audit_id)
        assert found.entry == entry
        verdict = prove_receipt(found.document, public)
        assert (verdict.problem, verdict.position) == ("", found.inclusion.leaf + 1)
        assert "another key" in prove_receipt(found.document, SigningKey.generate().public).problem


async def test_receipts_of_steps(engine: WorkflowEngine) -> None:
    await engine.register_workflow(SIGN)
    case = await engine.run_case("sign", case_id="one", meta=by(ALICE, "RunCase"))
    await engine.complete_work_item(case.work[0].item_id, {}, meta=by(BOB, "CompleteWorkItem"))
    last = await engine.receipt("one")
    first = await engine.receipt("one", 2)
    assert first.sequence == 1
    for receipt, who in ((first, ALICE), (last, BOB)):
        verdict = prove_receipt(receipt.document)
        assert (verdict.problem, verdict.case_id, verdict.principal) == ("", "one", who)
        for part in ("hash", "position", "path", "checkpoint", "step"):
            document = msgspec.json.decode(receipt.document)
            held = document[part]
            if part == "step":
                held["first_sequence"] += 1
            elif isinstance(held, int):
                document[part] = held + 1
            elif isinstance(held, str):
                document[part] = held.replace(held[10], "0" if held[10] != "0" else "1")
            else:
                document[part] = [*held, "00" * 32]
            spoilt = msgspec.json.encode(document)
            assert spoilt == receipt.document or prove_receipt(spoilt).problem, part
    with pytest.raises(InvalidInput):
        await engine.receipt("one", (1 << 64) - 1)
    for case_id, sequence in (("nobody", 0), ("one", 99)):
        with pytest.raises(NotFound):
            await engine.receipt(case_id, sequence)


async def test_without_a_key_there_are_no_checkpoints(tmp_path: Path) -> None:
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        await lived(engine, 2)
        with pytest.raises(Unsupported):
            await engine.audit_checkpoints()
        assert await everything(engine)


async def test_the_system_acts_under_its_own_name(engine: WorkflowEngine) -> None:
    """A timer and a schedule: nobody called."""
    document = {
        "id": "tick",
        "tasks": {"wait": {"timer": "1ms"}},
        "flows": [{"from": "start", "to": "wait"}, {"from": "wait", "to": "end"}],
    }
    await engine.register_workflow(document, meta=by(ALICE, "RegisterWorkflow"))
    await engine.create_schedule("soon", ScheduleSpec("tick", "R1/PT1S"), meta=by(ALICE, "CreateSchedule"))
    await engine.trigger_schedule("soon", meta=by(BOB, "TriggerSchedule"))
    await eventually(lambda: everything(engine, AuditFilter(principal="system:timer")))
    found = told(await everything(engine))
    assert {one[:2] for one in found if one[0].startswith("system:")} == {
        ("system:timer", "fire_timer"),
        ("system:schedule/soon", "start_scheduled_case"),
    }
    assert (BOB, "TriggerSchedule", "schedules/soon") in found


async def test_identity_is_of_the_store_and_its_copies(tmp_path: Path) -> None:
    names = []
    for name in ("one", "one", "two"):
        async with WorkflowEngine(StateStore(str(tmp_path / name))) as engine:
            engine.sign_with(SigningKey.generate())
            await engine.register_workflow(SIGN)
            names.append((await engine.audit_checkpoints())[0].store)
    assert names[0] == names[1] != names[2]


async def test_texts_that_cannot_be_written_are_mended_and_take_nobody_with_them(engine: WorkflowEngine) -> None:
    engine.record_operation(read_of("half \ud800 a character", "cases/1", engine.now()), "default")
    engine.record_operation(read_of(BOB, "cases/2", engine.now()), "default")
    await parts(engine).stream.flush()
    assert sorted(told(await everything(engine))) == [
        ("half ? a character", "GetCase", "cases/1"),
        (BOB, "GetCase", "cases/2"),
    ]


async def test_sensitive_data_are_in_no_receipt_and_no_export(engine: WorkflowEngine) -> None:
    await engine.register_workflow({**SIGN, "id": "secret", "sensitive": ["card"]})
    await engine.register_workflow(SIGN)
    for spec, case_id in (("secret", "hidden"), ("sign", "open")):
        await engine.run_case(spec, {"card": "4111-1111"}, case_id=case_id, meta=by(ALICE, "RunCase"))
    for case_id, withheld in (("hidden", True), ("open", False)):
        receipt = await engine.receipt(case_id)
        assert (b"4111" in b64decode(msgspec.json.decode(receipt.document)["step"]["record"])) != withheld
        verdict = prove_receipt(receipt.document)
        assert (verdict.problem, verdict.withheld, verdict.principal) == ("", withheld, ALICE)
    document = b"".join([piece async for piece in engine.export_audit(full=True)])
    lines = [msgspec.json.decode(line) for line in document.splitlines()]
    shown = {line["case"]: b64decode(line.get("record", "")) for line in lines if "case" in line}
    assert (shown["hidden"], b"4111" in shown["open"]) == (b"", True)
    assert not any(line.get("salt") for line in lines if line.get("case") == "hidden")
    proof = prove_audit(document.splitlines(keepends=True), engine._key.public if engine._key else None)
    assert (proof.problem, proof.withheld) == ("", 1)


async def test_nobody_but_the_daemon_can_say_what_a_receipt_says(engine: WorkflowEngine) -> None:
    for tenant in ("default", "other"):
        await engine.register_workflow(SIGN, meta=by(ALICE, "RegisterWorkflow", tenant))
    await engine.run_case("sign", case_id="one", meta=by(ALICE, "RunCase"))
    engine.record_operation(read_of(BOB, "cases/one", engine.now()), "default")
    await parts(engine).stream.flush()
    receipt = msgspec.json.decode((await engine.receipt("one")).document)
    other = {**receipt["step"], "principal": BOB, "case_id": "two"}
    forged = [
        {**receipt, "batch": "", "step": {**other, "record": "", "salt": ""}},  # as if other tenants' cases were in it
        {**receipt, "batch": "", "step": {**receipt["step"], "record": "", "salt": "", "principal": BOB}},
        {**receipt, "step": {**receipt["step"], "record": "", "salt": "", "principal": BOB}},  # as if data were secret
        {**receipt, "signature": ""},
        {**receipt, "signature": "nonsense"},
    ]
    for entry in await everything(engine):
        proof = msgspec.json.decode((await engine.audit_proof(entry.audit_id)).document)
        by_whom = prove_receipt(msgspec.json.encode(proof))
        assert (by_whom.problem, by_whom.audit_id, by_whom.principal) == ("", entry.audit_id, entry.operation.principal)
        forged += [{**proof, "entry": {**proof["entry"], name: "x"}} for name in ("principal", "outcome", "resource")]
    for each in forged:
        assert prove_receipt(msgspec.json.encode(each)).problem, each


async def test_strangers_cannot_fill_the_audit_nor_lock_out_who_reads(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_stream, "ENTRIES_MAX", 50)
    monkeypatch.setattr(audit_stream, "STRANGERS_A_SECOND", 5)
    now = engine.now()
    for number in range(100):
        why = f"UNAUTHENTICATED: is of the issuer '{number}', which does not count here"
        engine.record_operation(read_of("anonymous", "", now, "UNAUTHENTICATED", why), "default")
    assert not engine.audit_full()
    assert (engine.audit_counts().waiting, engine.audit_counts().overflowed) == (5, 95)
    engine.record_operation(read_of("anonymous", "", now + 1_000_000_000, "UNAUTHENTICATED", "later"), "default")
    engine.record_operation(read_of(BOB, "", now, "PERMISSION_DENIED", "PERMISSION_DENIED"), "default")
    assert engine.audit_counts().waiting == 7
    await parts(engine).stream.flush()
    (overflow,) = await everything(engine, AuditFilter(principal="system:audit"))
    assert overflow.operation.count == 95


async def test_a_filter_over_large_records_gives_short_pages_too(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "LOOKED_MAX", 200)
    monkeypatch.setattr(audit_trail, "LOOK_BYTES", 1_024)
    await engine.register_workflow(SIGN)
    for number in range(12):
        await engine.run_case("sign", {"x": "x" * 50_000}, case_id=f"c{number}", meta=by(ALICE, "RunCase"))
    page = await engine.list_audit(AuditFilter(principal="nobody"))
    assert (page.items, bool(page.next_token)) == ((), True)
    assert len(await everything(engine, AuditFilter(method="RunCase"))) == 12


async def test_two_checkpoints_of_one_size_that_differ_cannot_both_fit(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    async with WorkflowEngine(StateStore(path)) as engine:
        engine.sign_with(SigningKey.generate())
        await engine.register_workflow(SIGN)
        good = await engine.audit_checkpoints()
    wrong = [msgspec.structs.replace(each, root=bytes(32)) for each in good]
    assert await check_store_audit(path, good) == ()
    assert await check_store_audit(path, [*wrong, *good])
    assert await check_store_audit(path, [*good, *wrong])


async def test_pages_of_many_logs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WorkflowEngine(StateStore.over(MemoryStore(shards=8))) as engine:
        await engine.register_workflow(SIGN)
        for number in range(200):
            await engine.run_case("sign", case_id=f"c{number}", meta=by(ALICE, "RunCase"))
        monkeypatch.setattr(audit_trail, "LOOKED_MAX", 100)
        pages, token = 0, ""
        while token or not pages:
            page = await engine.list_audit(AuditFilter(principal="nobody"), page_token=token)
            token, pages = page.next_token, pages + 1
        assert pages <= 20
        assert len(await everything(engine, AuditFilter(method="RunCase"))) == 200


async def test_what_a_store_that_is_away_keeps_from_the_audit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_stream, "CLOSE_S", 0.05)
    clock = VirtualClock()
    store = FaultyStore(MemoryStore())
    journal = await Journal.open(store, clock.now)
    for by_itself in (False, True):
        stream = AuditStream(journal, Keyspace(1), clock)
        store.way.clear()
        for number in range(3):
            stream.take("default", Operation(clock.now(), "me", "GetCase", resource=f"cases/{number}"))
        running = asyncio.create_task(stream.flush() if by_itself else asyncio.sleep(0))
        await asyncio.sleep(0.01)
        stream.take("default", Operation(clock.now(), "me", "GetCase", resource="cases/late"))
        await stream.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (stream.overflowed, stream.waiting - len(stream._waiting)) == (4, 0)
        store.way.set()
    await journal.close()
