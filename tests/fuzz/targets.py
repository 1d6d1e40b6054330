"""What is fed, with good examples of its input, and the errors that it may answer with."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from knhk_sidecar.identity.jwks import InvalidKeys, read_key_set
from knhk_sidecar.identity.jwt_check import Trust, judged
from knhk_sidecar.identity.jwt_token import RefusedToken, read_token
from knhk_sidecar.identity.policy_document import InvalidPolicy
from knhk_sidecar.identity.policy_document import parse as parse_policy
from knhk_workflow import (
    SigningKey,
    StateStore,
    StoreCorrupt,
    WorkflowEngine,
    WorkflowError,
    prove_audit,
    prove_export,
    prove_receipt,
    read_checkpoints,
)
from knhk_workflow.core.case import Case, decode_state, encode_state
from knhk_workflow.model.document import json_object, strict_json, strict_yaml
from knhk_workflow.model.expression import Scope, compile_expression
from knhk_workflow.model.parse import canonical, parse_spec, spec_digest
from knhk_workflow.patterns.catalogue import PATTERNS
from knhk_workflow.runtime import inputs, pages, query, records
from knhk_workflow.runtime.definitions import compiled
from knhk_workflow.runtime.live import replayed
from knhk_workflow.store import Keyspace, Lease, keys, seal, unseal, unseal_log
from knhk_workflow.store.backup import MAGIC, check, parts, places_of
from knhk_workflow.store.codec import (
    CODEC_LOG,
    HASH_BYTES,
    UNREADABLE,
    log_link,
    seal_keys,
    seal_lease,
    unseal_keys,
    unseal_lease,
)
from knhk_workflow.store.keys import kind_of
from knhk_workflow.store.leveldb import LevelDBStore
from tests.sidecar.identity import tokens
from tests.sidecar.identity.tokens import NOW, Forge, GivenKeys, jwk, key_set
from tests.sweep.workload import SPEC, STEPS, carry_out

SAMPLES: Final = Path(__file__).parents[2] / "knhk_sidecar" / "samples"
Read = Callable[[bytes, bytes], object]
KEY: Final = b"key"
DATA: Final = {"amount": 120, "name": "Ada", "tags": ["a", "b"], "order": {"lines": [1, 2.5, None]}}
MESSAGE: Final = records.MessageRecord("m", "paid", "key", b"{}", 5, 9, "me", "trigger", b"f", True, ("case-0",))
SCHEDULE: Final = records.ScheduleRecord(
    records.ScheduleSpec("one", "0 9 * * MON-FRI", "Europe/Berlin"), 1, 5, "me", 6, 7, 8,
    starting=(records.ScheduledStart(8, "s-1", "skip"),), recent=(records.ScheduleRun(3, "missed", 4),),
)  # fmt: skip
CALL: Final = records.CallRecord("k", "mail", b"{}", 2, True)
CONNECTOR: Final = records.ConnectorRecord("http", b"{}", True, 5, "me")
PURGE: Final = records.PurgeRecord("default", "case-0", 9, "completed", "one", 1, 3, 4, 5, "me", "purge_cases")
AUDIT: Final = records.AuditRecord(
    "default", (records.Operation(7, "me", "GetCase", "cases/1", "NOT_FOUND", "NOT_FOUND", "r", "ipv4:1", "ab", 3),)
)
AUTHORS: Final = records.AuditRecord("default", (), "case-0", (records.Author(1, 5, "me", "RunCase", "r", "ab"),))
GUARDS: Final = (
    "data.amount > 100",
    "data.amount > 100.5 && data.name == 'Ada'",
    "data.tags.exists(t, t == 'a') || !has(data.missing)",
    "size(data.order.lines) == 3 ? data.name + '!' : string(data.amount)",
    "item in data.tags",
    "{'order': data.order, 'n': [1, 2, data.amount % 7]}",
    "data.name.matches('^A.*a$')",
    "duration('2d') > duration('1h30m')",
)


BEARER: Final = Forge("https://issuer.example", algorithm="ES256", key=tokens.key("curve", "ES256"))
BEARER_PARTS: Final = [
    msgspec.json.encode(BEARER.header(**header)) + b"\0" + msgspec.json.encode(BEARER.claims(**claims))
    for header in ({}, {"typ": "at+jwt"}, {"alg": "RS256"})
    for claims in ({}, {"aud": ["a", "knhk"], "groups": ["x", {"y": 1.5}]}, {"nbf": NOW + 20, "scope": "a b"})
]
KEY_SET: Final = key_set(
    jwk(tokens.key("curve", "ES256"), "a", use="sig"), jwk(tokens.key("wide", "ES384"), None), {"kty": "oct"}
)
POLICY: Final = (resources.files("knhk_sidecar") / "samples" / "policy.yaml").read_bytes()
TRUST: Final = Trust("oidc", "https://issuer.example", frozenset({"knhk"}), GivenKeys("issuer", KEY_SET))


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is fed."""

    name: str
    feed: Callable[[bytes], object]
    examples: Sequence[bytes]
    may_raise: tuple[type[BaseException], ...] = (WorkflowError,)
    weight: int = 1
    """How many times dearer than the others an input is: it gets so many fewer."""


