"""Remembers what was found out about a prompt while one request is admitted.

Several checks, and a route for each of its models, need the same. Counting takes about 0.3 ms for each 1,000 bytes, and
a look at each of a hundred messages some 20 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from shared.domain.request import GenerateRequest
from shared.prompts.token_counter import AtLeast, TextCount

T = TypeVar("T")


class CountMemo:
    """The numbers of prompts, by what counted them. A copy of a request with the same prompt has the same numbers."""

    def __init__(self, project_id: int | None = None) -> None:
        """`project_id`: whose request it is; None if unknown."""
        self.project_id = project_id
        # With the prompt, so that no other one gets its identity.
        self._numbers: dict[Hashable, tuple[GenerateRequest, int | None]] = {}
        self._values: dict[Hashable, tuple[GenerateRequest, Any]] = {}

    def has(self, counter: Hashable, request: GenerateRequest, limit: int | None = None) -> bool:
        """Whether the number is known: that of the whole prompt, or at least the limit."""
        found = self._numbers.get(_key(counter, request))
        if found is None:
            return False
        return not isinstance(found[1], AtLeast) or (limit is not None and found[1] >= limit)

    def get(self, counter: Hashable, request: GenerateRequest) -> int | None:
        """The number; None if the counter cannot count the prompt."""
        return self._numbers[_key(counter, request)][1]

    def put(self, counter: Hashable, request: GenerateRequest, number: int | None) -> None:
        """Remember a number."""
        self._numbers[_key(counter, request)] = (request, number)

    def take_begun(self, counter: Hashable, request: GenerateRequest) -> TextCount | None:
        """The count that led to a number that is too low, to continue it; None if none has begun. It is forgotten:
        should the caller be cancelled, a thread may still use it."""
        _, number = self._numbers.pop(_key(counter, request), (None, None))
        return number.count if isinstance(number, AtLeast) else None

    def once(self, find: Callable[[GenerateRequest], T], request: GenerateRequest) -> T:
        """What a function returns for a request. It reads the messages, the prompt and the chat options only."""
        key = _key(find, request)
        if key not in self._values:
            self._values[key] = (request, find(request))
        value: T = self._values[key][1]
        return value


_MEMO: ContextVar[CountMemo | None] = ContextVar("count_memo", default=None)


def current_memo() -> CountMemo:
    """The memo of the request that is being admitted; outside of `counting_once`, an empty one."""
    return _MEMO.get() or CountMemo()


@contextmanager
def counting_once(project_id: int | None = None) -> Iterator[None]:
    """Count each prompt once with each tokenizer, until the end of the context.

    With the project whose requests these are, parts of its earlier prompts are not encoded again.
    """
    if _MEMO.get() is not None:
        yield
        return
    token = _MEMO.set(CountMemo(project_id))
    try:
        yield
    finally:
        _MEMO.reset(token)


def _key(counter: Hashable, request: GenerateRequest) -> tuple[Any, ...]:
    # Steps of admission change a request by copies, which share the parts that they do not change.
    return counter, id(request.messages), id(request.prompt), id(request.chat)
