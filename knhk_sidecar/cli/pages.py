"""Lists that the daemon gives page by page, as one list."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Final, Protocol, Self, TypeVar

PAGE: Final = 500  # lines per call while listing


class Listed(Protocol):
    """A response with a page of a list: its lines and nothing else but the token."""

    next_page_token: str

    def MergeFrom(self, other_msg: Self, /) -> None:  # noqa: N802
        """Appends the lines of another page."""
        ...


L = TypeVar("L", bound=Listed)


def gathered(limit: int | None, ask: Callable[[int, str], L], lines: Callable[[L], Sized]) -> L:
    """The first `limit` lines (None: all) in one response, which has the token of the next page when there is one.

    `ask(size, token)` makes the call for at most `size` lines; `lines` are those of a response. A page may be short and
    still have a token.
    """
    whole = ask(_size(limit, 0), "")
    while whole.next_page_token and (limit is None or len(lines(whole)) < limit):
        page = ask(_size(limit, len(lines(whole))), whole.next_page_token)
        whole.MergeFrom(page)
        whole.next_page_token = page.next_page_token
    return whole


def _size(limit: int | None, found: int) -> int:
    return PAGE if limit is None else min(PAGE, limit - found)
