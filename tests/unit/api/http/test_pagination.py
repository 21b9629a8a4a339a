"""Pagination."""

from __future__ import annotations

from operator import itemgetter

import pytest

from api.http.pagination import Page, PageView, check_after, cut_page, fetch_page
from shared.domain.errors import InvalidRequest

ITEMS = [{"id": "a"}, {"id": "b"}, {"id": "c"}]


@pytest.mark.parametrize(("limit", "size", "more"), [(2, 2, True), (3, 3, False), (4, 3, False)])
async def test_a_page_reads_one_extra_item_to_set_has_more(limit: int, size: int, more: bool) -> None:
    counts: list[int] = []

    async def fetch(count: int) -> list[dict[str, str]]:
        counts.append(count)
        return ITEMS[:count]

    assert await fetch_page(limit, fetch) == Page(ITEMS[:size], more)
    assert counts == [limit + 1]


def test_a_view_has_the_ids_of_its_first_and_last_item() -> None:
    view = PageView[str].of(cut_page(ITEMS, 2), itemgetter("id"), itemgetter("id"))
    assert view.model_dump() == {
        "object": "list",
        "data": ["a", "b"],
        "first_id": "a",
        "last_id": "b",
        "has_more": True,
    }


def test_an_empty_page_has_no_ids() -> None:
    view = PageView[str].of(Page([], has_more=False), itemgetter("id"), itemgetter("id"))
    assert (view.data, view.first_id, view.last_id, view.has_more) == ([], None, None, False)


def test_after_must_be_a_valid_id() -> None:
    check_after(None, "job", str.isdigit)
    check_after("7", "job", str.isdigit)
    with pytest.raises(InvalidRequest, match=r"^after: must be a job id, got 'x'$") as caught:
        check_after("x", "job", str.isdigit)
    assert caught.value.param == "after"
