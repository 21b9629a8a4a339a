"""Finished jobs as OpenAI's answers. Two faces differ in little: a `Face` says in what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.openai.logprobs import CompletionLogprobsOf, chat_logprobs
from api.openai.schemas import CompletionUsage, PromptTokensDetails
from shared.domain.job import Choice, Job, Usage


@dataclass(frozen=True, slots=True)
class Dialect:
    """What tells a chat completion from a plain one."""

    prefix: str
    whole_object: str
    chunk_object: str
    chat: bool

    def completion_id(self, job: Job) -> str:
        return self.prefix + job.id.removeprefix("job_")


CHAT = Dialect("chatcmpl-", "chat.completion", "chat.completion.chunk", chat=True)
TEXT = Dialect("cmpl-", "text_completion", "text_completion", chat=False)


def usage_view(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )


def total(usages: Sequence[Usage]) -> Usage:
    """What several jobs used together."""
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
    )


def role_of(job: Job) -> str:
    """Who speaks: the assistant, or whoever's last message is gone on with, as vLLM has it."""
    request = job.request
    if request.chat is None or request.chat.add_generation_prompt or not request.messages:
        return "assistant"
    return request.messages[-1].role


def completion_body(face: Dialect, jobs: Sequence[Job]) -> dict[str, Any]:
    """Finished jobs, one for each prompt, as one answer: `ChatCompletion` or `Completion` in `api.openai.schemas`."""
    first = jobs[0]
    choice_of = _chat_choice if face.chat else _text_choice
    choices = [
        {"index": index, **choice_of(job, choice)}
        for index, (job, choice) in enumerate((job, choice) for job in jobs for choice in job.output)
    ]
    answer: dict[str, Any] = {
        "id": face.completion_id(first),
        "object": face.whole_object,
        "created": int(first.created_at.timestamp()),
        "model": first.model,
        "choices": choices,
        "system_fingerprint": first.fingerprint,
        "usage": usage_view(total([job.usage for job in jobs if job.usage is not None])).model_dump(),
    }
    if face.chat:
        answer["prompt_logprobs"] = first.output[0].prompt_logprobs
    return answer


def _chat_choice(job: Job, choice: Choice) -> dict[str, Any]:
    said_nothing = not choice.text and (choice.tool_calls or choice.reasoning)
    message: dict[str, Any] = {
        "role": role_of(job),
        "content": None if said_nothing else choice.text,
        "refusal": None,
        "reasoning": choice.reasoning,
    }
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    top = job.request.logprobs
    return {
        "message": message,
        "logprobs": None if top is None or choice.logprobs is None else chat_logprobs(choice.logprobs, top),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


def _text_choice(job: Job, choice: Choice) -> dict[str, Any]:
    top = job.request.logprobs
    known = top is not None and choice.logprobs is not None
    return {
        "text": choice.text,
        "logprobs": CompletionLogprobsOf(top or 0).of(choice.logprobs or ()) if known else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "prompt_logprobs": job.output[0].prompt_logprobs,
    }