def targets() -> list[Target]:
    """All of them. Examples come from a store that did real work."""
    kept, export, backup, proofs = asyncio.run(_worked())
    values: dict[bytes, list[bytes]] = {}
    for key, value in kept:
        values.setdefault(kind_of(key), []).append(value)
    payloads = {kind: [unseal(KEY, value) for value in some if value] for kind, some in _sealed(values).items()}
    case_keys = Keyspace(1).case("default", "case-0")
    more = [case_keys.timer(17, "t"), case_keys.effect("continue"), Keyspace(1).message(0, "default", b"scope")]
    more += [Keyspace(1).audit(0, 17, 1), case_keys.purged_audit(1), Keyspace(1).schedule("default", "nightly")]
    more += [case_keys.purged(), case_keys.purging(), Keyspace(1).connector("default", "mail")]
    by_kind: dict[bytes, list[bytes]] = {}
    for key in (*more, *(key for key, _ in kept)):
        by_kind.setdefault(kind_of(key), []).append(key)
    every_key = [key for some in by_kind.values() for key in some[:5]]
    commits = payloads[keys.RECORD]
    readers: dict[str, tuple[Read, list[bytes]]] = {
        "commit": (records.COMMITS.read, commits),
        "head": (records.HEADS.read, payloads[keys.HEAD]),
        "snapshot": (records.SNAPSHOTS.read, payloads[keys.SNAPSHOT]),
        "item": (records.ITEMS.read, payloads[keys.ITEM]),
        "incident": (records.INCIDENTS.read, payloads[keys.INCIDENT]),
        "request": (records.REQUESTS.read, payloads[keys.REQUEST]),
        "definition": (records.DEFINITIONS.read, payloads[keys.DEFINITION]),
        "schedule": (records.SCHEDULES.read, [unseal(KEY, records.pack(SCHEDULE))]),
        "call": (records.CALLS.read, [unseal(KEY, records.pack(CALL))]),
        "connector": (records.CONNECTORS.read, [unseal(KEY, records.pack(CONNECTOR))]),
        "purge": (records.PURGES.read, [unseal(KEY, records.pack(PURGE))]),
        "audit": (records.AUDITS.read, [unseal(KEY, records.pack(each)) for each in (AUDIT, AUTHORS)]),
        "commit head": (records.COMMIT_HEADERS.read, commits),
        "message": (records.MESSAGES.read, [unseal(KEY, records.pack(MESSAGE))]),
    }
    return [
        Target("value", lambda data: unseal(KEY, data), [value for _, value in kept if value]),
        *(Target(f"record {name}", partial(_record, read), some) for name, (read, some) in readers.items()),
        Target("replay", _Replay(commits), commits),
        Target(
            "state",
            decode_state,
            [msgspec.msgpack.decode(some, type=records.SnapshotRecord).state for some in payloads[keys.SNAPSHOT]],
            UNREADABLE,
        ),
        Target("batch record", lambda data: unseal_log(KEY, data), values[keys.LOG]),
        Target("batch body", lambda data: unseal_log(KEY, seal(data, codec=CODEC_LOG)), payloads[keys.LOG]),
        Target("batch link", lambda data: log_link(KEY, seal(data, codec=CODEC_LOG)), payloads[keys.LOG]),
        Target("batch payload", _batch, [payload[HASH_BYTES:] for payload in payloads[keys.LOG]]),
        Target("lease", lambda data: unseal_lease(KEY, seal(data)), [unseal(KEY, seal_lease(Lease(3, "me", 17)))]),
        Target("list of keys", lambda data: unseal_keys(KEY, seal(data)), [unseal(KEY, seal_keys([b"a", b"bc"]))]),
        *(Target(f"key {name}", parse, every_key) for name, parse in _key_parsers()),
        Target("json", strict_json, _documents("json")),
        Target("data", lambda data: json_object(data, path="data"), [*_documents("json"), b'{"a": 1.5, "b": [null]}']),
        Target("yaml", lambda data: strict_yaml(_text(data)), _documents("yaml"), weight=20),
        Target("document", _parse, _documents("json"), weight=10),
        Target("expression", _evaluate, [guard.encode() for guard in GUARDS], weight=20),
        Target("item id", lambda data: inputs.parse_item_id(_text(data)), [b"3.1.1@order-17", b"1.2.3@a@b"]),
        Target("incident id", lambda data: inputs.parse_incident_id(_text(data)), [b"1@order-17"]),
        Target("id", lambda data: inputs.checked_id(_text(data), "case_id"), [b"order-17", "größe".encode()]),
        Target("json object", lambda data: inputs.json_object(data, "data"), _documents("json")),
        Target(
            "page token",
            lambda data: pages.decode_token(_text(data), "cases"),
            [pages.encode_token(some, "cases").encode() for some in every_key[:20]],
        ),
        Target(
            "resume token",
            lambda data: query.places_of(_text(data), {0: 9, 1: 4}),
            [query.resume_token({0: (1, 3), 1: (2, 0)}).encode(), query.resume_token({0: (9, 0)}).encode()],
        ),
        Target("backup token", lambda data: places_of(_text(data)), [_token(backup)]),
        Target("backup part", _backup_part, [b"", *_frames(backup)], weight=2),
        Target("backup", lambda data: check(io.BytesIO(data), "backup"), [backup], weight=10),
        Target("export", prove_export, [export], weight=20),
        Target("policy", parse_policy, [POLICY], (InvalidPolicy,), weight=20),
        Target("bearer token", lambda data: read_token(_text(data)), [BEARER.token().encode()], (RefusedToken,)),
        Target("parts of a bearer token", _bearer, BEARER_PARTS, (RefusedToken,), weight=10),
        Target("keys", lambda data: read_key_set(data, "fuzz"), [KEY_SET], (InvalidKeys,), weight=10),
        Target("audit export", lambda data: prove_audit(data.splitlines(keepends=True)), [proofs.audit], weight=20),
        Target("receipt", prove_receipt, [proofs.receipt], weight=4),
        Target("checkpoint", lambda data: read_checkpoints(_text(data)), [proofs.checkpoint], weight=2),
    ]


