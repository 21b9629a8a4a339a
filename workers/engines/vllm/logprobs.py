"""Converts vLLM's log probabilities into the encoded entries of deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from vllm.logprobs import Logprob

from shared.domain.logprobs import Candidate, encode_entry, encode_prompt_entry

# JSON has no infinity; the servers of vLLM and OpenAI return this value instead.
LOWEST = -9999.0


def entry(
    token_id: int,
    candidates: Mapping[int, Logprob] | None,
    top: int | None,
    tokenizer: Any,
    *,
    missing: float | None = LOWEST,
) -> bytes:
    """The entry of one token.

    `candidates`: the sampled token, then the most likely ones; the first `top` of them are alternatives (None: all).
    `missing`: the log probability of a token that has none.
    """
    sampled = None if candidates is None else candidates.get(token_id)
    if candidates is None or sampled is None:
        return encode_entry(Candidate(tokenizer.decode([token_id]), missing), ())
    alternatives = [_candidate(other, logprob, tokenizer) for other, logprob in islice(candidates.items(), top)]
    return encode_entry(_candidate(token_id, sampled, tokenizer), alternatives)


def _candidate(token_id: int, logprob: Logprob, tokenizer: Any) -> Candidate:
    text = logprob.decoded_token
    if text is None:
        text = tokenizer.decode([token_id])
    return Candidate(text, max(logprob.logprob, LOWEST))


def prompt_entries(tokens: Sequence[Mapping[int, Logprob] | None]) -> list[bytes]:
    """The entries of a prompt's tokens."""
    return [
        encode_prompt_entry(
            None
            if candidates is None
            else [
                (token_id, max(logprob.logprob, LOWEST), logprob.rank, logprob.decoded_token)
                for token_id, logprob in candidates.items()
            ]
        )
        for candidates in tokens
    ]
