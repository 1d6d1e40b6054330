"""Lists: complete, filtered, paged with tokens that belong to one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from knhk_workflow import (
    CallMeta,
    CaseFilter,
    CaseView,
    IncidentView,
    InvalidInput,
    StoreCorrupt,
    WorkflowEngine,
    WorkItemFilter,
    WorkItemView,
)
from knhk_workflow.runtime import query
from knhk_workflow.runtime.pages import encode_token
from tests.inside import listening, parts
from tests.runtime.place import ONE, Place, damage, registered, store_of


async def all_cases(engine: WorkflowEngine, wanted: CaseFilter, page_size: int) -> list[CaseView]:
    found: list[CaseView] = []
    token = ""
    while True:
        page = await engine.list_cases(wanted, page_size=page_size, page_token=token)
        assert len(page.items) <= page_size
        found += page.items
        token = page.next_token
        if not token:
            return found


async def all_items(engine: WorkflowEngine, wanted: WorkItemFilter, page_size: int) -> list[WorkItemView]:
    found: list[WorkItemView] = []
    token = ""
    while True:
        page = await engine.list_work_items(wanted, page_size=page_size, page_token=token)
        found += page.items
        token = page.next_token
        if not token:
            return found


async def filled(engine: WorkflowEngine) -> list[CaseView]:
    cases = []
    for number in range(30):
        spec_id = ("one", "line", "rivals")[number % 3]
        case = await engine.run_case(spec_id, case_id=f"k{number:02d}", business_key=f"order-{number % 4}")
        if number % 5 == 0:
            case = await engine.cancel_case(case.case_id)
        elif number % 7 == 0:
            await engine.claim_work_item(case.work[0].item_id, "ann")
            case = await engine.get_case(case.case_id)
        cases.append(case)
    return cases


@pytest.mark.parametrize("page_size", [1, 3, 10, 30, 1_000])
async def test_cases_in_pages(engine: WorkflowEngine, page_size: int) -> None:
    cases = await filled(engine)
    filters: list[tuple[CaseFilter, Callable[[CaseView], bool]]] = [
        (CaseFilter(), lambda case: True),
        (CaseFilter(state="running"), lambda case: case.state == "running"),
        (CaseFilter(spec_id="line"), lambda case: case.spec_id == "line"),
        (CaseFilter(business_key="order-2"), lambda case: case.business_key == "order-2"),
        (
            CaseFilter("running", "one", "order-1"),
            lambda case: (case.spec_id, case.state) == ("one", "running") and case.business_key == "order-1",
        ),
        (CaseFilter("cancelled", "one"), lambda case: case.state == "cancelled" and case.spec_id == "one"),
        (CaseFilter(state="failed"), lambda case: False),
    ]
    for wanted, holds in filters:
        found = await all_cases(engine, wanted, page_size)
        assert [case.case_id for case in found] == [case.case_id for case in cases if holds(case)], wanted
        for listed in found:
            whole = next(case for case in cases if case.case_id == listed.case_id)
            assert (listed.state, listed.sequence, listed.open_items) == (whole.state, whole.sequence, whole.open_items)
            assert listed.data == b""


@pytest.mark.parametrize("page_size", [1, 4, 100])
async def test_work_in_pages(engine: WorkflowEngine, page_size: int) -> None:
    cases = await filled(engine)
    items = [item for case in cases for item in case.work]
    filters: list[tuple[WorkItemFilter, Callable[[WorkItemView], bool]]] = [
        (WorkItemFilter(), lambda item: True),
        (WorkItemFilter(role="clerk"), lambda item: "clerk" in item.roles),
        (WorkItemFilter(role="boss"), lambda item: "boss" in item.roles),
        (WorkItemFilter(user="ann"), lambda item: item.owner == "ann"),
        (WorkItemFilter(state="offered"), lambda item: item.state == "offered"),
        (WorkItemFilter(task_id="left"), lambda item: item.task_id == "left"),
        (WorkItemFilter(case_id="k02"), lambda item: item.case_id == "k02"),
    ]
    for wanted, holds in filters:
        found = await all_items(engine, wanted, page_size)
        assert [item.item_id for item in found] == [item.item_id for item in items if holds(item)], wanted


async def test_a_token_belongs_to_its_list_and_filter(engine: WorkflowEngine) -> None:
    await filled(engine)
    await registered(engine, tenant="other")
    cases = (await engine.list_cases(page_size=2)).next_token
    work = (await engine.list_work_items(page_size=2)).next_token
    workflows = (await engine.list_workflows(page_size=1)).next_token
    assert cases
    assert work
    assert workflows
    wrong: list[Awaitable[object]] = [
        engine.list_cases(CaseFilter(state="running"), page_token=cases),
        engine.list_cases(page_token=work),
        engine.list_cases(page_token=cases, meta=CallMeta(tenant="other")),
        engine.list_work_items(page_token=cases),
        engine.list_work_items(WorkItemFilter(role="clerk"), page_token=work),
        engine.list_work_items(page_token=work, meta=CallMeta(tenant="other")),
        engine.list_incidents(page_token=cases),
        engine.list_incidents(include_resolved=True, page_token=cases),
        engine.list_workflows(page_token=cases),
        engine.list_cases(page_token="not a token"),
        engine.list_cases(page_token="é"),
    ]
    for call in wrong:
        with pytest.raises(InvalidInput):
            await call


async def test_page_sizes(engine: WorkflowEngine) -> None:
    for call in (
        engine.list_cases(page_size=-1),
        engine.list_work_items(page_size=-1),
        engine.list_workflows(page_size=-1),
        engine.list_incidents(page_size=-1),
    ):
        with pytest.raises(InvalidInput):
            await call
    assert (await engine.list_cases(page_size=10**9)).items == ()


async def test_a_page_that_was_begun_goes_on_while_cases_come_and_go(engine: WorkflowEngine) -> None:
    await filled(engine)
    first = await engine.list_cases(page_size=10)
    await engine.run_case("one", case_id="a-before-all")
    await engine.run_case("one", case_id="z-behind-all")
    rest = await engine.list_cases(page_size=100, page_token=first.next_token)
    ids = [case.case_id for case in (*first.items, *rest.items)]
    assert ids == [f"k{number:02d}" for number in range(30)] + ["z-behind-all"]


async def test_incidents_of_all_and_of_one(engine: WorkflowEngine) -> None:
    for number in range(5):
        case = await engine.run_case("one", case_id=f"k{number}")
        await engine.fail_work_item(case.work[0].item_id, "E1")
    found = []
    token = ""
    while True:
        page = await engine.list_incidents(page_size=2, page_token=token)
        found += [incident.incident_id for incident in page.items]
        token = page.next_token
        if not token:
            break
    assert found == [f"1@k{number}" for number in range(5)]
    assert [each.case_id for each in (await engine.list_incidents(case_id="k3")).items] == ["k3"]


@pytest.mark.parametrize("looked_at", [query.HISTORIES_MAX, 3, 1])
@pytest.mark.parametrize("page_size", [1, 2, 5, 100])
async def test_resolved_incidents_of_all_and_of_one(
    engine: WorkflowEngine, page_size: int, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`k0` has one that is open, `k1` none, `k2` two and `k3` three of which one is open."""
    monkeypatch.setattr(query, "HISTORIES_MAX", looked_at)
    for number, failures in enumerate((1, 0, 2, 3)):
        case = await engine.run_case("one", case_id=f"k{number}")
        for failure in range(1, failures + 1):
            await engine.fail_work_item(case.work[0].item_id, "E1")
            if failure < 3 and number:
                case = await engine.resolve_incident(f"{failure}@k{number}", "retry")
    everything = ["1@k0", "1@k2", "2@k2", "1@k3", "2@k3", "3@k3"]
    for case_id, expected in (("", everything), ("k1", []), ("k2", everything[1:3]), ("k3", everything[3:])):
        found: list[IncidentView] = []
        token, pages = "", 0
        while token or not pages:
            page = await engine.list_incidents(
                case_id=case_id, include_resolved=True, page_size=page_size, page_token=token
            )
            assert len(page.items) <= page_size
            found += page.items
            token, pages = page.next_token, pages + 1
            assert pages <= 20
        assert [each.incident_id for each in found] == expected
        still_open = [each.incident_id for each in found if not each.resolution]
        assert still_open == [each for each in expected if each in ("1@k0", "3@k3")]