def _bearer(data: bytes) -> object:
    """A well-formed token whose header and claims are anything, judged but for its signature."""
    header, _, claims = data.partition(b"\0")
    token = read_token(BEARER.token(claims, header, signature=b"x"))
    return judged(token, TRUST, NOW)


def _key_parsers() -> Iterator[tuple[str, Callable[[bytes], object]]]:
    for name in sorted(vars(keys)):
        if name.startswith("parse_"):
            yield name.removeprefix("parse_"), vars(keys)[name]
    yield "case", keys.case_in
    yield "kind", keys.kind_of


def _sealed(values: dict[bytes, list[bytes]]) -> dict[bytes, list[bytes]]:
    """Those kinds whose values have an envelope."""
    raw = {keys.DEFINITION_LATEST, keys.DEFINITION_DIGEST, keys.BUSINESS, keys.EFFECT, keys.TIMER}
    return {kind: some for kind, some in values.items() if kind not in raw}


def _text(data: bytes) -> str:
    """Text as the border hands it on: protobuf strings and JSON are UTF-8, headers may have lone surrogates."""
    return data.decode("utf-8", "surrogateescape" if data[:1] < b"\x40" else "replace")


def _record(read: Read, data: bytes) -> object:
    return read(KEY, seal(data))


class _Replay:
    """A record on top of a case that has some, as reading a damaged history would."""

    def __init__(self, commits: Sequence[bytes]) -> None:
        self._keys = Keyspace(1).case("default", "case-0")
        self._states: list[bytes] = [b""]
        for commit in commits[: len(STEPS)]:
            self._states.append(encode_state(self._next(self._states[-1], commit)))

    def __call__(self, data: bytes) -> object:
        return self._next(self._states[len(data) % len(self._states)], data)

    def _next(self, state: bytes, data: bytes) -> Case:
        record = records.COMMITS.read(KEY, seal(data))
        return replayed(decode_state(state) if state else None, record, self._keys)


