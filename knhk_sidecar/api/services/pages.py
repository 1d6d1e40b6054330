"""Lists with filters that the engine's index does not answer: rows are looked at page by page and dropped here.

A page may then be short and still have a token; tokens carry a mark of the filter that they were made with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from knhk_workflow import InvalidInput, Page

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000  # keeps an answer well below 4 MB
LOOKS_MAX = 20  # engine pages behind one page: bounds the time of a call whose filter matches next to nothing

T = TypeVar("T")


async def filtered(
    fetch: Callable[[int, str], Awaitable[Page[T]]],
    keep: Callable[[T], bool] | None,
    page_size: int,
    page_token: str,
    mark: bytes,
) -> Page[T]:
    """The rows of `fetch(size, token)` that `keep` accepts, at most a page. Without `keep`, the engine's own page."""
    if keep is None:
        return await fetch(page_size, page_token)
    suffix = f".{mark.hex()}"
    if page_token and not page_token.endswith(suffix):
        raise InvalidInput.field(
            "page_token", "belongs to another list or filter", "repeat the filter that the first page was asked with"
        )
    token = page_token.removesuffix(suffix)
    size = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    found: list[T] = []
    for _ in range(LOOKS_MAX):
        page = await fetch(size - len(found), token)
        found.extend(row for row in page.items if keep(row))
        token = page.next_token
        if not token or len(found) == size:
            break
    return Page(tuple(found), token + suffix if token else "")
