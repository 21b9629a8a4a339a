"""Log probabilities in the two shapes that OpenAI has for them: a list for chat, four lists for plain completions.

An entry of the log has the token that was drawn, and in `top` what was likely in its place, the drawn one first, as
vLLM has them (`shared.domain.events.Delta`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def chat_logprobs(entries: Sequence[dict[str, Any]], top: int) -> dict[str, Any]:
    """`{"content": [...]}`, with the `top` likeliest for each token."""
    content = [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "bytes": entry["bytes"],
            "top_logprobs": entry["top"][:top],
        }
        for entry in entries
    ]
    return {"content": content}


class CompletionLogprobsOf:
    """One choice's log probabilities, as they come. Offsets go on from what came before."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0

    def of(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Four lists: an item for each token. The first token of an echoed prompt has no probability."""
        offsets: list[int] = []
        likely: list[dict[str, float] | None] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
            likely.append(self._likely(entry))
        return {
            "text_offset": offsets,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "tokens": [entry["token"] for entry in entries],
            "top_logprobs": likely,
        }

    def _likely(self, entry: dict[str, Any]) -> dict[str, float] | None:
        """The drawn token and the likeliest, which it may be one of."""
        if entry["logprob"] is None:
            return None
        others = [one for one in entry["top"] if one["token"] != entry["token"]]
        return {one["token"]: one["logprob"] for one in (entry, *others[: self._top])}