def _batch(data: bytes) -> object:
    hashed = blake2b(data, digest_size=HASH_BYTES, person=b"knhk batch log").digest()
    return unseal_log(KEY, seal(hashed + data, codec=CODEC_LOG))


def _frames(backup: bytes) -> list[bytes]:
    """The payloads of a backup's frames."""
    found = []
    at = len(MAGIC)
    while at < len(backup):
        length = int.from_bytes(backup[at : at + 4], "big")
        found.append(backup[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _backup_part(data: bytes) -> object:
    framed = len(data).to_bytes(4, "big") + crc32(data).to_bytes(4, "big") + data
    found = []
    try:
        for part in parts(io.BytesIO(MAGIC + framed), "backup"):
            found.append(part)  # noqa: PERF402  # what came before the error is what is wanted
    except StoreCorrupt:
        if not found:
            raise
    return found  # the part itself was good: that the rest is missing is no news


def _parse(data: bytes) -> object:
    value = strict_json(data)
    spec = parse_spec(value)
    return compiled(spec, 1, spec_digest(canonical(value)))


def _evaluate(data: bytes) -> object:
    return compile_expression(_text(data)).value_in(Scope(DATA, "a"))


def _documents(form: str) -> list[bytes]:
    """The samples and the nets of the patterns."""
    found = [msgspec.json.encode(pattern.document) for pattern in PATTERNS if pattern.document]
    for sample in sorted(SAMPLES.glob("*.yaml")):
        text = sample.read_text(encoding="utf-8")
        found.append(text.encode() if form == "yaml" else msgspec.json.encode(strict_yaml(text)))
    return found


def _token(backup: bytes) -> bytes:
    return check(io.BytesIO(backup), "backup").token.encode()


class _Proofs(NamedTuple):
    """What the audit gives away."""

    audit: bytes
    receipt: bytes
    checkpoint: bytes


async def _worked() -> tuple[list[tuple[bytes, bytes]], bytes, bytes, _Proofs]:
    """Every pair of a store with some work in it, an exported case, a backup, the audit's proofs."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        store = await LevelDBStore.open(place)
        async with WorkflowEngine(StateStore.over(store)) as engine:
            await engine.register_workflow(SPEC)
            for index in range(len(STEPS)):
                for number in range(2):
                    await carry_out(engine, number, index)
            await engine.run_case("order", {}, case_id="open")
            (item,) = (await engine.get_case("open")).work
            await engine.fail_work_item(item.item_id, "broken", "it is broken")
            await engine.run_case("order", {"n": 0}, case_id="long")
            for number in range(70):  # enough records for a snapshot
                await engine.update_case_data("long", {"n": number})
            export = await engine.export_case("case-0")
            backup = b"".join([piece.chunk async for piece in engine.backup()])
            kept = await store.scan(b"\0", b"\xff\xff", limit=100_000)
            engine.sign_with(SigningKey.generate())
            audit = b"".join([piece async for piece in engine.export_audit(full=True)])
            notes = "".join(each.note for each in await engine.audit_checkpoints())
            receipt = (await engine.receipt("case-0")).document
            return kept, export, backup, _Proofs(audit, receipt, notes.encode())
