"""Rejects, at submit, prompts that do not fit the model's context.

The prompt is not counted if the model's files are missing on this machine, or the conversation has more than text
messages (tools, documents, a last message to continue), of which rendering takes long or is not possible here. Then
only max_tokens is checked here, and the worker, whose rendering is authoritative, rejects the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from api.context.count_memo import current_memo
from api.context.estimates import TokenEstimates
from api.context.message_counts import EstimatedCounts, MessageCounts, TemplateCounts, WordCounts, most_tokens
from shared.config.models.base import PromptTokenizer, TokenizerFiles, WordTokenizer
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.errors import ContextExceeded, InvalidRequest
from shared.domain.request import GenerateRequest, Message
from shared.prompts.token_bounds import MOST_EXPANSION
from shared.prompts.token_counter import AtLeast, TokenCounter, count_words, is_plain

# A token is at least one byte of the prompt, unless the tokenizer changes the text, so shorter prompts need not be
# counted. These are the allowances for chat templates, which add a few dozen tokens per conversation and a few per
# message.
TEMPLATE_TOKENS = 256
MESSAGE_TOKENS = 32
# Larger prompts are counted in a thread: 4,000 bytes take up to some milliseconds.
INLINE_BYTES = 4000

# Prompts that are counted in threads at the same time.
THREADS = 2

# Larger conversations with tools are estimated: rendering holds the interpreter's lock for about 10 ms per megabyte.
RENDERED_BYTES = 512 * 1024

# Gets the limit and the project of `TokenCounter.count`.
_Count = Callable[[GenerateRequest, int | None, int | None], int | None]


@dataclass(frozen=True, slots=True)
class Window:
    """A model's context length, and how the tokens of its prompts are counted; None if unknown.

    `source`: as in `Spec`.
    """

    limit: int | None
    tokenizer: PromptTokenizer | None
    counting: Counting | None
    source: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Counting:
    """Counts the tokens of prompts with one tokenizer.

    `messages` counts those of single messages. `keeps`: as in `TokenCounter`. `template_tokens`: those of a
    conversation of a word.
    """

    count: _Count
    messages: MessageCounts
    keeps: Callable[[str], bool]
    template_tokens: int = 0


_UNKNOWN = Window(None, None, None)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The number of tokens of a prompt, and whether it was estimated because they cannot be counted here.

    With `at_least`, the prompt may have more: it was not counted to its end.
    """

    number: int
    estimated: bool = False
    at_least: bool = False


