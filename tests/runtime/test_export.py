"""An exported case proves itself; whatever is changed in it is found, and the first bad event named."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from knhk_workflow import (
    CallMeta,
    InvalidInput,
    NotFound,
    SigningKey,
    StateStore,
    WorkflowEngine,
    key_fingerprint,
    prove_export,
    read_public_key,
)
from tests.conftest import Budget
from tests.sweep.workload import SPEC, STEPS, carry_out

Document = dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    async def make() -> bytes:
        path = tmp_path_factory.mktemp("export") / "store"
        async with WorkflowEngine(StateStore(str(path))) as engine:
            await engine.register_workflow(SPEC)
            for index in range(len(STEPS)):
                await asyncio.gather(*(carry_out(engine, number, index) for number in range(3)))
            return await engine.export_case("case-1")

    return asyncio.run(make())


def test_what_was_exported_is_proven(exported: bytes) -> None:
    proof = prove_export(exported)
    assert not proof.problem
    assert (proof.case_id, proof.records, proof.tied) == ("case-1", len(STEPS), len(STEPS))
    document = json.loads(exported)
    assert proof.events == document["case"]["sequence"]
    assert (proof.position, proof.hash) == (document["log"][-1]["position"], document["log"][-1]["hash"])
    assert [event["sequence"] for record in document["records"] for event in record["events"]] == [
        *range(1, proof.events + 1)
    ]


def spoilt(exported: bytes) -> Document:
    document: Document = json.loads(exported)
    return document


def test_the_first_bad_event_is_named(exported: bytes) -> None:
    document = spoilt(exported)
    records = document["records"]
    later = records[5]["events"][0]
    later["data"]["by"] = "somebody else"
    records[6]["events"][0]["timestamp"] += 1
    proof = prove_export(json.dumps(document).encode())
    assert proof.sequence == later["sequence"]
    assert "other content" in proof.problem
    document = spoilt(exported)
    gone = document["records"].pop(3)
    proof = prove_export(json.dumps(document).encode())
    assert (proof.sequence, "missing" in proof.problem) == (gone["first_sequence"], True)
    document = spoilt(exported)
    document["records"].pop()
    assert "said to be" in prove_export(json.dumps(document).encode()).problem


def test_a_record_that_was_rewritten_with_its_own_digest_is_not_in_the_log(exported: bytes) -> None:
    from knhk_workflow.store import digest

    document = spoilt(exported)
    record = document["records"][1]
    payload = base64.b64decode(record["record"]).replace(b"ada", b"eve")
    record["record"] = base64.b64encode(payload).decode()
    record["digest"] = digest(payload, bytes.fromhex(document["salt"])).hex()
    record["events"] = json.loads(json.dumps(record["events"]).replace("ada", "eve"))
    proof = prove_export(json.dumps(document).encode())
    assert (proof.sequence, "does not name" in proof.problem) == (record["first_sequence"], True)


def test_no_change_of_a_value_goes_unnoticed(exported: bytes, budget: Budget) -> None:
    """Every leaf of the document, changed one by one, or a sample of them."""
    draw = random.Random(3)
    leaves: list[tuple[list[str | int], object]] = []

    def walk(value: object, path: list[str | int]) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                walk(part, [*path, name])
        elif isinstance(value, list):
            for index, part in enumerate(value):
                walk(part, [*path, index])
        else:
            leaves.append((path, value))

    walk(spoilt(exported), [])
    for path, value in draw.sample(leaves, min(len(leaves), max(60, budget.steps // 100))):
        document = spoilt(exported)
        holder: Any = document
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = changed(value)
        data = json.dumps(document).encode()
        if path == ["case", "layout"] and document["signature"] is None:
            continue  # of another version: then the state's hash says nothing, and without it the events still do
        if path in (["format"], ["version"]):
            with pytest.raises(InvalidInput):
                prove_export(data)
        else:
            assert prove_export(data).problem, f"{path}: {value!r}"


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return f"x{value[1:]}" if value[:1] != "x" else f"y{value[1:]}"
    return 1


def test_what_is_no_export_is_refused() -> None:
    for nonsense in (b"", b"{}", b"[]", b"\xff", b"null", b'{"format": "other"}'):
        with pytest.raises(InvalidInput, match="exported case"):
            prove_export(nonsense)


async def test_other_tenants_are_not_in_it(tmp_path: Path) -> None:
    other = CallMeta(tenant="other")
    async with WorkflowEngine(StateStore(str(tmp_path / "store"))) as engine:
        for meta in (CallMeta(), other):
            await engine.register_workflow(SPEC, meta=meta)
        await asyncio.gather(
            engine.run_case("order", {}, case_id="mine"),
            engine.run_case("order", {}, case_id="secret", meta=other),
        )
        document = await engine.export_case("mine")
        for batch in json.loads(document)["log"]:
            assert b"secret" not in base64.b64decode(batch["batch"])
        proof = prove_export(document)
        assert not proof.problem
        with pytest.raises(NotFound):
            await engine.export_case("secret")


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> bytes:
    async def make() -> bytes:
        path = tmp_path_factory.mktemp("signed") / "store"
        async with WorkflowEngine(StateStore(str(path))) as engine:
            engine.sign_with(key)
            await engine.register_workflow(SPEC)
            for index in range(len(STEPS)):
                await carry_out(engine, 0, index)
            return await engine.export_case("case-0")

    return asyncio.run(make())


def test_a_signed_export_is_proven_with_the_key_only(signed: bytes, exported: bytes, key: SigningKey) -> None:
    public = read_public_key(key.public_pem())
    assert public == read_public_key(key.pem()) == key.public
    for given in (None, public):
        proof = prove_export(signed, given)
        assert (proof.problem, proof.signed_by) == ("", key_fingerprint(public))
    assert "another key" in prove_export(signed, SigningKey.generate().public).problem
    assert "not signed" in prove_export(exported, public).problem
    bare = spoilt(signed)
    bare["signature"] = None
    assert prove_export(json.dumps(bare).encode()).problem


def test_who_rewrites_an_event_and_every_hash_behind_it_is_found_out_at_that_event(
    signed: bytes, key: SigningKey
) -> None:
    document, victim = spoilt(signed), 4
    forged = forge(document, victim)
    proof = prove_export(forged, key.public)
    assert proof.sequence == document["records"][victim]["first_sequence"]
    assert "not signed" in proof.problem
    unsigned = json.loads(forged)
    unsigned["signature"] = None
    for record in unsigned["records"]:
        record["signature"] = ""
    assert not prove_export(json.dumps(unsigned).encode()).problem, "without the signature nobody could tell"
    other = SigningKey.generate()
    unsigned["signature"] = {"key": other.public.hex(), "signed_at": 1, "signature": "00"}
    assert "another key" in prove_export(json.dumps(unsigned).encode(), key.public).problem


def forge(document: Document, victim: int) -> bytes:
    """Another person did it, and all digests and hashes are made anew, as only somebody who knows the format can."""
    from knhk_workflow.store import LogEntry, LogRecord, digest, seal_log, unseal_log
    from knhk_workflow.store.codec import CODEC_LOG, seal, unseal

    document = json.loads(json.dumps(document))
    record, salt = document["records"][victim], bytes.fromhex(document["salt"])
    payload = base64.b64decode(record["record"]).replace(b"system:sweep", b"system:other")
    record["record"] = base64.b64encode(payload).decode()
    before, record["digest"] = record["digest"], digest(payload, salt).hex()
    record["events"] = json.loads(json.dumps(record["events"]).replace("system:sweep", "system:other"))
    hashes: dict[int, bytes] = {}
    for batch in document["log"]:
        told, _ = unseal_log(b"", seal(base64.b64decode(batch["batch"]), codec=CODEC_LOG))
        entries = tuple(
            LogEntry(each.tenant, each.case_id, each.first_sequence, each.count, bytes.fromhex(record["digest"]))
            if each.digest.hex() == before
            else each
            for each in told.entries
        )
        previous = hashes.get(batch["position"] - 1, told.previous)
        value, hashed = seal_log(LogRecord(previous, entries, told.audits, told.time_ns, told.epoch))
        hashes[batch["position"]] = hashed
        batch["hash"], batch["batch"] = hashed.hex(), base64.b64encode(unseal(b"", value)).decode()
    return json.dumps(document).encode()


def test_no_change_of_a_signed_value_goes_unnoticed(signed: bytes, key: SigningKey, budget: Budget) -> None:
    test_no_change_of_a_value_goes_unnoticed(signed, budget)
    document = spoilt(signed)
    for name in ("key", "signature"):
        wrong = json.loads(json.dumps(document))
        wrong["signature"][name] = changed(wrong["signature"][name])
        assert prove_export(json.dumps(wrong).encode(), key.public).problem
    document["signature"]["signed_at"] += 1
    assert prove_export(json.dumps(document).encode(), key.public).problem


def test_what_is_no_key_is_refused() -> None:
    for nonsense in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"PRIVATE KEY"):
        with pytest.raises(InvalidInput, match="Ed25519"):
            read_public_key(nonsense)
