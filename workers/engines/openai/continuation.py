"""Continues an interrupted answer: the text so far becomes the start of the assistant's message.

`continue_final_message` of https://docs.vllm.ai/en/latest/serving/openai_compatible_server/. The chat template cuts
white space at the end of such a message, and the model generates it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.config.models.openai import OpenAIModel
from shared.domain.request import ChatOptions, GenerateRequest, Message
from workers.engines.base import Prior


@dataclass(frozen=True, slots=True)
class Continuation:
    """The request for the rest of an answer. `space` ends the text so far, which has `tokens` tokens."""

    request: GenerateRequest
    space: str = ""
    tokens: int = 0


def continuation(request: GenerateRequest, prior: Prior, model: OpenAIModel) -> Continuation | None:
    """How the answer continues after `prior`; None if it cannot.

    It cannot if the text is not the whole state of the answer: reasoning, tool calls, structures, log probabilities,
    penalties and an echo start with it.
    """
    if not prior.deltas:
        return Continuation(request)
    if not (model.preset is not None and model.capabilities.prefill and _is_plain(request)):
        return None
    if any(delta.reasoning or delta.tool_calls or delta.opaque or delta.finish_reason for delta in prior.deltas):
        return None
    so_far = "".join(delta.text for delta in prior.deltas)
    if not so_far.strip():
        return None
    text, tokens = so_far.rstrip(), sum(delta.tokens for delta in prior.deltas)
    sampling = request.sampling
    if sampling.max_tokens is not None:
        if tokens >= sampling.max_tokens:
            return None
        sampling = sampling.model_copy(update={"max_tokens": sampling.max_tokens - tokens})
    if sampling.min_tokens:
        sampling = sampling.model_copy(update={"min_tokens": max(0, sampling.min_tokens - tokens)})
    chat = (request.chat or ChatOptions()).model_copy(
        update={"continue_final_message": True, "add_generation_prompt": False}
    )
    changed = {"messages": _with_text(request, text), "sampling": sampling, "chat": chat}
    return Continuation(request.model_copy(update=changed), so_far[len(text) :], tokens)


def _with_text(request: GenerateRequest, text: str) -> list[Message]:
    """The conversation with the text so far as the last message, or at its end if the request continues one."""
    messages = list(request.messages or ())
    if request.chat is not None and request.chat.continue_final_message and messages:
        last = messages.pop()
        return [*messages, last.model_copy(update={"content": last.text + text})]
    return [*messages, Message(role="assistant", content=text)]


def _is_plain(request: GenerateRequest) -> bool:
    sampling, chat = request.sampling, request.chat
    return (
        request.messages is not None
        and sampling.n == 1
        and not (sampling.presence_penalty or sampling.frequency_penalty or sampling.bad_words)
        and request.structured_outputs is None
        and request.logprobs is None
        and not request.echo
        and (chat is None or chat.tool_choice in (None, "none", "auto"))
    )
