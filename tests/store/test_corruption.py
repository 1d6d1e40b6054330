"""Every kind of file of a store, damaged in every way: what is served is right, or it is refused and said why.

A store that was closed properly is copied, one file of the copy is damaged, and everything is asked of an engine over
it. Each answer must be the one that the undamaged store gives, or an error that names damage. And when nothing at all
is reported, neither by opening, nor by an answer, nor by examining the store, then every answer must be there.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import pytest

from knhk_workflow import CaseFilter, NotFound, StateStore, StoreCorrupt, StoreError, WorkflowEngine, WorkItemFilter
from knhk_workflow.runtime.integrity import Examination, examine
from knhk_workflow.store import Keyspace, seal, unseal
from knhk_workflow.store.leveldb import LevelDBStore
from tests.conftest import Budget
from tests.sweep.workload import CASES, LIMITS, SPEC, STEPS, carry_out

Damage = Callable[[Path, Random], None]
HALF = len(STEPS) // 2
REPORTS = (StoreError, NotFound)
"""What may be answered instead of the truth. NotFound: of the store itself, as for an empty directory."""


def flip(file: Path, random: Random) -> None:
    """One bit, anywhere."""
    data = bytearray(file.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)


def zero(file: Path, random: Random) -> None:
    """Everything, but the size."""
    file.write_bytes(bytes(file.stat().st_size))


def hole(file: Path, random: Random) -> None:
    """A stretch of zeros, as a lost page leaves it."""
    data = bytearray(file.read_bytes())
    at = random.randrange(len(data))
    data[at : at + 512] = bytes(len(data[at : at + 512]))
    file.write_bytes(data)


def cut(file: Path, random: Random) -> None:
    """The end is gone."""
    os.truncate(file, random.randrange(file.stat().st_size))


def empty(file: Path, random: Random) -> None:
    """Nothing is left but the name."""
    os.truncate(file, 0)


def longer(file: Path, random: Random) -> None:
    """Something foreign at the end."""
    with file.open("ab") as opened:
        opened.write(random.randbytes(random.randint(1, 300)))


def delete(file: Path, random: Random) -> None:
    """The name is gone too."""
    file.unlink()


RANDOM: tuple[Damage, ...] = (flip, hole, cut, longer)
ONCE: tuple[Damage, ...] = (zero, empty, delete)


@dataclass(frozen=True, slots=True)
class Original:
    """An undamaged store and its answers."""

    path: Path
    older: Path
    """The same store half way."""
    answers: dict[str, bytes]


async def worked(path: Path, steps: range) -> None:
    store = await LevelDBStore.open(str(path), limits=LIMITS)
    async with WorkflowEngine(StateStore.over(store)) as engine:
        await engine.register_workflow(SPEC)
        for index in steps:
            for number in range(CASES):
                if index < len(STEPS) - 1 or number % 2:  # half of the cases stay open, with work
                    await carry_out(engine, number, index)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    place = tmp_path_factory.mktemp("original")
    path, older = place / "store", place / "older"
    asyncio.run(worked(path, range(HALF)))
    shutil.copytree(path, older)
    asyncio.run(worked(path, range(HALF, len(STEPS))))
    copy = place / "copy"
    shutil.copytree(path, copy)
    answers, reports, examined = asyncio.run(ask(copy))
    assert not reports
    assert examined is not None
    assert examined.intact
    assert (examined.cases, examined.records) == (CASES, CASES * len(STEPS) - CASES // 2)
    return Original(path, older, answers)


async def ask(path: Path) -> tuple[dict[str, bytes], list[str], Examination | None]:
    """Every answer that the store at `path` gives, every report of damage, and what an examination says."""
    answers: dict[str, bytes] = {}
    reports: list[str] = []
    try:
        store = await LevelDBStore.open(str(path), create=False, limits=LIMITS)
    except REPORTS as error:
        return answers, [repr(error)], None
    moment = await store.snapshot()
    examined = await examine(moment, store.shards)
    await moment.close()
    engine = WorkflowEngine(StateStore.over(store))
    try:
        for name, question in questions(engine):
            try:
                answers[name] = msgspec.msgpack.encode(await question())
            except StoreError as error:
                reports.append(f"{name}: {error!r}")
            except NotFound as error:
                answers[name] = repr(error).encode()
        await engine.close()
    except StoreError as error:
        reports.append(repr(error))
    return answers, reports, examined


def questions(engine: WorkflowEngine) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    yield "workflow", partial(engine.get_workflow, "order")
    yield "workflows", engine.list_workflows
    yield "cases", engine.list_cases
    for state in ("running", "completed"):
        yield f"cases {state}", partial(engine.list_cases, CaseFilter(state=state))
    yield "work", partial(engine.list_work_items, WorkItemFilter(role="clerk"))
    yield "incidents", engine.list_incidents
    for number in range(CASES):
        case_id = f"case-{number}"
        yield f"{case_id}", partial(engine.get_case, case_id)
        yield f"{case_id} history", partial(engine.get_case_history, case_id, page_size=1_000)
        yield f"{case_id} explained", partial(engine.explain_case, case_id)


def kinds(path: Path) -> list[str]:
    """Every file, by its place in the directory."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def damaged(original: Original, into: Path, name: str, damage: Damage, random: Random) -> str:
    """What is wrong with the answers of a copy with one damaged file; empty when nothing is."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(original.path, into)
    if (into / name).stat().st_size or damage in (delete, longer):
        damage(into / name, random)
    return compared(original, into)


def compared(original: Original, path: Path) -> str:
    answers, reports, examined = asyncio.run(ask(path))
    wrong = [name for name, answer in answers.items() if answer != original.answers[name]]
    if wrong and not (reports or (examined is not None and not examined.intact)):
        return f"{wrong} are wrong, and nothing is reported"
    served = [name for name in wrong if not name.startswith(("cases", "work", "incidents"))]
    if served:
        return f"{served} are served wrong, though damage is reported: {reports} {examined and examined.findings[:3]}"
    if reports and examined is not None and examined.intact:
        return f"{reports} while the examination found nothing"
    return ""


KINDS = ("FORMAT", "HEAD", "OWNER", "RESERVE", "CURRENT", "LOCK", "MANIFEST", "log", "ldb")


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_reported_and_never_served(original: Original, tmp_path: Path, budget: Budget, kind: str) -> None:
    random = Random(kind)
    rounds = max(2, budget.steps // 5_000)
    names = [name for name in kinds(original.path) if re.search(rf"(^|/|\.){kind}(-\d+)?$", name)]
    assert names
    tried: Counter[str] = Counter()
    for name in names:
        for damage in [*ONCE, *(damage for damage in RANDOM for _ in range(rounds))]:
            state = random.getstate()
            wrong = damaged(original, tmp_path / "store", name, damage, random)
            assert not wrong, f"{damage.__name__} of {name} (state {hash(state)}): {wrong}"
            tried[damage.__name__] += 1
    print(kind, dict(tried))


@pytest.mark.long
def test_files_of_an_older_copy_are_reported_and_never_served(original: Original, tmp_path: Path) -> None:
    for name in kinds(original.older):
        store = tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(original.path, store)
        (store / name).parent.mkdir(exist_ok=True)
        shutil.copy(original.older / name, store / name)
        wrong = compared(original, store)
        assert not wrong, f"{name} of an older copy: {wrong}"


def test_a_head_file_of_zeros_is_refused(original: Original, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(original.path, store)
    zero(store / "HEAD", Random(0))
    with pytest.raises(StoreCorrupt, match="head"):
        asyncio.run(worked(store, range(0)))


async def test_an_examination_names_the_cases_concerned(original: Original, tmp_path: Path) -> None:
    """One record gone, one changed, one from nowhere, a head that tells of more, a snapshot of something else."""
    store_path = tmp_path / "store"
    shutil.copytree(original.path, store_path)
    store = await LevelDBStore.open(str(store_path), limits=LIMITS)
    keys = Keyspace(store.shards)
    record = keys.case("default", "case-0").records()
    rows = await store.scan(*record, limit=10)
    await store.commit([(rows[3][0], None)], [], True)
    changed = keys.case("default", "case-1")
    rows = await store.scan(*changed.records(), limit=10)
    payload = unseal(*rows[4]).replace(b"a pause", b"a cause")
    assert payload != unseal(*rows[4])
    await store.commit([(rows[4][0], seal(payload))], [], True)
    added = keys.case("default", "case-2")
    last = (await store.scan(*added.records(), limit=1, reverse=True))[0]
    await store.commit([(added.record(1_000), last[1])], [], True)
    gone = keys.case("default", "case-3")
    await store.commit([(gone.head, None)], [], True)
    item = keys.case("default", "case-4")
    held = await store.scan(*item.items(), limit=5)
    assert held
    await store.commit([(held[0][0], None)], [], True)
    found = await examine(store, store.shards)
    await store.close()
    told = {(finding.code, finding.case_id) for finding in found.findings}
    assert ("RECORD_MISSING", "case-0") in told
    assert ("HISTORY_BROKEN", "case-0") in told
    assert ("RECORD_CHANGED", "case-1") in told
    assert ("HISTORY_BROKEN", "case-2") in told
    assert ("HEAD_MISSING", "case-3") in told
    assert ("WORK_WRONG", "case-4") in told
    assert {case_id for _, case_id in told} == {f"case-{number}" for number in range(5)}
