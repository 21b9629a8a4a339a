"""A job's events as OpenAI's chunks, streamed and whole. Two faces differ in little: a `Face` says in what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from api.openai.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    CompletionUsage,
    PromptTokensDetails,
)
from shared.errors import HeadraceError
from shared.events import Event, EventType
from shared.job import Job, Usage


class CannotRestart(HeadraceError):
    """The job was started again after text had been sent; this kind of stream cannot take text back."""


def usage_view(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )


@dataclass(frozen=True, slots=True)
class Face:
    """What tells a chat completion from a plain one."""

    prefix: str
    chunk_object: str
    chat: bool

    def completion_id(self, job: Job) -> str:
        return self.prefix + job.id.removeprefix("job_")

    def first_choices(self, job: Job) -> list[dict[str, Any]]:
        """The choices of the chunk that opens a stream; none for plain completions."""
        if not self.chat:
            return []
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for index in range(job.request.sampling.n)
        ]

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


CHAT = Face("chatcmpl-", "chat.completion.chunk", chat=True)
TEXT = Face("cmpl-", "text_completion", chat=False)


def whole(face: Face, job: Job) -> ChatCompletion | Completion:
    """A finished job as one answer."""
    assert job.usage is not None
    common: dict[str, Any] = {
        "id": face.completion_id(job),
        "created": int(job.created_at.timestamp()),
        "model": job.model,
        "usage": usage_view(job.usage),
    }
    if face.chat:
        chat = [
            ChatChoice(
                index=choice.index,
                message=AssistantMessage(content=choice.text),
                finish_reason=choice.finish_reason,
            )
            for choice in job.output
        ]
        return ChatCompletion(choices=chat, **common)
    texts = [
        CompletionChoice(
            index=choice.index,
            text=choice.text,
            finish_reason=choice.finish_reason,
        )
        for choice in job.output
    ]
    return Completion(choices=texts, **common)


async def frames(
    face: Face, job: Job, events: AsyncIterator[list[Event]], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """A job's events as `data:` frames, ending with `[DONE]`, or with an error frame where the job failed."""
    chunks = _Chunks(face, job, include_usage=include_usage)
    async for batch in events:
        if made := b"".join(map(chunks.of, batch)):
            yield made
        if chunks.broken:
            return


class _Chunks:
    """One stream's chunks. `broken`: it has told its reader that it cannot go on."""

    def __init__(self, face: Face, job: Job, *, include_usage: bool) -> None:
        self._face = face
        self._job = job
        self._include_usage = include_usage
        self._head: dict[str, Any] = {
            "id": face.completion_id(job),
            "object": face.chunk_object,
            "created": int(job.created_at.timestamp()),
            "model": job.model,
        }
        self._usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._sent_text = False
        self.broken = False

    def of(self, event: Event) -> bytes:
        """The frames of an event; none for some, nor after the stream is broken."""
        match event.type:
            case _ if self.broken:
                return b""
            case EventType.DELTA:
                self._sent_text = True
                payload = event.payload()
                return self._frame([self._face.choice(payload["index"], payload["text"], payload.get("finish_reason"))])
            case EventType.STARTED:
                choices = self._face.first_choices(self._job)
                return self._frame(choices) if choices and not self._sent_text else b""
            case EventType.RESTARTED if self._sent_text:
                self.broken = True
                return _error(CannotRestart().message, "worker_lost")
            case EventType.RESTARTED:
                return b""
            case EventType.COMPLETED | EventType.INCOMPLETE:
                counted = Usage(**event.payload()["usage"])
                last = self._frame([], usage=usage_view(counted).model_dump()) if self._include_usage else b""
                return last + b"data: [DONE]\n\n"
            case _:
                error = event.payload()["error"]
                return _error(error["message"], error["code"])

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: %b\n\n" % orjson.dumps({**self._head, "choices": choices, **self._usage, **more})


def _error(message: str, code: str) -> bytes:
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return b"data: %s\n\n" % orjson.dumps(body)
