"""The cache of live cases is bounded, and nobody can tell."""

from __future__ import annotations

import asyncio

from knhk_workflow import CaseView, RunRequest
from tests.runtime.place import Place, at_rest, becomes, item_of, registered

LIMIT = 10
CASES = 1_000


async def test_a_thousand_cases_in_a_cache_of_ten(place: Place) -> None:
    async with place.engine(cached_cases=LIMIT) as engine:
        await registered(engine)
        answers = await engine.run_cases([RunRequest("line", {"n": n}, case_id=f"k{n}") for n in range(CASES)])
        assert all(isinstance(answer, CaseView) for answer in answers)
        await engine.run_case("one")  # the batch went beyond the limit; the next new case gives that back
        for case_id in (f"k{number}" for number in range(0, CASES, 7)):
            case = await engine.get_case(case_id)
            await engine.complete_work_item(item_of(case, "first").item_id)
            assert engine.status().cached_cases <= LIMIT + 1
        cases = await asyncio.gather(*(engine.get_case(f"k{number}") for number in range(CASES)))
        for number, case in enumerate(cases):
            assert [item.task_id for item in case.work] == ["first" if number % 7 else "second"]
        await engine.get_case("k0")
        waiting = [asyncio.create_task(engine.wait_case(f"k{number}")) for number in range(50)]
        await becomes(lambda: at_rest(engine) == len(waiting))
        for number in range(100, 200):
            await engine.get_case(f"k{number}")  # those that are waited for are not forgotten
        for number in range(50):
            await engine.cancel_case(f"k{number}")
        async with asyncio.timeout(60):
            assert {case.state for case in await asyncio.gather(*waiting)} == {"cancelled"}