class ContextWindow:
    """Checks prompts against their model's context length. Those of a model that has been removed pass."""

    def __init__(self, registry: Registry, estimates: TokenEstimates | None = None) -> None:
        self.estimates = estimates or TokenEstimates()
        self._windows: Mapping[str, Window] = {}
        # The lengths that upstreams report, by source.
        self._reported: Mapping[str, int] = {}
        # The sources whose lengths requests were refused for.
        self._refusals: set[str] = set()
        self.use(self.read(registry.models))
        self._threads = asyncio.Semaphore(THREADS)

    def read(self, models: Mapping[str, ModelSpec]) -> Mapping[str, Window]:
        """Read what is needed to check these models' prompts. Loads tokenizers, so it may take seconds."""
        known = {window.tokenizer: window.counting for window in self._windows.values()}
        windows = {}
        for name, model in models.items():
            tokenizer = model.prompt_tokenizer
            if tokenizer not in known:
                known[tokenizer] = _counting(tokenizer)
            windows[name] = Window(model.max_model_len, tokenizer, known[tokenizer], model.context_source)
        return windows

    def use(self, windows: Mapping[str, Window]) -> None:
        """Check prompts against these windows from now on."""
        self._windows = windows

    def learn(self, lengths: Mapping[str, int]) -> None:
        """Use these lengths that upstreams report, by source, for the models whose entries have none."""
        self._reported = lengths

    def take_refusals(self) -> Collection[str]:
        """The sources for whose lengths requests were refused since the last call."""
        refusals, self._refusals = self._refusals, set()
        return refusals

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `ContextExceeded` if the prompt leaves no room for output, or `InvalidRequest` if max_tokens exceeds
        the context length.

        As in vLLM, a max_tokens greater than the room that the prompt leaves is accepted: the output ends there.
        """
        limit, counting = self.length(model), self._window(model).counting
        if limit is None:
            return
        max_tokens = request.sampling.max_tokens
        param = "messages" if request.messages is not None else "prompt"
        if max_tokens is not None and max_tokens > limit:
            self.note_refusal(model)
            raise InvalidRequest(
                f"max_tokens: this model's context is {limit} tokens, including the prompt; got {max_tokens}",
                param="max_tokens",
            )
        if counting is None or not _is_plain(request) or self._most_tokens(counting, request) < limit:
            return
        tokens = await self._counted(model, request, limit, inline=_bytes(request) <= INLINE_BYTES)
        if tokens is not None and tokens >= limit:
            self.note_refusal(model)
            at_least = "at least " if isinstance(tokens, AtLeast) else ""
            raise ContextExceeded(
                f"{param}: this model's context is {limit} tokens, including the output;"
                f" the prompt has {at_least}{tokens}",
                param=param,
            )

    def has_counter(self, model: str) -> bool:
        """Whether the tokens of texts are counted, not estimated."""
        return self._window(model).counting is not None

    def length(self, model: str) -> int | None:
        """The model's context length in tokens; None if it is unknown."""
        window = self._window(model)
        return window.limit if window.source is None else self._reported.get(window.source)

    def message_counts(self, model: str, project_id: int | None = None) -> MessageCounts:
        """How the tokens of single messages are counted, or estimated for a project."""
        counting = self._window(model).counting
        if counting is not None:
            return counting.messages
        return EstimatedCounts(self.estimates.tokens_per_byte(model, project_id))

    async def tokens(self, model: str, request: GenerateRequest) -> int | None:
        """The number of tokens of a prompt, which may be too low for one that does not fit; None if it is unknown.

        Raises:
            InvalidRequest: the chat template rejects the prompt.
        """
        limit = self.length(model)
        if self._window(model).counting is None or not _is_plain(request):
            return None
        return await self._counted(model, request, limit, inline=_bytes(request) <= INLINE_BYTES)

    async def count(self, model: str, request: GenerateRequest) -> int | None:
        """Count the tokens of a prompt; None if only its engine can.

        Raises:
            InvalidRequest: the chat template rejects the prompt.
        """
        return await self._counted(model, request, None, inline=False)

    async def measure(
        self, model: str, request: GenerateRequest, limit: int | None = None, project_id: int | None = None
    ) -> PromptTokens:
        """Count the tokens of a prompt with the model's tokenizer and template; if that is not possible, estimate them.

        With a limit, the number for a longer prompt may be too low, but is at least the limit.

        Raises:
            InvalidRequest: the chat template rejects the prompt.
        """
        if isinstance(request.prompt, list):
            return PromptTokens(len(request.prompt))
        if self._window(model).counting is not None and _is_countable(request):
            is_small = _is_plain(request) and _bytes(request) <= INLINE_BYTES
            tokens = await self._counted(model, request, limit, inline=is_small)
            if tokens is not None:
                return PromptTokens(int(tokens), at_least=isinstance(tokens, AtLeast))
        return self.estimate(model, request, project_id)

    def estimate(self, model: str, request: GenerateRequest, project_id: int | None = None) -> PromptTokens:
        """Estimate the tokens of a prompt from its size, as those of the project's prompts."""
        return PromptTokens(self.estimates.estimate(model, request, project_id), estimated=True)

    def most_tokens(self, model: str, request: GenerateRequest) -> int | None:
        """A number of tokens that a prompt has at most, counted or as estimated; None if it has to be measured, because
        only rendering shows how large the definitions of tools and calls are."""
        if isinstance(request.prompt, list):
            return len(request.prompt)
        counting = self._window(model).counting
        if counting is None or not _is_countable(request):
            return most_tokens(request)
        return self._most_tokens(counting, request) if _is_plain(request) else None

    def has_fewer(self, model: str, request: GenerateRequest, tokens: int) -> bool:
        """Whether a prompt certainly has fewer tokens, by its size; False if it has to be measured."""
        is_counted = self._window(model).counting is not None and _is_plain(request)
        most = self.most_tokens(model, request) if is_counted or isinstance(request.prompt, list) else None
        return most is not None and most < tokens

    @staticmethod
    def _most_tokens(counting: Counting, request: GenerateRequest) -> int:
        if isinstance(request.prompt, list):
            return len(request.prompt)
        memo = current_memo()
        if not memo.has(counting, request):
            memo.put(counting, request, _most_tokens(counting, request))
        return memo.get(counting, request) or 0

    def note_refusal(self, model: str) -> None:
        """Note that a request was refused because of the length, which an upstream may have reported long ago."""
        if (source := self._window(model).source) is not None:
            self._refusals.add(source)

    def _window(self, model: str) -> Window:
        return self._windows.get(model, _UNKNOWN)

    async def _counted(self, model: str, request: GenerateRequest, limit: int | None, *, inline: bool) -> int | None:
        """Count a prompt, unless this was done before for the same request; None if that is not possible."""
        window, memo = self._window(model), current_memo()
        if window.counting is None:
            return None
        if not memo.has(window.tokenizer, request, limit):
            begun = memo.take_begun(window.tokenizer, request)
            count: Callable[[], int | None] = partial(window.counting.count, request, limit, memo.project_id)
            if begun is not None:
                count = partial(begun.up_to, limit)
            if inline:
                number = count()
            else:
                async with self._threads:
                    number = await asyncio.to_thread(count)
            memo.put(window.tokenizer, request, number)
        return memo.get(window.tokenizer, request)


