"""The token buckets: what they let through, what they forget, and what a caller is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from knhk_sidecar.api import pb
from knhk_sidecar.api.rest.problems import fault_response
from knhk_sidecar.config import SidecarConfig
from knhk_sidecar.identity.grants import Grants, Rate
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import of_value
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import Principal, of_certificate
from knhk_sidecar.identity.spiffe_id import SpiffeId
from knhk_sidecar.pipeline import Limits, Refusal
from knhk_sidecar.pipeline.permissions import Permission
from knhk_sidecar.pipeline.rates import Rates, weight_of
from tests.sidecar.pipeline.road import METHODS, Clock, Road

NS = 1_000_000_000
ANNA = Principal("mtls", "spiffe://a.org/anna")
BERT = Principal("mtls", "spiffe://a.org/bert")


def test_a_burst_passes_and_then_one_every_interval() -> None:
    clock = Clock()
    rates = Rates(Rate(10, 5), clock)
    assert [rates.take(ANNA) for _ in range(5)] == [0] * 5
    assert rates.take(ANNA) == NS // 10
    assert rates.take(BERT) == 0, "everybody has a bucket of his own"
    clock.time += NS // 10
    assert rates.take(ANNA) == 0
    assert rates.take(ANNA) == NS // 10
    clock.time += 100 * NS
    assert [rates.take(ANNA) for _ in range(6)] == [0] * 5 + [NS // 10], "a long pause gives one burst, not more"


def test_what_is_told_is_when_there_is_room() -> None:
    draw = random.Random(7)
    clock = Clock()
    rates = Rates(Rate(50, 20), clock)
    for _ in range(2_000):
        clock.time += draw.randrange(NS // 20)
        weight = draw.choice((1.0, 1.0, 2.5, 40.0))
        if wait := rates.take(ANNA, weight):
            clock.time += wait - 1
            assert rates.take(ANNA, weight) == 1
            clock.time += 1
            assert rates.take(ANNA, weight) == 0


@pytest.mark.parametrize("seed", range(5))
def test_nobody_gets_more_than_the_rate_and_one_burst(seed: int) -> None:
    draw = random.Random(seed)
    clock, rate = Clock(), Rate(100, 30)
    rates = Rates(rate, clock)
    began, passed = clock.time, 0
    for _ in range(5_000):
        clock.time += draw.randrange(NS // 100)
        passed += not rates.take(ANNA)
        assert passed <= rate.burst + (clock.time - began) * rate.per_second / NS + 1


def test_a_policy_says_more_or_less_for_one() -> None:
    rates = Rates(Rate(10, 1), Clock())
    generous = Principal("mtls", "spiffe://a.org/batch", grants=Grants(limits=Rate(1_000, 500)))
    assert not any(rates.take(generous) for _ in range(500))
    assert rates.take(ANNA) == 0
    assert rates.take(ANNA) > 0


def test_tenants_do_not_share_a_bucket() -> None:
    rates = Rates(Rate(1, 1), Clock())
    assert rates.take(Principal("mtls", "sub", "a")) == 0
    assert rates.take(Principal("mtls", "sub", "b")) == 0
    assert rates.take(Principal("mtls", "sub", "a")) > 0


def test_buckets_are_bounded_and_forgetting_gives_nobody_anything() -> None:
    clock = Clock()
    rates = Rates(Rate(1, 2), clock, most=100)
    crowd = [Principal("mtls", f"spiffe://a.org/{number}") for number in range(300)]
    passed = sum(rates.take(each) == 0 for each in crowd for _ in range(2))
    assert passed == 2 * 100 + 2, "whoever comes when all buckets are in use shares one"
    assert len(rates) <= 101
    assert all(rates.take(each) > 0 for each in crowd[:100]), "nobody's spent tokens came back"
    clock.time += 3 * NS
    assert rates.take(crowd[250]) == 0
    assert len(rates) == 1, "full buckets are forgotten when room is needed"
    assert [rates.take(crowd[0]) for _ in range(2)] == [0, 0]


def test_what_requests_weigh() -> None:
    def weigh(method: str, request: object) -> float:
        return weight_of(METHODS[f"/knhk.sidecar.v1.{method}"], request)  # type: ignore[arg-type]  # any message

    assert weigh("CaseService/GetCase", pb.GetCaseRequest()) == 1
    assert weigh("CaseService/RunCases", pb.RunCasesRequest()) == 1
    assert weigh("CaseService/RunCases", pb.RunCasesRequest(cases=[pb.RunCaseRequest()] * 101)) == pytest.approx(11)
    completions = [pb.CompleteWorkItemRequest()] * 21
    work = pb.StreamWorkItemsRequest(completions=completions, failures=[pb.FailWorkItemRequest()] * 10)
    assert weigh("WorkItemService/StreamWorkItems", work) == pytest.approx(4)
    assert weigh("WorkItemService/CompleteWorkItems", pb.CompleteWorkItemsRequest(completions=completions)) == 3


async def test_the_refusal_says_when_to_come_back_over_both_transports() -> None:
    road = Road(limits=Limits(rate=Rate(2, 1)))
    await road.get()
    with pytest.raises(Refusal) as caught:
        await road.get()
    refusal = caught.value
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refusal.fault.trailing)
    assert trailing["grpc-retry-pushback-ms"] == "500"
    status = status_pb2.Status.FromString(bytes(trailing["grpc-status-details-bin"]))  # type: ignore[arg-type]  # bytes
    info, quota, retry = error_details_pb2.ErrorInfo(), error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    for wanted in (info, quota, retry):
        assert any(detail.Unpack(wanted) for detail in status.details)
    assert (info.reason, info.metadata["maximum"]) == ("RATE_LIMITED", "2")
    assert quota.violations[0].subject == "requests per second"
    assert retry.retry_delay == Duration(nanos=500_000_000)
    response = fault_response(refusal.error)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert len(road.cases.metas) == 1


async def test_health_is_never_counted() -> None:
    road = Road(limits=Limits(rate=Rate(1, 1)))
    await road.get()
    call = road.call("GetCase")
    call.method = replace(call.method, permission=Permission.HEALTH)
    for _ in range(5):
        await road.pipeline.run(call, pb.GetCaseRequest(case_id="c"))


async def test_a_stream_counts_its_opening_and_each_message_and_is_kept_waiting() -> None:
    road = Road(limits=Limits(rate=Rate(50, 3)))
    began = asyncio.get_running_loop().time()
    clock = road.clock

    async def requests() -> AsyncIterator[pb.StreamRunCaseRequest]:
        for number in range(4):
            yield pb.StreamRunCaseRequest(correlation_id=str(number))

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.005)
            clock.time += NS // 100

    ticking = asyncio.ensure_future(tick())
    await road.pipeline.run(road.call("StreamRunCase"), requests())
    ticking.cancel()
    assert [message.correlation_id for message in road.sent] == ["0", "1", "2", "3"]  # type: ignore[attr-defined]  # those of the stream
    assert clock.time > 1_000_000_000, "the third and fourth message had to wait for tokens"
    assert asyncio.get_running_loop().time() > began


async def test_refusals_are_counted_by_reason_and_do_not_fill_the_log() -> None:
    road = Road(limits=Limits(rate=Rate(1, 1)), level="info")
    await road.get()
    for _ in range(50):
        with pytest.raises(Refusal):
            await road.get()
    assert road.counters.refusals() == {"RATE_LIMITED": 50}
    assert 'knhk_calls_refused_total{reason="RATE_LIMITED"} 50' in road.counters.prometheus()
    assert len(road.lines.getvalue().splitlines()) <= 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (100.0, 200)),
        ({"rate_limit_enabled": False}, (0.0, 1)),
        ({"dev": True}, (0.0, 1)),
        ({"dev": True, "rate_limit_per_second": 7.0}, (7.0, 14)),
        ({"rate_limit_per_second": 5.0, "rate_limit_burst": 9}, (5.0, 9)),
    ],
)
def test_the_settings(settings: dict[str, bool | float], expected: tuple[float, int]) -> None:
    config = SidecarConfig(**settings)  # type: ignore[arg-type]  # of the right types
    assert (config.rate_per_second, config.rate_burst) == expected
    assert (Limits.of(config).rate is None) == (expected[0] == 0)


async def test_the_policys_rule_decides_how_many() -> None:
    def rule(name: str, path: str, **members: object) -> dict[str, object]:
        who = {"spiffe_id": f"spiffe://a.org/{path}"}
        return {"id": name, "who": who, "effect": "allow", "permissions": ["case.read"], **members}

    rules = [rule("batch", "batch", limits={"requests_per_second": 1, "burst": 6}), rule("web", "web")]
    policies = Policies(Policy(of_value({"version": 1, "rules": rules}), origin="test"))
    passed = {}
    for name in ("batch", "web"):
        caller = of_certificate(SpiffeId.parse(f"spiffe://a.org/{name}"))
        road = Road(plain=caller, policies=policies, limits=Limits(rate=Rate(1, 3)))
        passed[name] = 0
        for _ in range(10):
            with suppress(Refusal):
                await road.get()
                passed[name] += 1
    assert passed == {"batch": 6, "web": 3}
