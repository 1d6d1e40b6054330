"""An exported case proves itself; whatever is changed in it is found, and the first bad event named."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from knhk_workflow import CallMeta, InvalidInput, NotFound, StateStore, WorkflowEngine, prove_export
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
