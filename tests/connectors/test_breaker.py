"""Circuit breakers, alone and before a server that is down."""

from __future__ import annotations

from knhk_workflow import BreakerRule, CallMeta
from knhk_workflow.connectors.breaker import Breaker
from knhk_workflow.model.units import NS_PER_S
from tests.connectors.calling import calls, data, engine, setup
from tests.connectors.conftest import Started


def state(breaker: Breaker) -> str:
    """Its state now."""
    return breaker.state


def test_it_opens_after_failures_in_a_row_and_closes_after_one_success() -> None:
    breaker = Breaker(BreakerRule(failures=3, window=60, pause=10))
    for _ in range(2):
        breaker.failed(0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0)
    assert state(breaker) == "closed"
    breaker.failed(1)
    assert (state(breaker), breaker.admits(2)) == ("open", False)
    assert breaker.admits(1 + 10 * NS_PER_S)
    assert state(breaker) == "half-open"
    assert not breaker.admits(1 + 10 * NS_PER_S), "one call is let through"
    breaker.failed(1 + 11 * NS_PER_S)
    assert (state(breaker), breaker.reopens) == ("open", 1 + 21 * NS_PER_S)
    assert breaker.admits(breaker.reopens)
    breaker.undecided()
    assert breaker.admits(breaker.reopens), "a call that told nothing gives its place back"
    breaker.succeeded()
    assert state(breaker) == "closed"
    assert breaker.admits(breaker.reopens)


def test_old_failures_do_not_count() -> None:
    breaker = Breaker(BreakerRule(failures=2, window=60, pause=10))
    breaker.failed(0)
    breaker.failed(61 * NS_PER_S)
    assert state(breaker) == "closed"
    breaker.failed(62 * NS_PER_S)
    assert state(breaker) == "open"


async def test_a_server_that_is_down_is_left_alone_and_its_calls_wait(outside: str) -> None:
    """Fifty calls to a server that fails: five are made, the others wait and use up no attempt."""
    async with engine(setup(outside, breaker={"failures": 5, "pause": 600}, max_concurrent=1)) as opened:
        await opened.register_workflow(calls({"request": {"url": "/status/500", "method": "POST"}, "retry": 1}))
        for number in range(50):
            await opened.run_case("calls", case_id=f"c{number}")
        while True:
            view = (await opened.list_connectors())[0]
            letters = (await opened.list_dead_letters(page_size=100)).items
            if view.breakers == ((outside, "open"),) and len(letters) + view.waiting == 50:
                break
            await opened.wait_case("c49", meta=_soon(opened.now()))
        assert (len(letters), view.waiting) == (5, 45)


async def test_a_server_that_comes_back_is_tried_and_used_again(start_outside: Started) -> None:
    port = start_outside("--trouble", "0.6", "--seed", "3")
    rule = {"failures": 3, "pause": 0.05}
    retry = {"max_attempts": 200, "backoff": 0.01, "max_backoff": 0.05}
    async with engine(setup(f"http://127.0.0.1:{port}", breaker=rule, timeout=0.2)) as opened:
        task = {"request": {"url": "/effects", "method": "POST", "body": "1"}, "retry": retry}
        await opened.register_workflow(calls(task))
        for number in range(30):
            await opened.run_case("calls", case_id=f"c{number}")
        numbers = {data(await opened.wait_case(f"c{number}"))["number"] for number in range(30)}
        assert len(numbers) == 30


def _soon(now: int) -> CallMeta:
    return CallMeta(deadline=now + NS_PER_S // 20)
