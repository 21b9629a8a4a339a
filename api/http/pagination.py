"""Cursor pagination of all lists: `limit` and `after` select a page; `has_more` says whether another follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

from shared.domain.errors import InvalidRequest

T = TypeVar("T")
V = TypeVar("V")

After = Annotated[str | None, Query(description="`last_id` of the previous page.")]


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
        raise InvalidRequest(f"after: must be a {what} id, got {after[:64]!r}", param="after")
