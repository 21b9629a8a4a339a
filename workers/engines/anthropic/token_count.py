"""Counts the tokens of a prompt, which Anthropic's API does without running it.

https://platform.claude.com/docs/en/build-with-claude/token-counting
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from shared.domain.events import Delta
from shared.domain.job import Usage
from workers.engines.base import UpstreamError
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.usage import MAX_COUNT

PATH = "messages/count_tokens"
MAX_BYTES = 64 << 10
# Parameters of a message that this request does not have.
_NOT_COUNTED = ("stream", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k")


def count_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body that counts the prompt of a message's body."""
    return {name: value for name, value in body.items() if name not in _NOT_COUNTED}


class CountParser:
    """The parser of the answer: `{"input_tokens": 7}`."""

    def __init__(self) -> None:
        self._content = b""
        self.begun = self.done = self.finished = False
        self.failure: UpstreamError | ErrorBody | None = None
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> Iterator[Delta]:
        self._content += data
        if len(self._content) > MAX_BYTES:
            self._fail()
        return iter(())

    def end(self) -> Iterator[Delta]:
        if self.done:
            return
        try:
            count = int(orjson.loads(self._content)["input_tokens"])
        except (ValueError, TypeError, KeyError):
            self._fail()
            return
        self.usage = Usage(min(max(0, count), MAX_COUNT))
        self.begun = self.done = self.finished = True
        yield Delta(0, finish_reason="length")

    def _fail(self) -> None:
        self.done = True
        self.failure = UpstreamError("The upstream sent something that is not a number of tokens.")
