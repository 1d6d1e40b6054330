"""Why somebody was refused stands in the audit, whoever it was that refused; the caller was not told."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import pytest

from knhk_sidecar.api.services import services
from knhk_sidecar.identity.certificate import Bundles, LeafCheck
from knhk_sidecar.identity.grants import Rate
from knhk_sidecar.identity.policy import Policy
from knhk_sidecar.identity.policy_document import of_value
from knhk_sidecar.identity.policy_source import Policies
from knhk_sidecar.identity.principal import ANONYMOUS
from knhk_sidecar.identity.spiffe_id import TrustDomain
from knhk_sidecar.pipeline import Auditing, Call, Limits, Pipeline, Refusal
from knhk_sidecar.telemetry.counters import Counters
from knhk_sidecar.telemetry.log import Log
from knhk_workflow import AuditFilter, CallMeta, Operation, StateStore, WorkflowEngine
from tests.audit.test_calls import METHODS
from tests.inside import parts
from tests.sidecar.identity.authority import Authority, Wish
from tests.sidecar.services.server import daemon

POLICY = {
    "version": 1,
    "rules": [
        {
            "id": "web-reads",
            "who": {"spiffe_id": "spiffe://a.org/web"},
            "effect": "allow",
            "permissions": ["case.read"],
        },
        {
            "id": "never-purge",
            "who": {"trust_domain": "a.org"},
            "effect": "deny",
            "permissions": ["case.operate"],
        },
    ],
}


class Door:
    """Calls with certificates, through the real stages into a real audit."""

    def __init__(self, engine: WorkflowEngine, rate: Rate | None = None) -> None:
        self.authority = Authority()
        self.engine = engine
        self.pipeline = Pipeline(
            METHODS,
            services(engine, daemon()),
            leaves=LeafCheck(Bundles.parse({TrustDomain("a.org"): self.authority.pem})),
            plain=ANONYMOUS,
            now=engine.now,
            log=Log("error", "json", io.StringIO()),
            counters=Counters(),
            limits=Limits(rate=rate),
            policies=Policies(Policy(of_value(POLICY), origin="test")),
            auditing=Auditing(engine.record_operation, engine.record_again, engine.audit_full),
        )

    async def refused(self, name: str, wish: Wish = Wish(), **fields: str) -> Refusal:  # noqa: B008  # it is frozen
        method = next(each for each in METHODS.values() if each.name == name)
        call = Call(method, protocol="grpc", peer="ipv4:10.1.2.3:4567", leaf=self.authority.issue(wish)[0])
        with pytest.raises(Refusal) as caught:
            await self.pipeline.run(call, method.request(**fields))
        return caught.value

    async def told(self) -> Operation:
        await parts(self.engine).stream.flush()
        page = await self.engine.list_audit(AuditFilter(), meta=CallMeta())
        return page.items[0].operation


@pytest.fixture
async def engine() -> AsyncIterator[WorkflowEngine]:
    async with WorkflowEngine(StateStore(":memory:")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(uris=("spiffe://a.org/web", "spiffe://a.org/other")), "certificate-"),
        (Wish(uris=()), "certificate-"),
        (Wish(authority=True), "certificate-"),
        (Wish(usage=("digital_signature", "key_cert_sign")), "certificate-"),
    ],
    ids=["two ids", "no id", "an authority", "signs certificates"],
)
async def test_what_is_wrong_with_a_certificate(engine: WorkflowEngine, wish: Wish, why: str) -> None:
    door = Door(engine)
    refusal = await door.refused("GetCase", wish, case_id="42")
    told = await door.told()
    assert told.reason.startswith(f"UNAUTHENTICATED: {why}")
    assert told.reason.removeprefix("UNAUTHENTICATED: ") not in refusal.fault.message
    assert (told.outcome, told.principal, told.resource) == ("UNAUTHENTICATED", "anonymous", "cases/42")
    assert told.peer == "ipv4:10.1.2.3:4567"


async def test_the_rule_that_denied_and_that_no_rule_allows(engine: WorkflowEngine) -> None:
    door = Door(engine)
    for name, why in (("PurgeCases", "never-purge"), ("RegisterWorkflow", "no rule allows it")):
        refusal = await door.refused(name)
        told = await door.told()
        assert told.reason == f"PERMISSION_DENIED: {why}"
        assert (told.outcome, told.principal) == ("PERMISSION_DENIED", "spiffe://a.org/web")
        assert why not in refusal.fault.message


async def test_a_limit(engine: WorkflowEngine) -> None:
    door = Door(engine, Rate(0.001, 1))
    assert (await door.refused("GetCase", case_id="42")).code.name == "NOT_FOUND"
    assert (await door.refused("GetCase", case_id="42")).code.name == "RESOURCE_EXHAUSTED"
    told = await door.told()
    assert (told.outcome, told.principal) == ("RESOURCE_EXHAUSTED", "spiffe://a.org/web")
