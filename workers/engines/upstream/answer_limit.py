"""Bounds the answer of an upstream that does not stop."""

from __future__ import annotations

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from workers.engines.base import UpstreamError

# An answer may be this many times as long as requested, and this many tokens more: some servers count no reasoning.
FACTOR, MARGIN_TOKENS = 10, 10_000
# For requests without max_tokens to a model of unknown length.
DEFAULT_TOKENS = 1_000_000
# Of one token in a stream, and of each of its log probabilities.
TOKEN_BYTES, LOGPROB_BYTES = 1024, 200
# The least that a read counts, so that responses without any output end too.
READ_BYTES = 64
ENDLESS = "The upstream does not end its answer."


class AnswerLimit:
    """What is left of the longest answer to a request that is read."""

    def __init__(self, request: GenerateRequest, max_model_len: int | None) -> None:
        tokens = request.sampling.max_tokens or max_model_len or DEFAULT_TOKENS
        self._token_bytes = TOKEN_BYTES + LOGPROB_BYTES * (request.logprobs or 0)
        self._left = request.sampling.n * (FACTOR * tokens + MARGIN_TOKENS) * self._token_bytes

    def read(self, size: int, *, repeats: bool) -> None:
        """Count a read of `size` bytes. If it `repeats` earlier output, only its deltas count: see `emitted`.

        Raises:
            UpstreamError: the answer is too long.
        """
        self._count(READ_BYTES if repeats else size)

    def emitted(self, delta: Delta) -> None:
        """Count the output of a read that repeats earlier output.

        Raises:
            UpstreamError: the answer is too long.
        """
        arguments = sum(len(call.arguments) for call in delta.tool_calls)
        size = len(delta.text) + len(delta.reasoning) + arguments + sum(map(len, delta.logprobs))
        self._count(max(size, delta.tokens * self._token_bytes))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UpstreamError(ENDLESS)
