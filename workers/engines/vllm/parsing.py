"""Parses the output of one choice into text, reasoning and tool calls with vLLM's parsers.

The parser is fed one token at a time, however many arrive together. Its state therefore follows from the tokens alone,
and the next worker rebuilds it from the tokens in the log.
"""

from __future__ import annotations

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionRequest,
)
from vllm.parser.abstract_parser import Parser

from shared.domain.events import CallDelta, Delta
from workers.engines.base import EngineError


class Parsing:
    """A parser with state, and the request whose answer it parses."""

    def __init__(self, parser: Parser, request: ChatCompletionRequest, prompt: list[int]) -> None:
        self._parser = parser
        self._request = request
        self._prompt = prompt
        self._called = False

    @property
    def ends_in_tool_calls(self) -> bool:
        """Whether the finish reason "stop" becomes "tool_calls". vLLM and OpenAI keep "stop" for a named tool."""
        return self._called and not isinstance(self._request.tool_choice, ChatCompletionNamedToolChoiceParam)

    @property
    def hides_tokens(self) -> bool:
        """Whether logprobs are omitted because their tokens would reveal reasoning that the client excluded."""
        return not self._request.include_reasoning

    def feed(self, delta: Delta, *, finished: bool) -> Delta:
        """Parse a delta of at most one token.

        Raises:
            EngineError: the parser failed.
        """
        try:
            message = self._parser.parse_delta(
                delta.text, list(delta.token_ids), self._request, self._prompt, finished=finished
            )
        except Exception as error:
            raise EngineError(f"the model's output could not be parsed: {type(error).__name__}: {error}") from error
        if message is None:
            return Delta(delta.index, token_ids=delta.token_ids)
        self._called = self._called or bool(message.tool_calls)
        calls = tuple(
            CallDelta(
                call.index,
                call.id,
                call.function.name if call.function else None,
                (call.function.arguments if call.function else None) or "",
            )
            for call in message.tool_calls or ()
            if self._request.parallel_tool_calls is not False or call.index == 0
        )
        return Delta(
            delta.index, message.content or "", delta.token_ids, reasoning=message.reasoning or "", tool_calls=calls
        )
