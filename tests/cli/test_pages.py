"""Lists over several pages: whole, in order, no line twice, and with the token that goes on from the last one."""

from __future__ import annotations

import random

import pytest

from knhk_sidecar.api import pb
from knhk_sidecar.cli.pages import PAGE, gathered


class Listing:
    """A list of numbered cases; a token is the number of the next. Pages are now and then short, or empty."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.asked: list[int] = []
        self._random = random.Random(seed)

    def page(self, size: int, token: str) -> pb.ListCasesResponse:
        self.asked.append(size)
        first = int(token or 0)
        last = min(first + self._random.choice((size, size, self._random.randint(0, size))), self.size)
        found = [pb.Case(case_id=str(number)) for number in range(first, last)]
        return pb.ListCasesResponse(cases=found, next_page_token=str(last) if last < self.size else "")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [1, 3, PAGE, PAGE + 1, 1_200, None])
@pytest.mark.parametrize("size", [0, 1, 499, 501, 1_200])
def test_the_first_lines_are_there_and_the_token_goes_on_after_them(size: int, limit: int | None, seed: int) -> None:
    listing = Listing(size, seed)
    whole = gathered(limit, listing.page, lambda found: found.cases)
    wanted = size if limit is None else min(size, limit)
    assert [each.case_id for each in whole.cases] == [str(number) for number in range(wanted)]
    assert whole.next_page_token in ("", str(wanted)), f"seed {seed}"
    assert bool(whole.next_page_token) == (wanted < size)
    assert max(listing.asked) <= PAGE
