"""vLLM's log probabilities, in the form that deltas carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from vllm.logprobs import Logprob

# JSON has no infinity; vLLM's server, and OpenAI's, say this instead.
LOWEST = -9999.0


def entry(
    token_id: int, likely: Mapping[int, Logprob] | None, count: int | None, tokenizer: Any, *, told: bool = True
) -> dict[str, Any]:
    """A token's: `likely` has the drawn token first, then the likeliest; `count` of them are told of, None: all.

    `told`: whether vLLM says what it does not know as the lowest, rather than as nothing (a prompt's first token).
    """
    drawn = None if likely is None else likely.get(token_id)
    if likely is None or drawn is None:
        text = tokenizer.decode([token_id])
        return {"token": text, "logprob": LOWEST if told else None, "bytes": _bytes(text), "top": []}
    top = [_one(one, other, tokenizer) for one, other in islice(likely.items(), count)]
    return {**_one(token_id, drawn, tokenizer), "top": top}


def _one(token_id: int, logprob: Logprob, tokenizer: Any) -> dict[str, Any]:
    text = logprob.decoded_token
    if text is None:
        text = tokenizer.decode([token_id])
    return {"token": text, "logprob": max(logprob.logprob, LOWEST), "bytes": _bytes(text)}


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def of_prompt(likely: Sequence[Mapping[int, Logprob] | None]) -> list[dict[str, Any] | None]:
    """A prompt's, as vLLM's server tells them: for each token what is likely in its place, by token id."""
    return [
        None
        if step is None
        else {
            str(token_id): {
                "logprob": max(one.logprob, LOWEST),
                "rank": one.rank,
                "decoded_token": one.decoded_token,
            }
            for token_id, one in step.items()
        }
        for step in likely
    ]
