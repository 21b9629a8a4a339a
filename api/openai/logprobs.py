"""Log probabilities in OpenAI's two formats: a list of objects for chat, four lists for plain completions.

An entry of the log has the sampled token and, in `top`, the most likely tokens, with the sampled one first, as in vLLM
(`shared.domain.events.Delta`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.domain.logprobs import entry_object


def chat_logprobs(entries: Sequence[Any], top: int) -> dict[str, Any]:
    """Build `{"content": [...]}` from stored entries, with the `top` most likely tokens for each token."""
    content = [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "bytes": entry["bytes"],
            "top_logprobs": entry["top"][:top],
        }
        for entry in map(entry_object, entries)
    ]
    return {"content": content}


class CompletionLogprobsBuilder:
    """Builds the log probabilities of one choice, chunk by chunk. Text offsets continue across chunks."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0

    def build(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Build the four lists, with an item per token. The first token of an echoed prompt has no probability."""
        entries = [entry_object(entry) for entry in stored]
        offsets: list[int] = []
        top: list[dict[str, float] | None] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
            top.append(self._top_of(entry))
        return {
            "text_offset": offsets,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "tokens": [entry["token"] for entry in entries],
            "top_logprobs": top,
        }

    def _top_of(self, entry: dict[str, Any]) -> dict[str, float] | None:
        """The sampled token and the `top` most likely others."""
        if entry["logprob"] is None:
            return None
        others = [item for item in entry["top"] if item["token"] != entry["token"]]
        return {item["token"]: item["logprob"] for item in (entry, *others[: self._top])}
