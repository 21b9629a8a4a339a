"""Dividing a series into portions by number and size."""

from __future__ import annotations

import pytest

from shared.runtime.portions import portions


@pytest.mark.parametrize(
    ("sizes", "max_size", "max_items", "expected"),
    [
        ([], 10, 3, []),
        ([1, 1, 1, 1], 10, 3, [[1, 1, 1], [1]]),
        ([4, 6, 1], 10, None, [[4, 6], [1]]),
        ([4, 7, 3], 10, 3, [[4], [7, 3]]),
        ([11, 12, 1], 10, 3, [[11], [12], [1]]),
        ([0] * 5, 10, None, [[0] * 5]),
    ],
)
def test_a_portion_has_at_most_so_many_items_and_so_much(
    sizes: list[int], max_size: int, max_items: int | None, expected: list[list[int]]
) -> None:
    assert list(portions(sizes, lambda size: size, max_size=max_size, max_items=max_items)) == expected
