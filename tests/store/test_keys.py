"""Keys: order, injectivity, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knhk_workflow.errors import InvalidInput, StoreCorrupt
from knhk_workflow.store import META_SHARD, Keyspace, Range, keys

KEYS = Keyspace(64)
TEXT = st.text(alphabet=st.sampled_from("\x00\x01\x02ab\xff\u20ac\U0001f600")) | st.text()
NUMBER = st.integers(0, (1 << 64) - 1)
SCOPE = st.binary(min_size=32, max_size=32)


def inside(key: bytes, span: Range) -> bool:
    return span[0] <= key < span[1]


def by_bytes(text: str) -> bytes:
    return text.encode()


@given(st.tuples(TEXT, TEXT, NUMBER), st.tuples(TEXT, TEXT, NUMBER))
def test_case_keys_are_ordered_and_injective(one: tuple[str, str, int], two: tuple[str, str, int]) -> None:
    keyspace = Keyspace(1)
    left, right = keyspace.case_record(*one), keyspace.case_record(*two)
    order = [(by_bytes(tenant), by_bytes(case), number) for tenant, case, number in (one, two)]
    assert (left < right) == (order[0] < order[1])
    assert (left == right) == (one == two)


@given(st.tuples(NUMBER, TEXT, TEXT, TEXT), st.tuples(NUMBER, TEXT, TEXT, TEXT))
def test_timers_are_ordered_by_due_time(one: tuple[int, str, str, str], two: tuple[int, str, str, str]) -> None:
    keyspace = Keyspace(1)
    left, right = (keyspace.case(*ids).timer(due, timer) for due, *ids, timer in (one, two))
    order = [(due, *map(by_bytes, names)) for due, *names in (one, two)]
    assert (left < right) == (order[0] < order[1])
    assert inside(left, keyspace.timers(0))
    assert inside(left, keyspace.timers(0, two[0])) == (one[0] <= two[0])


@given(TEXT, TEXT, TEXT, NUMBER, NUMBER)
def test_ids_come_back(tenant: str, case: str, other: str, one: int, two: int) -> None:
    shard, of_case = KEYS.shard_of(tenant, case), KEYS.case(tenant, case)
    assert keys.parse_case_head(KEYS.case_head(tenant, case)) == (tenant, case)
    assert keys.parse_case_record(KEYS.case_record(tenant, case, one)) == (tenant, case, one)
    assert keys.parse_item(of_case.item(one, two)) == (tenant, case, one, two)
    assert keys.parse_incident(of_case.incident(one)) == (tenant, case, one)
    assert keys.parse_effect(of_case.effect(other)) == (tenant, case, other)
    assert keys.parse_timer(of_case.timer(one, other)) == (one, tenant, case, other)
    assert keys.parse_business_key(of_case.business_key(other)) == (tenant, other, case)
    assert keys.parse_request_expiry(KEYS.request_expiry(shard, one, two)) == (one, two)
    assert keys.parse_message(KEYS.message(shard, tenant, other.encode())) == (tenant, other.encode())
    assert keys.parse_log(KEYS.log(shard, one)) == (shard, one)
    assert keys.parse_purged_audit(of_case.purged_audit(one)) == (tenant, case, one)
    assert keys.parse_audit(KEYS.audit(shard, one, two)) == (one, two)
    assert keys.parse_definition(KEYS.definition(tenant, other, one)) == (tenant, other, one)
    assert keys.parse_definition_latest(KEYS.definition_latest(tenant, other)) == (tenant, other)


def all_of(tenant: str, case: str, other: str, scope: bytes, number: int) -> list[bytes]:
    shard, of_case = KEYS.shard_of(tenant, case), KEYS.case(tenant, case)
    return [
        KEYS.case_head(tenant, case),
        KEYS.case_record(tenant, case, number),
        of_case.snapshot,
        of_case.item(number, number),
        of_case.incident(number),
        of_case.effect(other),
        of_case.timer(number, other),
        of_case.business_key(other),
        KEYS.request(shard, tenant, scope),
        KEYS.request_expiry(shard, number, number),
        KEYS.log(shard, number),
        KEYS.lease(shard),
        KEYS.audit(shard, number, number),
        KEYS.definition(tenant, other, number),
        KEYS.definition_latest(tenant, other),
        KEYS.definition_digest(tenant, other, scope),
        KEYS.message(shard, tenant, scope),
        KEYS.case(tenant, case).purged_audit(number),
        KEYS.tile(shard, 1, number),
        KEYS.identity(),
    ]


@given(TEXT, TEXT, TEXT, SCOPE, NUMBER, TEXT, TEXT)
def test_no_key_lies_in_another_range(
    tenant: str, case: str, other: str, scope: bytes, number: int, tenant2: str, case2: str
) -> None:
    made = all_of(tenant, case, other, scope, number)
    assert len(set(made)) == len(made)
    shard, shard2 = KEYS.shard_of(tenant, case), KEYS.shard_of(tenant2, case2)
    of_case2 = KEYS.case(tenant2, case2)
    same_tenant = (shard, tenant) == (shard2, tenant2)
    same_case = (tenant, case) == (tenant2, case2)
    ranges: list[tuple[Range, set[int]]] = [
        (KEYS.cases(shard2, tenant2), {0} if same_tenant else set()),
        (of_case2.records(), {1} if same_case else set()),
        (KEYS.items(shard2, tenant2), {3} if same_tenant else set()),
        (of_case2.items(), {3} if same_case else set()),
        (KEYS.incidents(shard2, tenant2), {4} if same_tenant else set()),
        (of_case2.incidents(), {4} if same_case else set()),
        (KEYS.effects(shard2), {5} if shard == shard2 else set()),
        (of_case2.effects(), {5} if same_case else set()),
        (KEYS.timers(shard2), {6} if shard == shard2 else set()),
        (KEYS.business_keys(shard2, tenant2, other), {7} if same_tenant else set()),
        (KEYS.request_expiries(shard2), {9} if shard == shard2 else set()),
        (KEYS.log_range(shard2), {10} if shard == shard2 else set()),
        (KEYS.audits(shard2), {12} if shard == shard2 else set()),
        (KEYS.definitions(tenant2), {13} if tenant == tenant2 else set()),
        (KEYS.definitions(tenant2, other), {13} if tenant == tenant2 else set()),
        (KEYS.definitions_latest(tenant2), {14} if tenant == tenant2 else set()),
        (KEYS.messages(shard2), {16} if shard == shard2 else set()),
        (of_case2.purged_audits(), {17} if same_case and number < keys.NUMBER_MAX else set()),
        (KEYS.tiles(shard2, 1), {18} if shard == shard2 else set()),
        (KEYS.tiles(shard2, 0), set()),
    ]
    for span, expected in ranges:
        assert {index for index, key in enumerate(made) if inside(key, span)} == expected


@given(NUMBER, NUMBER, NUMBER)
def test_records_of_a_stretch(number: int, first: int, end: int) -> None:
    case = KEYS.case("t", "c")
    assert inside(case.record(number), case.records(first)) == (first <= number)
    assert inside(case.record(number), case.records(first, end)) == (first <= number < end)


def test_the_shard_of_a_case_never_changes() -> None:
    assert [KEYS.shard_of("default", f"case-{n}") for n in range(4)] == [61, 0, 49, 13]
    assert Keyspace(1).shard_of("default", "case-0") == 0
    spread = {KEYS.shard_of("default", str(n)) for n in range(2_000)}
    assert spread == set(range(64))


def test_all_keys_of_a_case_are_in_its_shard() -> None:
    case = KEYS.case("t", "c")
    made = [case.head, case.snapshot, case.record(1), case.item(1, 1), case.incident(1), case.effect("e")]
    made += [case.timer(1, "t"), case.request(b"s"), case.business_key("b")]
    assert {keys.shard_in(key) for key in made} == {case.shard}
    assert keys.shard_in(KEYS.definition("t", "s", 1)) == META_SHARD
    assert KEYS.all_shards()[-1] == META_SHARD


def test_only_log_keys_are_log_keys() -> None:
    assert keys.is_log(KEYS.log(3, 9))
    assert keys.is_log(KEYS.log(META_SHARD, 9))
    assert [keys.is_log(key) for key in all_of("t", "c", "o", b"s" * 32, 1)].count(True) == 1
    assert not keys.is_log(KEYS.case_head("\x02L", "c"))


def test_a_key_of_another_kind_is_refused() -> None:
    for wrong in (KEYS.case_head("t", "c"), b"", b"\x00\x00", KEYS.log(0, 1)[:-1]):
        with pytest.raises(StoreCorrupt):
            keys.parse_log(wrong)
    with pytest.raises(StoreCorrupt):
        keys.parse_case_head(KEYS.log(0, 1))


@pytest.mark.parametrize("shards", [0, -1, 4_097])
def test_senseless_numbers_of_shards_are_refused(shards: int) -> None:
    with pytest.raises(InvalidInput):
        Keyspace(shards)
