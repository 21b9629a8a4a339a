"""Builds OpenAI response bodies from finished jobs. A `Dialect` holds the differences between chat and completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from api.http.money import dollars, total_of
from api.openai.logprobs import CompletionLogprobsBuilder, chat_logprobs
from api.openai.schemas import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from shared.domain.job import Choice, Job, Usage
from shared.domain.logprobs import prompt_entry_object
from shared.domain.opaque import TOOL_CALL, OpaquePart
from shared.domain.response import CHAT_ID_PREFIX, COMPLETION_ID_PREFIX
from shared.runtime.chunked_json import Mapped


@dataclass(frozen=True, slots=True)
class Dialect:
    """The differences between chat completions and plain completions."""

    prefix: str
    object: str
    chunk_object: str
    chat: bool

    def completion_id(self, job: Job) -> str:
        return self.prefix + job.id.removeprefix("job_")


CHAT = Dialect(CHAT_ID_PREFIX, "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Dialect(COMPLETION_ID_PREFIX, "text_completion", "text_completion", chat=False)


def usage_view(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=usage.cached_tokens, cache_write_tokens=usage.cache_write_tokens
        ),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=usage.reasoning_tokens)
        if usage.reasoning_tokens
        else None,
    )


def total(usages: Sequence[Usage]) -> Usage:
    """The total usage of several jobs."""
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.cache_write_tokens for usage in usages),
        sum(usage.cache_write_1h_tokens for usage in usages),
    )


def role_of(job: Job) -> str:
    """The role of the output: `assistant` or, as in vLLM, that of the last message if the request continues it."""
    request = job.request
    if request.chat is None or request.chat.add_generation_prompt or not request.messages:
        return "assistant"
    return request.messages[-1].role


def usage_body(usages: Sequence[Usage], cost: Decimal | None, *, include_cost: bool) -> dict[str, Any]:
    """The `CompletionUsage` of several jobs, with what they are charged if the client asks for it."""
    body = usage_view(total(usages)).model_dump()
    return {**body, "cost": dollars(cost)} if include_cost else body


def completion_body(dialect: Dialect, jobs: Sequence[Job], *, include_cost: bool = False) -> dict[str, Any]:
    """Build the `ChatCompletion` or `Completion` body of finished jobs, one per prompt."""
    first = jobs[0]
    choice_of = _chat_choice if dialect.chat else _text_choice
    choices = [
        {"index": index, **choice_of(job, choice)}
        for index, (job, choice) in enumerate((job, choice) for job in jobs for choice in job.output)
    ]
    body: dict[str, Any] = {
        "id": dialect.completion_id(first),
        "object": dialect.object,
        "created": int(first.created_at.timestamp()),
        "model": first.model,
        "choices": choices,
        "system_fingerprint": first.fingerprint,
        "usage": usage_body(
            [job.usage for job in jobs if job.usage is not None],
            total_of(job.charge for job in jobs),
            include_cost=include_cost,
        ),
    }
    if dialect.chat:
        body["prompt_logprobs"] = _prompt_logprobs(first)
    return body


def _chat_choice(job: Job, choice: Choice) -> dict[str, Any]:
    no_text = not choice.text and (choice.tool_calls or choice.reasoning)
    message: dict[str, Any] = {
        "role": role_of(job),
        "content": None if no_text else choice.text,
        "refusal": None,
        "reasoning": choice.reasoning,
    }
    of_calls = {part.call_id: part for part in choice.opaque if part.kind == TOOL_CALL}
    if details := reasoning_details([part for part in choice.opaque if part.kind != TOOL_CALL]):
        message["reasoning_details"] = details
    if choice.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
                **(extra_content(part) if (part := of_calls.get(call.id)) is not None else {}),
            }
            for call in choice.tool_calls
        ]
    top = job.request.logprobs
    return {
        "message": message,
        "logprobs": None if top is None or choice.logprobs is None else chat_logprobs(choice.logprobs, top),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


def reasoning_details(parts: Sequence[OpaquePart], first: int = 0) -> list[dict[str, Any]]:
    """Opaque parts in the form of OpenRouter's API; `first` is the index of the first one.

    All are of the type that has no text, because clients join consecutive details with text and lose a signature then.
    """
    return [
        {"type": "reasoning.encrypted", "data": part.encoded(), "format": "unknown", "index": index}
        for index, part in enumerate(parts, first)
    ]


def extra_content(part: OpaquePart) -> dict[str, Any]:
    """The opaque part of a tool call, as a member of the call, in the form of Google's OpenAI-compatible API."""
    return {"extra_content": {"google": {"thought_signature": part.encoded()}}}


def _text_choice(job: Job, choice: Choice) -> dict[str, Any]:
    top = job.request.logprobs
    has_logprobs = top is not None and choice.logprobs is not None
    return {
        "text": choice.text,
        "logprobs": CompletionLogprobsBuilder(top or 0).build(choice.logprobs or ()) if has_logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "prompt_logprobs": _prompt_logprobs(job),
    }


def _prompt_logprobs(job: Job) -> Sequence[dict[str, Any] | None] | None:
    stored = job.output[0].prompt_logprobs
    return None if stored is None else Mapped(stored, prompt_entry_object)
