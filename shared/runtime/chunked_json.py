"""Parses and encodes large JSON values in small pieces.

The parsers and encoders of `json` and `orjson` hold the interpreter's lock until they have finished: parsing 20 MB in
any thread stops the event loop for a third of a second. Here, no piece takes longer than a few milliseconds.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from json.decoder import JSONDecodeError
from json.decoder import scanstring as _scanstring  # type: ignore[attr-defined]  # not in typeshed
from json.scanner import make_scanner
from typing import Any, Generic, TypeVar, overload

import orjson

# Characters that are parsed in one piece, and list items that are encoded in one.
WINDOW = 16 * 1024
ITEMS = 64
# Containers larger than a window that may be nested in each other.
MAX_DEPTH = 200

S = TypeVar("S")
T = TypeVar("T")

_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]
_string: Callable[[str, int, bool], tuple[str, int]] = _scanstring
_SPACE = " \t\n\r"


def loads(text: str, *, lazy: Collection[str] = ()) -> Any:
    """Parse a JSON value, with the same results and errors as `json.loads`.

    The large lists that objects have under the names `lazy` become a `LazyList`.

    Raises:
        json.JSONDecodeError: the text is not JSON.
        ValueError: a number has too many digits.
        RecursionError: it is nested too deeply.
    """
    if text.startswith("\ufeff"):
        raise JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    value, end = _value(text, _skip(text, 0), 0, lazy)
    end = _skip(text, end)
    if end != len(text):
        raise JSONDecodeError("Extra data", text, end)
    return value


def _value(text: str, start: int, depth: int, lazy: Collection[str] = (), name: str | None = None) -> tuple[Any, int]:
    """Parse the value at a position. Returns the position after it too."""
    first = text[start : start + 1]
    if first == '"':
        return _string(text, start + 1, True)
    if first not in ("{", "["):
        return _scanned(text, start, start)
    window = text[start : start + WINDOW]
    try:
        value, size = _scan(window, 0)
    except (JSONDecodeError, StopIteration):  # it is longer than the window, or invalid
        if depth == MAX_DEPTH:
            raise RecursionError from None
        if len(window) < WINDOW:
            return _scanned(text, start, start)
        if first == "{":
            return _object(text, start, depth + 1, lazy)
        if name in lazy:
            return _lazy_list(text, start, depth + 1)
        return _list(text, start, depth + 1, lazy)
    return value, start + size


def _scanned(text: str, start: int, at: int) -> tuple[Any, int]:
    try:
        return _scan(text, start)
    except StopIteration as stop:
        raise JSONDecodeError("Expecting value", text, stop.value) from None


def _object(text: str, start: int, depth: int, lazy: Collection[str]) -> tuple[dict[str, Any], int]:
    value: dict[str, Any] = {}
    at = _skip(text, start + 1)
    if text[at : at + 1] == "}":
        return value, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _string(text, at + 1, True)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("Expecting ':' delimiter", text, at)
        value[name], at = _value(text, _skip(text, at + 1), depth, lazy, name)
        at = _skip(text, at)
        match text[at : at + 1]:
            case "}":
                return value, at + 1
            case ",":
                at = _skip(text, at + 1)
            case _:
                raise JSONDecodeError("Expecting ',' delimiter", text, at)


def _list(text: str, start: int, depth: int, lazy: Collection[str]) -> tuple[list[Any], int]:
    value: list[Any] = []
    at = start
    for items, at in _runs(text, start, depth, lazy):  # noqa: B007  # the position after the list is returned
        value += items
    return value, at


def _lazy_list(text: str, start: int, depth: int) -> tuple[LazyList, int]:
    value, at = LazyList(text, depth), start + 1
    for items, end in _runs(text, start, depth, ()):
        if items:
            value.add(at, len(items))
        at = end
    return value, at


def _runs(text: str, start: int, depth: int, lazy: Collection[str]) -> Iterator[tuple[list[Any], int]]:
    """Parse a list in runs of items. Yields each with the position after it; the last position is after the list."""
    at = _skip(text, start + 1)
    if text[at : at + 1] == "]":
        yield [], at + 1
        return
    one_by_one_until = 0
    while True:
        if at >= one_by_one_until:
            items, after = _items(text, at)
            if items:
                at = _skip(text, after)
                yield items, at
                continue
            one_by_one_until = at + WINDOW
        item, at = _value(text, at, depth, lazy)
        at = _skip(text, at)
        match text[at : at + 1]:
            case "]":
                yield [item], at + 1
                return
            case ",":
                at = _skip(text, at + 1)
                yield [item], at
            case _:
                raise JSONDecodeError("Expecting ',' delimiter", text, at)


def _items(text: str, at: int) -> tuple[list[Any], int]:
    """Parse the items of a list that end in the window at a position, and return the position after their last comma.

    Returns none if the end of an item is not found at the first try.
    """
    match text[at : at + 1]:
        case "{":
            comma = max(text.rfind("},{", at, at + WINDOW), text.rfind("}, {", at, at + WINDOW))
        case "[":
            comma = max(text.rfind("],[", at, at + WINDOW), text.rfind("], [", at, at + WINDOW))
        case _:
            comma = text.rfind(",", at, at + WINDOW)
    if comma < 0:
        return [], at
    comma = text.find(",", comma)
    try:
        return json.loads(f"[{text[at:comma]}]"), comma + 1
    except JSONDecodeError:
        return [], at


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at


class Runs(Sequence[Any], ABC):
    """A list whose items are parsed, a run of them at a time, when they are read. Meant to be read in order."""

    def __init__(self) -> None:
        self._firsts: list[int] = []  # the index of each run's first item
        self._count = 0
        self._read: tuple[int, list[Any]] = (0, [])  # the run that was read last, and the index of its first item

    @abstractmethod
    def _parse(self, run: int) -> list[Any]:
        """Parse a run, which is given by its number."""

    def _add(self, count: int) -> None:
        """Add a run of items at the end."""
        self._firsts.append(self._count)
        self._count += count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self._item(index) for index in range(*at.indices(self._count))]
        return self._item(range(self._count)[at])

    def _item(self, index: int) -> Any:
        first, items = self._read
        if not 0 <= index - first < len(items):
            run = bisect_right(self._firsts, index) - 1
            first, items = self._read = self._firsts[run], self._parse(run)
        return items[index - first]


class LazyList(Runs):
    """A list in a JSON text."""

    def __init__(self, text: str, depth: int) -> None:
        super().__init__()
        self._text = text
        self._depth = depth
        self._starts: list[int] = []

    def add(self, start: int, count: int) -> None:
        """Add the items at a position of the text."""
        self._add(count)
        self._starts.append(start)

    def _parse(self, run: int) -> list[Any]:
        # It is parsed like a list that starts there, of which only the first items are read.
        items, _ = next(_runs(self._text, self._starts[run] - 1, self._depth, ()))
        return items


class EncodedLists(Runs):
    """The items of several lists in JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._lists: list[bytes] = []

    def add(self, items: Sequence[Any]) -> None:
        """Add items, which are encoded."""
        if items:
            self._add(len(items))
            self._lists.append(orjson.dumps(items))

    def _parse(self, run: int) -> list[Any]:
        return orjson.loads(self._lists[run])  # type: ignore[no-any-return]


