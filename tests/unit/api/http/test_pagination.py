"""Pagination."""

from __future__ import annotations

from operator import itemgetter

import pytest

from api.http.pagination import Page, PageView, check_after, cut_page, fetch_page, next_page, number_after, offset_of
from shared.domain.errors import InvalidRequest
from shared.domain.ids import number_of

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
    with pytest.raises(InvalidRequest, match=r"^after: must be an export id, got 'x'$"):
        check_after("x", "export", str.isdigit)


def test_after_names_the_number_of_a_row() -> None:
    def parse(text: str) -> int | None:
        return number_of("key_", text)

    assert number_after(None, "key", parse) is None
    assert number_after("key_0", "key", parse) == 0
    with pytest.raises(InvalidRequest, match=r"^after: must be a key id, got 'job_7'$"):
        number_after("job_7", "key", parse)


def test_a_page_of_a_report_begins_at_its_offset() -> None:
    assert offset_of(None) == 0
    assert next_page(40, has_more=False) is None
    following = next_page(40, has_more=True)
    assert offset_of(following) == 40


@pytest.mark.parametrize("page", ["", "40", "page_", "page_-1", "page_x", "page_1000000000", "page_" + "9" * 40])
def test_a_page_that_is_no_next_page_is_refused(page: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^page: must be the `next_page` of a page") as caught:
        offset_of(page)
    assert caught.value.param == "page"
