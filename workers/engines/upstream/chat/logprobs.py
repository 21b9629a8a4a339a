"""Reads the log probabilities of a chunk. What cannot be read is left out; the answer is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from shared.domain.logprobs import Candidate, candidate, encode_entry


def entries(logprobs: Any) -> Iterator[bytes]:
    """One encoded entry per token, from a chat's `content` list or a completion's lists."""
    if not isinstance(logprobs, dict):
        return
    content = logprobs.get("content")
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        for item in content:
            if (sampled := _candidate(item)) is not None:
                tops = item.get("top_logprobs")
                others = map(_candidate, tops) if isinstance(tops, list) else ()
                yield encode_entry(sampled, [other for other in others if other is not None])
    elif isinstance(logprobs.get("tokens"), list):
        yield from _completion_entries(logprobs)


def _completion_entries(logprobs: dict[str, Any]) -> Iterator[bytes]:
    tokens = logprobs["tokens"]
    values, tops = (
        column if isinstance(column, list) else [] for column in map(logprobs.get, ("token_logprobs", "top_logprobs"))
    )
    for token, value, top in zip_longest(tokens, values[: len(tokens)], tops[: len(tokens)]):
        others = top.items() if isinstance(top, dict) else ()
        yield encode_entry(
            Candidate(str(token), _number(value)), [Candidate(str(other), _number(number)) for other, number in others]
        )


def _candidate(item: Any) -> Candidate | None:
    if not isinstance(item, dict) or item.get("token") is None:
        return None
    token, value, data = str(item["token"]), _number(item.get("logprob")), item.get("bytes")
    if isinstance(data, list):
        try:
            return candidate(token, value, bytes(data))
        except (TypeError, ValueError):
            pass
    return Candidate(token, value)


def _number(value: Any) -> float | None:
    """A log probability; None for JSON's null and for what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
