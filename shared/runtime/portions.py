"""Divides a series into portions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def portions(
    items: Iterable[T], size_of: Callable[[T], int], *, max_size: int, max_items: int | None = None
) -> Iterator[list[T]]:
    """Divide items, in their order, into portions of at most `max_items` items and `max_size` in total.

    Each portion has at least one item, so an item that is larger than `max_size` is a portion of its own.
    """
    portion: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if portion and (len(portion) == max_items or total + size > max_size):
            yield portion
            portion, total = [], 0
        portion.append(item)
        total += size
    if portion:
        yield portion
