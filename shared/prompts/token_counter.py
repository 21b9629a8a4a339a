"""Counts a prompt's tokens without torch: with the model's tokenizer and its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.domain.request import GenerateRequest
from shared.prompts.chat_template import ChatTemplate, model_template


class TokenCounter:
    """Counts tokens with one model's tokenizer and chat template."""

    def __init__(self, folder: Path, *, renders_chat: bool = True, template: Path | None = None) -> None:
        """See `shared.config.models.base.TokenizerFiles`."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._template: ChatTemplate | None = model_template(folder, template) if renders_chat else None
        self._longest_token = _longest_token(self._tokenizer)

    def count(self, request: GenerateRequest, limit: int | None = None) -> int | None:
        """Count the tokens of a prompt; None if its conversation cannot be rendered exactly as by the worker.

        With a limit, the result for a longer prompt may be `AtLeast` the limit: it is not encoded completely.
        """
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return self.count_text(request.prompt or "", limit)
        text = self._template.render(request) if self._template is not None else None
        return self.count_text(text, limit, add_special_tokens=False) if text is not None else None

    def adds(self, token: str) -> bool:
        """Whether the tokenizer itself puts this special token at the start of a text."""
        tokens = self._tokenizer.encode("").tokens
        return bool(tokens) and tokens[0] == token

    def count_text(self, text: str, limit: int | None = None, *, add_special_tokens: bool = True) -> int:
        """Count the tokens of a text. With a limit, see `count`."""
        if limit is not None and self._longest_token is not None:
            fewest = len(text.encode("utf-8", "surrogatepass")) // self._longest_token
            if fewest >= limit:
                return AtLeast(fewest)
        tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        size = PIECE
        if limit is not None and self._longest_token is not None:
            size = min(PIECE, max(SHORT_PIECE, limit))  # hardly more is encoded than the limit needs
        left = len(text)
        for piece in _pieces(text, size):
            # `encode` would hold the interpreter's lock for half a second per megabyte.
            tokens += len(self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0])
            left -= len(piece)
            if left and limit is not None and tokens >= limit:
                return AtLeast(tokens)
        return tokens


class AtLeast(int):
    """A number of tokens that the prompt has at least."""


# Characters that are encoded in one piece, because an encoded text takes up to 100 times its size.
PIECE = 64 * 1024
SHORT_PIECE = 4096
# Every byte-level pre-tokenizer splits here.
_WORD_END = re.compile(r"[^\W\d_](?=[ \n,.;:!?，。、；：！？])")


def _pieces(text: str, size: int | None = None) -> Iterator[str]:
    """Cut a long text after words, into pieces of about a size, and of at most `PIECE` if a word is longer.

    A word that is longer than `PIECE` is cut too, and then counted inexactly.
    """
    start, size = 0, size or PIECE
    while len(text) - start > size:
        end = _word_end(text, start + size, size)
        if end is None and size < PIECE:
            if len(text) - start <= PIECE:
                break
            end = _word_end(text, start + PIECE, PIECE)
        end = end or start + PIECE
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _word_end(text: str, before: int, size: int) -> int | None:
    """The end of the last word in the last part of a piece that ends before a position; None if no word ends there."""
    end = None
    for match in _WORD_END.finditer(text, before - size // 16, before + 1):
        end = match.end()
    return end


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """The bytes of a tokenizer's longest token; None if a token can stand for any number of bytes."""
    state = json.loads(tokenizer.to_str())
    pre_tokenizer = state.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if (
        state.get("normalizer") is not None  # it may remove text
        or state["model"].get("type") != "BPE"
        or state["model"].get("unk_token") is not None
        or state.get("truncation") is not None
        or not all(step.get("type") in ("ByteLevel", "Digits") or _splits_only(step) for step in steps)
        or all(step.get("type") != "ByteLevel" for step in steps)
        or any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    ):
        return None
    # In a byte-level vocabulary each character stands for one byte.
    added = [len(token["content"].encode()) for token in state["added_tokens"]]
    return max([*map(len, state["model"]["vocab"]), *added], default=None)


def _splits_only(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits the text without removing any of it."""
    return step.get("type") == "Split" and step.get("behavior") != "Removed"


def count_words(request: GenerateRequest, limit: int | None = None) -> int:
    """Count the tokens of a prompt for a model whose tokens are words, as `workers.engines.simulated.engine` does."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return words_in(request.prompt or "") + 1
    return words_in("\n".join(f"{item.role}: {item.text}" for item in request.messages)) + 1


def words_in(text: str) -> int:
    """The number of words of a text."""
    words = 0
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        words += len(piece.split())
        if start and not (text[start - 1].isspace() or piece[0].isspace()):
            words -= 1  # a word that two pieces share
    return words


def is_plain(request: GenerateRequest) -> bool:
    """Whether a prompt has only texts, so that its size is known without rendering it."""
    chat = request.chat
    return (chat is None or not chat.tools) and not any(
        message.tool_calls or message.tool_call_id or message.reasoning or message.media
        for message in request.messages or ()
    )