class Mapped(Sequence[T], Generic[S, T]):
    """A sequence that converts the items of another each time they are read, so that they are never all in memory."""

    def __init__(self, items: Sequence[S], convert: Callable[[S], T]) -> None:
        self._items = items
        self._convert = convert

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self._convert(item) for item in self._items[at]]
        return self._convert(self._items[at])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def dump(value: Any) -> bytes:
    """Encode a small value as JSON, in one step: as `dump_pieces`, whose steps take several times as long."""
    return orjson.dumps(value, default=_list_of)


def _list_of(value: Any) -> list[Any]:
    if isinstance(value, Mapped | Runs):
        return value[:]
    raise TypeError(f"{type(value).__name__} is not JSON")


def dump_pieces(value: Any) -> Iterator[bytes]:
    """Encode a value as JSON in pieces. The items of a large `Mapped` are converted and encoded a few at a time."""
    match value:
        case dict():
            opening = b"{"
            for name, item in value.items():
                yield b"%b%b:" % (opening, orjson.dumps(name))
                yield from dump_pieces(item)
                opening = b","
            yield b"{}" if opening == b"{" else b"}"
        case list() if any(isinstance(item, dict | list | Mapped | Runs) for item in value[:1]):
            opening = b"["
            for item in value:
                yield opening
                yield from dump_pieces(item)
                opening = b","
            yield b"]"
        case list() | Mapped() | Runs() if value:
            opening = b"["
            for start in range(0, len(value), ITEMS):
                yield opening + orjson.dumps(value[start : start + ITEMS])[1:-1]
                opening = b","
            yield b"]"
        case Mapped() | Runs():
            yield b"[]"
        case str() if len(value) > WINDOW:
            yield b'"'
            for start in range(0, len(value), WINDOW):
                yield orjson.dumps(value[start : start + WINDOW])[1:-1]
            yield b'"'
        case _:
            yield orjson.dumps(value)
