"""Bounds the answer of an upstream that does not stop."""

from __future__ import annotations

from shared.domain.request import GenerateRequest

# An answer may be this many times as long as requested, and this many tokens more: some servers count no reasoning.
FACTOR, MARGIN_TOKENS = 10, 10_000
# For requests without max_tokens to a model of unknown length.
DEFAULT_TOKENS = 1_000_000
# Of one token in a stream, and of each of its log probabilities.
TOKEN_BYTES, LOGPROB_BYTES = 1024, 200


def max_answer_bytes(request: GenerateRequest, max_model_len: int | None) -> int:
    """The size of the longest answer that is read."""
    tokens = request.sampling.max_tokens or max_model_len or DEFAULT_TOKENS
    token_bytes = TOKEN_BYTES + LOGPROB_BYTES * (request.logprobs or 0)
    return request.sampling.n * (FACTOR * tokens + MARGIN_TOKENS) * token_bytes
