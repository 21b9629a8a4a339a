"""Cursor pagination of all lists: `limit` and `after` select a page; `has_more` says whether another follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

from shared.domain.errors import InvalidRequest
from shared.domain.ids import number_of

T = TypeVar("T")
V = TypeVar("V")

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="`last_id` of the previous page.")]
# Of reports, whose items have no ids: their pages begin at a number of items.
NextPage = Annotated[str | None, Query(description="`next_page` of the previous page.")]
MAX_OFFSET = 999_999_999


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Consecutive items of a list. `has_more`: more items follow."""

    items: Sequence[T]
    has_more: bool


class PageView(BaseModel, Generic[V]):
    """A page in the API's format."""

    object: Literal["list"] = "list"
    data: list[V]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, page: Page[T], view: Callable[[T], V], id_of: Callable[[T], str] = attrgetter("id")) -> Self:
        """Build the view of a page; `view` and `id_of` convert an item."""
        items = page.items
        return cls(
            data=[view(item) for item in items],
            first_id=id_of(items[0]) if items else None,
            last_id=id_of(items[-1]) if items else None,
            has_more=page.has_more,
        )


async def fetch_page(limit: int, fetch: Callable[[int], Awaitable[Sequence[T]]]) -> Page[T]:
    """Fetch a page. `fetch` receives the number of items to read: one more than the page, to set `has_more`."""
    return cut_page(await fetch(limit + 1), limit)


def cut_page(items: Sequence[T], limit: int) -> Page[T]:
    """The first page of a list."""
    return Page(items[:limit], has_more=len(items) > limit)


def check_after(after: str | None, what: str, is_id: Callable[[str], bool]) -> None:
    """Raise `InvalidRequest` if `after` cannot be the id of a `what`."""
    if after is not None and not is_id(after):
        article = "an" if what[0] in "aeiou" else "a"
        raise InvalidRequest(f"after: must be {article} {what} id, got {after[:64]!r}", param="after")


def number_after(after: str | None, what: str, parse: Callable[[str], int | None]) -> int | None:
    """The number of the row that `after` names, which must be the id of a `what`; None if there is no `after`.

    Raises:
        InvalidRequest: it is no such id.
    """
    check_after(after, what, lambda text: parse(text) is not None)
    return None if after is None else parse(after)


def page_number(page: str) -> int:
    """The number in the `next_page` of a report.

    Raises:
        InvalidRequest: there is none.
    """
    if (number := number_of("page_", page)) is None:
        raise wrong_page(page)
    return number


def wrong_page(page: str) -> InvalidRequest:
    """The error about a `page` that no page can have had as its `next_page`."""
    return InvalidRequest(f"page: must be the `next_page` of a page, got {page[:64]!r}", param="page")


def offset_of(page: str | None) -> int:
    """The number of items before a page of a report.

    Raises:
        InvalidRequest: the page is not the `next_page` of another one.
    """
    if page is None:
        return 0
    if (offset := page_number(page)) > MAX_OFFSET:
        raise wrong_page(page)
    return offset


def next_page(number: int, *, has_more: bool) -> str | None:
    """The `next_page` of a page after which others follow: they begin at this number."""
    return f"page_{number}" if has_more else None