def _counting(tokenizer: PromptTokenizer | None) -> Counting | None:
    match tokenizer:
        case WordTokenizer():
            return Counting(count_words, WordCounts(), lambda text: True)
        case TokenizerFiles(folder, renders_chat, template):
            counter = TokenCounter(folder, renders_chat=renders_chat, template=template)
            return Counting(counter.count, TemplateCounts(counter), counter.keeps, _template_tokens(counter))
        case None:
            return None


def _template_tokens(counter: TokenCounter) -> int:
    """The tokens of a conversation of a word; 0 if they cannot be counted here."""
    try:
        return counter.count(GenerateRequest(messages=[Message(role="user", content="x")])) or 0
    except InvalidRequest:  # the template rejects it
        return 0


def _most_tokens(counting: Counting, request: GenerateRequest) -> int:
    size = _bytes(request)
    kept = all(map(counting.keeps, _texts(request)))
    return TEMPLATE_TOKENS + counting.template_tokens + (size if kept else MOST_EXPANSION * size)


def _texts(request: GenerateRequest) -> Iterator[str]:
    if isinstance(request.prompt, str):
        yield request.prompt
    for message in request.messages or ():
        yield message.text


def _is_countable(request: GenerateRequest) -> bool:
    """Whether a prompt consists of texts and tools, and is rendered fast enough."""
    if _is_plain(request):
        return True
    if any(message.media for message in request.messages or ()):
        return False
    return request.size + request.options_size <= RENDERED_BYTES


def _is_plain(request: GenerateRequest) -> bool:
    return current_memo().once(is_plain, request)


def _bytes(request: GenerateRequest) -> int:
    return current_memo().once(_size, request)


def _size(request: GenerateRequest) -> int:
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return len((request.prompt or "").encode("utf-8", "surrogatepass"))
    return sum(len(item.text.encode("utf-8", "surrogatepass")) + MESSAGE_TOKENS for item in request.messages)
