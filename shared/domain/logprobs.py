"""Log probabilities in their stored form. The worker encodes them once; each API converts them when it renders them.

An entry, which is about one token, is a flat list: `[position, token, logprob, token, logprob, ...]`. The pairs are the
alternatives, the most likely first; `position` is the index of the sampled token among them. If it is not among them,
`position` is null and the first pair is the sampled token. A pair may be followed by a list with the token's bytes,
which is omitted if they are its UTF-8 encoding.

With 20 alternatives an entry has about 600 bytes. As objects in the form of the APIs it has 1.5 KB as JSON, and 15 KB
or more in memory.

The log probabilities of a prompt have an entry per token too: null, or a flat list of `token id, logprob, rank, text`.

Rows and logs that the previous release wrote have objects in the form of the APIs instead; they are read unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from shared.domain.json_bytes import kept_json

NOTHING = b"null"
_PROMPT_FIELDS = 4


class Candidate(NamedTuple):
    """A token and its log probability. `data` are the token's bytes if they are not the UTF-8 encoding of its text."""

    token: str
    logprob: float | None
    data: bytes | None = None


def candidate(token: str, logprob: float | None, data: bytes) -> Candidate:
    """Build a candidate from a token's text and bytes."""
    return Candidate(token, logprob, None if token.encode("utf-8", "replace") == data else data)


def encode_entry(sampled: Candidate, alternatives: Sequence[Candidate]) -> bytes:
    """Encode the entry of one token as JSON."""
    try:
        entry: list[Any] = [alternatives.index(sampled)]
    except ValueError:
        entry = [None, sampled.token, sampled.logprob]
        if sampled.data is not None:
            entry.append(list(sampled.data))
    for item in alternatives:
        entry.append(item.token)
        entry.append(item.logprob)
        if item.data is not None:
            entry.append(list(item.data))
    return kept_json(entry)


def entry_object(stored: Any) -> dict[str, Any]:
    """Convert a stored entry to `{"token", "logprob", "bytes", "top": [{"token", "logprob", "bytes"}, ...]}`."""
    if isinstance(stored, dict):
        return stored
    position, *pairs = stored
    found: list[dict[str, Any]] = []
    at, end = 0, len(pairs)
    while at < end:
        token, logprob, at = pairs[at], pairs[at + 1], at + 2
        if at < end and isinstance(pairs[at], list):
            data, at = pairs[at], at + 1
        else:
            data = list(token.encode("utf-8", "replace"))
        found.append({"token": token, "logprob": logprob, "bytes": data})
    if position is None:
        return {**found[0], "top": found[1:]}
    return {**found[position], "top": found}


def sampled(stored: Any) -> tuple[str, float | None]:
    """The sampled token of a stored entry, and its log probability."""
    if isinstance(stored, dict) or any(isinstance(item, list) for item in stored):  # bytes shift the positions
        entry = entry_object(stored)
        return entry["token"], entry["logprob"]
    at = 1 + 2 * (stored[0] or 0)
    return stored[at], stored[at + 1]


def encode_prompt_entry(candidates: Iterable[tuple[int, float, int | None, str | None]] | None) -> bytes:
    """Encode the entry of one token of a prompt: the id, log probability, rank and text of each candidate."""
    return NOTHING if candidates is None else kept_json([value for item in candidates for value in item])


def prompt_entry_object(stored: Any) -> dict[str, Any] | None:
    """Convert a stored entry of a prompt to `{token id: {"logprob", "rank", "decoded_token"}, ...}`."""
    if stored is None or isinstance(stored, dict):
        return stored
    return {
        str(stored[at]): {"logprob": stored[at + 1], "rank": stored[at + 2], "decoded_token": stored[at + 3]}
        for at in range(0, len(stored), _PROMPT_FIELDS)
    }
