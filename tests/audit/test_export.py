"""An exported audit proves itself: whatever is changed in it is found, and the first wrong entry named."""

from __future__ import annotations

import base64
import json
import random
import shutil
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from knhk_workflow import (
    AuditProof,
    InvalidInput,
    SigningKey,
    StateStore,
    StoreCorrupt,
    WorkflowEngine,
    check_store_audit,
    prove_audit,
    read_checkpoints,
)
from tests.audit.conftest import ALICE, History, by, lived
from tests.conftest import Budget

MUTATIONS = 10_000
FORGERIES = 1_000
STEPS_PER_MUTATION = 8  # simulated steps that a mutation costs as much as: `--budget 80000` makes all of them

Line = dict[str, Any]


def proven(document: bytes, history: History, *, known: bool = False) -> AuditProof:
    return prove_audit(document.splitlines(keepends=True), history.key.public, history.late if known else ())


def lines_of(document: bytes) -> list[Line]:
    return [json.loads(line) for line in document.splitlines()]


def summed(lines: list[Line]) -> bytes:
    """The file with sums made anew, as whoever changes lines would."""
    out, before = b"", b""
    for line in lines:
        text = json.dumps({name: value for name, value in line.items() if name != "sum"}, separators=(",", ":"))
        body = text.encode()[:-1]
        before = blake2b(before + body, digest_size=16).digest()
        out += body + b',"sum":"' + before.hex().encode() + b'"}\n'
    return out


def found(document: bytes, history: History, *, known: bool = False) -> AuditProof | None:
    """What proving says; None when it is no export at all."""
    try:
        return proven(document, history, known=known)
    except InvalidInput:
        return None


def test_what_was_exported_is_proven(history: History) -> None:
    for document, full in ((history.plain, False), (history.full, True)):
        proof = proven(document, history, known=full)
        assert not proof.problem
        assert (proof.full, proof.line, proof.entry) == (full, 0, "")
        entries = [line["by"] for line in lines_of(document) if "case" in line and "by" in line]
        kept = [one for line in lines_of(document) if "audit" in line for one in line.get("operations", ())]
        assert proof.entries == len(entries) + len(kept)
        assert {one["principal"] for one in entries} >= {ALICE}
        assert proof.sizes == {each.shard: each.size for each in read_checkpoints("".join(noted(document)))}
    assert {one.shard: one.size for one in history.early} != {one.shard: one.size for one in history.late}
    assert not prove_audit(history.plain.splitlines(keepends=True), history.key.public, history.early).problem


def noted(document: bytes) -> list[str]:
    notes: list[str] = lines_of(document)[-1]["end"]["checkpoints"]
    return notes


def test_without_the_key_it_is_of_one_piece_with_it_nobody_else_signed(history: History) -> None:
    assert not prove_audit(history.plain.splitlines(keepends=True)).problem
    other = prove_audit(history.plain.splitlines(keepends=True), SigningKey.generate().public)
    assert "another key" in other.problem


