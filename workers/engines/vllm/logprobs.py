"""Converts vLLM's log probabilities into the entries of deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from vllm.logprobs import Logprob

# JSON has no infinity; the servers of vLLM and OpenAI return this value instead.
LOWEST = -9999.0


def entry(
    token_id: int,
    candidates: Mapping[int, Logprob] | None,
    top: int | None,
    tokenizer: Any,
    *,
    missing: float | None = LOWEST,
) -> dict[str, Any]:
    """The entry of one token.

    `candidates`: the sampled token, then the most likely ones; the first `top` of them are alternatives (None: all).
    `missing`: the log probability of a token that has none.
    """
    sampled = None if candidates is None else candidates.get(token_id)
    if candidates is None or sampled is None:
        text = tokenizer.decode([token_id])
        return {"token": text, "logprob": missing, "bytes": _bytes(text), "top": []}
    alternatives = [_alternative(other, logprob, tokenizer) for other, logprob in islice(candidates.items(), top)]
    return {**_alternative(token_id, sampled, tokenizer), "top": alternatives}


def _alternative(token_id: int, logprob: Logprob, tokenizer: Any) -> dict[str, Any]:
    text = logprob.decoded_token
    if text is None:
        text = tokenizer.decode([token_id])
    return {"token": text, "logprob": max(logprob.logprob, LOWEST), "bytes": _bytes(text)}


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def prompt_logprobs(tokens: Sequence[Mapping[int, Logprob] | None]) -> list[dict[str, Any] | None]:
    """The log probabilities of a prompt in the form of vLLM's server: for each token, the candidates by token id."""
    return [
        None
        if candidates is None
        else {
            str(token_id): {
                "logprob": max(logprob.logprob, LOWEST),
                "rank": logprob.rank,
                "decoded_token": logprob.decoded_token,
            }
            for token_id, logprob in candidates.items()
        }
        for candidates in tokens
    ]