async def test_a_damaged_history_is_left_out_of_the_incidents_of_all(engine: WorkflowEngine) -> None:
    for number in range(3):
        case = await engine.run_case("one", case_id=f"k{number}")
        await engine.fail_work_item(case.work[0].item_id, "E1")
    await damage(engine, parts(engine).keyspace.case_record("default", "k1", 1))
    said = listening()
    for _ in range(2):
        found = (await engine.list_incidents(include_resolved=True)).items
        assert [each.incident_id for each in found] == ["1@k0", "1@k2"]
    assert len(said) == 1
    assert "the history of case 'k1' of tenant 'default' cannot be read" in said[0]
    with pytest.raises(StoreCorrupt):
        await engine.list_incidents(case_id="k1", include_resolved=True)


async def test_incidents_of_a_case_that_is_purged_meanwhile(place: Place) -> None:
    """A large case goes in several commits: what is left of its history may tell of the end of an incident alone."""
    async with place.engine() as engine:
        await registered(engine, ONE)
        for name in ("a", "b"):
            case = await engine.run_case("one", case_id=name)
            await engine.fail_work_item(case.work[0].item_id, "E1")
        for number in range(40):
            await engine.update_case_data("b", {"x": number})
        await engine.resolve_incident("1@b", "retry")
        await engine.cancel_case("b")
        store, keys = store_of(engine), parts(engine).keyspace
        first = await store.scan(*keys.case("default", "b").records(), limit=10)
        await store.commit([(key, None) for key, _ in first], (), True)
        found = (await engine.list_incidents(include_resolved=True)).items
        assert [each.incident_id for each in found] == ["1@a"]


async def test_a_forged_token_does_not_leave_the_list(engine: WorkflowEngine) -> None:
    first = await engine.list_workflows(page_size=1)
    for position in (b"\0", b"\xff" * 40):
        page = await engine.list_workflows(page_size=1, page_token=encode_token(position, "workflows"))
        assert page.items in (first.items, ())


async def test_who_created_a_case_is_told_wherever_it_is_shown(place: Place) -> None:
    async with place.engine() as engine:
        await registered(engine)
        by = CallMeta(principal="spiffe://x/app")
        answers = [await engine.create_case("one", case_id="c", meta=by), await engine.start_case("c")]
        answers += [await engine.run_case("one", case_id="r", meta=by), await engine.get_case("r")]
        assert {answer.created_by for answer in answers} == {"spiffe://x/app"}
    async with place.engine() as engine:
        listed = (await engine.list_cases()).items
        read = [await engine.get_case(case.case_id) for case in listed]
        changed = await engine.update_case_data("r", {"n": 1})
        assert [case.created_by for case in (*listed, *read, changed)] == ["spiffe://x/app"] * 5
