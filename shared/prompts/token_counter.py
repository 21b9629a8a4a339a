"""Counts a prompt's tokens without torch: with the model's tokenizer and its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from shared.domain.request import GenerateRequest
from shared.prompts.chat_template import ChatTemplate, model_template
from shared.prompts.known_counts import KnownCounts
from shared.prompts.token_bounds import TokenBounds, is_normal, token_bounds, unicode_forms


class TokenCounter:
    """Counts tokens with one model's tokenizer and chat template."""

    def __init__(self, folder: Path, *, renders_chat: bool = True, template: Path | None = None) -> None:
        """See `shared.config.models.base.TokenizerFiles`."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._template: ChatTemplate | None = model_template(folder, template) if renders_chat else None
        self._bounds = token_bounds(self._tokenizer)
        self._forms = unicode_forms(self._tokenizer)
        self._separators = _separators(self._tokenizer) if self._bounds is not None else None
        self._known = KnownCounts()

    def count(self, request: GenerateRequest, limit: int | None = None, project_id: int | None = None) -> int | None:
        """Count the tokens of a prompt; None if its conversation cannot be rendered exactly as by the worker.

        With a limit, the result for a longer prompt may be `AtLeast` the limit: it is not encoded completely. With a
        project, parts of its earlier prompts are not encoded again.
        """
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return self.count_text(request.prompt or "", limit, project_id=project_id)
        text = self._template.render(request) if self._template is not None else None
        if text is None:
            return None
        return self.count_text(text, limit, add_special_tokens=False, project_id=project_id)

    def adds(self, token: str) -> bool:
        """Whether the tokenizer itself puts this special token at the start of a text."""
        tokens = self._tokenizer.encode("").tokens
        return bool(tokens) and tokens[0] == token

    def keeps(self, text: str) -> bool:
        """Whether no normalization makes a text longer, so that it has no more tokens than bytes."""
        return is_normal(text, self._forms)

    def count_text(
        self, text: str, limit: int | None = None, *, add_special_tokens: bool = True, project_id: int | None = None
    ) -> int:
        """Count the tokens of a text. For the limit and the project, see `count`."""
        tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        bounds = self._bounds if limit is not None and self.keeps(text) else None
        # With a limit, hardly more is encoded than it needs.
        size = PIECE if limit is None or bounds is None else min(PIECE, max(SHORT_PIECE, limit))
        return TextCount(text, bounds, tokens, self._counts(text, size, project_id)).up_to(limit)

    def _counts(self, text: str, size: int, project_id: int | None) -> Iterator[tuple[int, int]]:
        """The tokens of the parts of a text, in order, each with the position at which the part ends."""
        start = 0
        for match in self._separators.finditer(text) if self._separators is not None else ():
            yield from self._counts_between(text, start, match.start(), size, project_id)
            yield 1, match.end()
            start = match.end()
        yield from self._counts_between(text, start, len(text), size, project_id)

    def _counts_between(
        self, text: str, start: int, end: int, size: int, project_id: int | None
    ) -> Iterator[tuple[int, int]]:
        """As `_counts`, of a part without separators."""
        if start == end:
            return
        part = text[start:end]
        key = None if project_id is None else self._known.key(project_id, part)
        if key is not None and (known := self._known.get(key)) is not None:
            yield known, end
            return
        tokens = 0
        for piece in _pieces(part, size):
            # `encode` would hold the interpreter's lock for half a second per megabyte.
            number = len(self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0])
            tokens, start = tokens + number, start + len(piece)
            yield number, start
        if key is not None:
            self._known.put(key, tokens)


class TextCount:
    """The tokens of a text, as far as they are counted. Used by one thread at a time."""

    def __init__(self, text: str, bounds: TokenBounds | None, tokens: int, parts: Iterator[tuple[int, int]]) -> None:
        """`tokens`: those before the text. `parts`: the tokens of its parts, and the position at which each ends."""
        self._text = text
        self._bounds = bounds
        self._tokens = tokens
        self._parts = parts
        self._end = 0

    def up_to(self, limit: int | None) -> int:
        """Count on, until the number is known to be at least the limit."""
        if self._text and limit is not None and (fewest := self._fewest(limit)) >= limit:
            return AtLeast(fewest, self)
        checked = self._end
        for number, end in self._parts:
            self._tokens, self._end = self._tokens + number, end
            if limit is None or self._end == len(self._text):
                continue
            if self._tokens >= limit:
                return AtLeast(self._tokens, self)
            if self._end - checked >= SHORT_PIECE:
                checked = self._end
                if (fewest := self._fewest(limit)) >= limit:
                    return AtLeast(fewest, self)
        return self._tokens

    def _fewest(self, limit: int) -> int:
        """A number of tokens that the text has at least."""
        if self._bounds is None or self._tokens >= limit:
            return self._tokens
        return self._tokens + self._bounds.fewest(self._text, limit - self._tokens, self._end)


class AtLeast(int):
    """A number of tokens that the prompt has at least. `count` continues with the rest."""

    count: TextCount

    def __new__(cls, number: int, count: TextCount) -> AtLeast:
        """`count`: where the number comes from."""
        created = super().__new__(cls, number)
        created.count = count
        return created


# Characters that are encoded in one piece, because an encoded text takes up to 100 times its size.
PIECE = 64 * 1024
SHORT_PIECE = 2048
# With more special tokens, it takes too long to find them.
MOST_SEPARATORS = 512
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


def _separators(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Matches the special tokens in a text. What stands between them is encoded independently of the rest."""
    tokens = [token for token in json.loads(tokenizer.to_str())["added_tokens"] if not token["normalized"]]
    if not 0 < len(tokens) <= MOST_SEPARATORS or any(token["single_word"] for token in tokens):
        return None
    # The longest one first, which is the one that the tokenizer takes.
    texts = sorted((token["content"] for token in tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)))


def count_words(request: GenerateRequest, limit: int | None = None, project_id: int | None = None) -> int:
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