@pytest.mark.long
def test_every_one_of_many_random_mutations_is_found(history: History, budget: Budget) -> None:
    """Bytes changed, removed, doubled, swapped; lines removed, doubled, exchanged; the end cut off."""
    count = min(MUTATIONS, budget.steps // STEPS_PER_MUTATION)
    seed = time.time_ns()
    chance = random.Random(seed)
    for number in range(count):
        document = history.full if number % 4 == 0 else history.plain
        spoilt = mutated(document, chance)
        if spoilt == document:
            continue
        proof = found(spoilt, history)
        assert proof is None or proof.problem, f"mutation {number} of seed {seed} was not found"
        if proof is not None:
            first = next(
                (
                    at
                    for at, (one, other) in enumerate(
                        zip(document.splitlines(), spoilt.splitlines(), strict=False), start=1
                    )
                    if one != other
                ),
                min(document.count(b"\n"), spoilt.count(b"\n")) + 1,
            )
            assert proof.line <= first + 1, f"mutation {number} of seed {seed}: line {proof.line}, not {first}"


def mutated(document: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(document))
    lines = document.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    ways: list[Callable[[], bytes]] = [
        lambda: document[:at] + bytes([document[at] ^ (1 << chance.randrange(8))]) + document[at + 1 :],
        lambda: document[:at] + document[at + chance.randrange(1, 40) :],
        lambda: document[:at] + document[at : at + 10] + document[at:],
        lambda: document[:at],
        lambda: b"".join(lines[:one] + lines[one + 1 :]),
        lambda: b"".join([*lines[:one], lines[other], *lines[one:]]),
        lambda: b"".join([*lines[:one], lines[other], *lines[one + 1 :]]),
        lambda: b"".join(lines[: one + 1]),
        lambda: document + lines[one],
    ]
    return chance.choice(ways)()


@pytest.mark.long
def test_a_forger_who_makes_the_sums_anew_is_found(history: History, budget: Budget) -> None:
    """Without the key, any value of any line changed and all sums made again."""
    seed = time.time_ns()
    chance = random.Random(seed)
    for number in range(min(FORGERIES, budget.steps // (10 * STEPS_PER_MUTATION))):
        lines = lines_of(history.full if number % 2 else history.plain)
        at = chance.randrange(len(lines))
        if not forged(lines[at], chance):
            del lines[at]
        proof = found(summed(lines), history)
        assert proof is None or proof.problem, f"forgery {number} of seed {seed}, in line {at + 1}, was not found"


def forged(value: Any, chance: random.Random) -> bool:
    """Change something in a line; False when there is nothing in it."""
    names = [name for name in value if name != "sum"] if isinstance(value, dict) else list(range(len(value)))
    if not names:
        return False
    name = chance.choice(names)
    held = value[name]
    if isinstance(held, dict | list):
        return forged(held, chance)
    if isinstance(held, bool):
        value[name] = not held
    elif isinstance(held, int):
        value[name] = held + chance.choice((-1, 1, 1_000))
    else:
        value[name] = held[:-1] + ("A" if not held.endswith("A") else "B")
    return True


@pytest.mark.parametrize("spelled", [str.upper, lambda text: f" {text}", lambda text: f"{text[:2]} {text[2:]}"])
def test_a_signature_has_one_spelling(history: History, spelled: Callable[[str], str]) -> None:
    lines = lines_of(history.plain)
    ending = lines[-1]["end"]
    ending["signature"] = spelled(ending["signature"])
    assert "not hexadecimal" in proven(summed(lines), history).problem


def test_in_a_full_export_even_the_signer_cannot_change_who_did_what(history: History) -> None:
    """Whoever has the key signs the changed file anew: the log itself tells."""
    lines = lines_of(history.full)
    at = next(number for number, line in enumerate(lines) if line.get("case") == "case-5")
    lines[at]["by"]["principal"] = "spiffe://example.org/somebody-else"
    proof = proven(signed_again(lines, history.key), history)
    assert proof.line == at + 1
    assert "who wrote the commit record" in proof.problem
    lines = lines_of(history.full)
    payload = base64.b64decode(lines[at]["record"]).replace(ALICE.encode(), ALICE[:-1].encode() + b"X")
    lines[at]["record"] = base64.b64encode(payload).decode()
    lines[at]["by"]["principal"] = ALICE[:-1] + "X"
    assert "digest" in proven(signed_again(lines, history.key), history).problem


def signed_again(lines: list[Line], key: SigningKey) -> bytes:
    body = summed(lines[:-1])
    total = bytes.fromhex(json.loads(body.splitlines()[-1])["sum"])
    lines[-1]["end"]["signature"] = key.sign("audit export", total).hex()
    return summed(lines)


def test_an_end_that_was_cut_off_is_found_against_a_pushed_checkpoint(history: History) -> None:
    """By whoever has the key, so that the file itself is in order."""
    lines = lines_of(history.plain)
    heads = [number for number, line in enumerate(lines) if line.get("log") == 0]
    cut = heads[-3]
    ends = next(number for number in range(cut, len(lines)) if "end" in lines[number] or lines[number].get("log"))
    shorter = lines[:cut] + lines[ends:]
    proof = proven(signed_again(shorter, history.key), history)
    assert proof.problem  # its own checkpoint and counts say more than is there
    assert proven(signed_again(shorter, history.key), history, known=True).problem


async def test_an_older_state_that_was_brought_back_is_found(history: History, tmp_path: Path) -> None:
    """A copy of the directory, then more work and a checkpoint, then the copy again: by a daemon that knows nothing."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    key = SigningKey.generate()
    async with WorkflowEngine(StateStore(str(path))) as engine:
        engine.sign_with(key)
        await lived(engine, 3)
        await engine.audit_checkpoints()
    shutil.copytree(path, copy)
    async with WorkflowEngine(StateStore(str(path))) as engine:
        engine.sign_with(key)
        await engine.run_case("sign", case_id="later", meta=by(ALICE, "RunCase"))
        pushed = tuple(await engine.audit_checkpoints())
        newer = b"".join([piece async for piece in engine.export_audit()])
    assert await check_store_audit(str(path), pushed) == ()
    assert not prove_audit(newer.splitlines(keepends=True), key.public, pushed).problem
    assert any("older state" in problem for problem in await check_store_audit(str(copy), pushed))
    async with WorkflowEngine(StateStore(str(copy))) as engine:
        engine.sign_with(key)
        older = b"".join([piece async for piece in engine.export_audit()])
        assert not prove_audit(older.splitlines(keepends=True), key.public).problem
        assert "older state" in prove_audit(older.splitlines(keepends=True), key.public, pushed).problem
        assert [bool(await engine.check_checkpoint(each)) for each in pushed] == [True, False]
        # it goes on with another history, until it is as long
        for number in range(20):
            await engine.run_case("sign", case_id=f"other-{number}", meta=by(ALICE, "RunCase"))
        assert "not those that were there" in await engine.check_checkpoint(pushed[0])
        grown = b"".join([piece async for piece in engine.export_audit()])
    assert "checkpoint" in prove_audit(grown.splitlines(keepends=True), key.public, pushed).problem
    assert any("not those of the checkpoint" in problem for problem in await check_store_audit(str(copy), pushed))


async def test_a_store_that_was_changed_is_not_exported(tmp_path: Path) -> None:
    """A commit record and an audit record replaced behind the daemon's back."""
    from knhk_workflow.store import Keyspace, open_store, seal, unseal

    for kind in ("record", "audit"):
        path = tmp_path / kind
        async with WorkflowEngine(StateStore(str(path))) as engine:
            await lived(engine, 3)
        store = await open_store(str(path), create=False)
        keys = Keyspace(store.shards)
        key, value = (
            (await store.scan(*keys.case_records("default", "case-0"), limit=1))[0]
            if kind == "record"
            else (await store.scan(*keys.audits(0), limit=1))[0]
        )
        payload = unseal(key, value).replace(b"alice", b"mally")
        await store.commit([(key, seal(payload))], (), True)
        await store.close()
        async with WorkflowEngine(StateStore(str(path))) as engine:
            engine.sign_with(SigningKey.generate())
            with pytest.raises(StoreCorrupt):
                _ = [piece async for piece in engine.export_audit()]
            examination = await engine.verify_store()
            codes = {finding.code for finding in examination.findings}
            assert codes & {"RECORD_CHANGED", "AUDIT_UNKNOWN"}
