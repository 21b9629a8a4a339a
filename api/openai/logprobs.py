"""Log probabilities in OpenAI's two formats: a list of objects for chat, four lists for plain completions.

An entry of the log has the sampled token and, in `top`, the most likely tokens, with the sampled one first, as in vLLM
(`shared.domain.events.Delta`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.domain.logprobs import entry_object, sampled
from shared.runtime.chunked_json import Mapped


def chat_logprobs(entries: Sequence[Any], top: int) -> dict[str, Any]:
    """Build `{"content": [...]}` from stored entries, with the `top` most likely tokens for each token."""

    def view(stored: Any) -> dict[str, Any]:
        entry = entry_object(stored)
        return {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "bytes": entry["bytes"],
            "top_logprobs": entry["top"][:top],
        }

    return {"content": Mapped(entries, view)}


class CompletionLogprobsBuilder:
    """Builds the log probabilities of one choice, chunk by chunk. Text offsets continue across chunks."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0

    def build(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Build the four lists, with an item per token. The first token of an echoed prompt has no probability."""
        offsets: list[int] = []
        logprobs: list[float | None] = []
        tokens: list[str] = []
        for token, logprob in map(sampled, stored):
            offsets.append(self._offset)
            logprobs.append(logprob)
            tokens.append(token)
            self._offset += len(token)
        return {
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": Mapped(stored, self._top_of),
        }

    def _top_of(self, stored: Any) -> dict[str, float] | None:
        """The sampled token and the `top` most likely others."""
        entry = entry_object(stored)
        if entry["logprob"] is None:
            return None
        others = [item for item in entry["top"] if item["token"] != entry["token"]]
        return {item["token"]: item["logprob"] for item in (entry, *others[: self._top])}
