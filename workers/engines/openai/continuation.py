"""Continues an interrupted answer: the text so far becomes the start of the assistant's message, or of a raw prompt.

vLLM and SGLang have `continue_final_message` for this: https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import ChatOptions, GenerateRequest, Message
from workers.engines.base import Prior
from workers.engines.upstream.chat.stream import StreamParser
from workers.engines.upstream.estimated_tokens import counted_tokens, fewest_tokens


def can_continue(request: GenerateRequest, prior: Prior) -> bool:
    """Whether the upstream can continue the answer after `prior`.

    The state of a structured output, of tool calls and of reasoning is not in the text.
    """
    if request.sampling.n != 1 or request.structured_outputs is not None or request.echo or request.prompt_only:
        return False
    if isinstance(request.prompt, list) or (request.chat is not None and request.chat.tools):
        return False
    return all(map(_is_text, prior.deltas))


def continued_request(request: GenerateRequest, prior: Prior) -> GenerateRequest:
    """The request for the rest of the answer.

    Chat templates may drop white space at the end, so it is not sent: the model generates it again.
    """
    text, tokens = _text(prior).rstrip(), fewest_tokens(prior.deltas)
    sampling = request.sampling.model_copy(update={"min_tokens": max(0, request.sampling.min_tokens - tokens)})
    if sampling.max_tokens is not None:
        sampling.max_tokens = max(1, sampling.max_tokens - tokens)
    if request.messages is None:
        return request.model_copy(update={"sampling": sampling, "prompt": f"{request.prompt or ''}{text}"})
    messages, chat = list(request.messages), request.chat or ChatOptions()
    if chat.continue_final_message:
        text = messages.pop().text + text
    messages.append(Message(role="assistant", content=text))
    chat = chat.model_copy(update={"continue_final_message": True, "add_generation_prompt": False})
    return request.model_copy(update={"sampling": sampling, "messages": messages, "chat": chat})


class ContinuedParser(StreamParser):
    """The parser of the rest of an answer."""

    def __init__(self, prior: Prior, **options: Any) -> None:
        super().__init__(1, **options)
        text = _text(prior)
        # White space that the answer has already, and that the model may generate again.
        self._space = text[len(text.rstrip()) :]
        self._prior_tokens = counted_tokens(prior.deltas)

    @property
    def usage(self) -> Usage | None:
        """The usage as if the answer had not been interrupted: its first part was in the prompt."""
        usage = super().usage
        if usage is None:
            return None
        prompt = max(usage.prompt_tokens - self._prior_tokens, usage.cached_tokens)
        return replace(usage, prompt_tokens=prompt, completion_tokens=usage.completion_tokens + self._prior_tokens)

    def feed(self, data: bytes) -> Iterator[Delta]:
        return map(self._without_space, super().feed(data))

    def end(self) -> Iterator[Delta]:
        return map(self._without_space, super().end())

    def _without_space(self, delta: Delta) -> Delta:
        while self._space and delta.text:
            if not delta.text.startswith(self._space[0]):
                self._space = ""
                break
            delta.text, self._space = delta.text[1:], self._space[1:]
        return delta


def _is_text(delta: Delta) -> bool:
    return bool(delta.text.strip()) and not (delta.reasoning or delta.tool_calls or delta.opaque)


def _text(prior: Prior) -> str:
    return "".join(delta.text for delta in prior.deltas)
