"""Chat Completions and Completions, streamed.

https://platform.openai.com/docs/api-reference/chat/create, https://platform.openai.com/docs/api-reference/chat-streaming,
https://platform.openai.com/docs/api-reference/completions/create and
https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, ClassVar

import orjson
from aiohttp import web

from shared.config.models.capabilities import Modality
from shared.config.models.openai import OpenAIModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Seen, Vendor, pieces


class OpenAIVendor(Vendor):
    """A server without a preset. Subclasses are the presets."""

    raw_prompts = True
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "file")
    # The path of its API, and the preset of the model.
    prefix: ClassVar[str] = "/v1"
    preset: ClassVar[str | None] = None
    # The member of a delta with reasoning.
    reasoning_field: ClassVar[str] = "reasoning"

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post(f"{self.prefix}/chat/completions", self._chat),
            web.post(f"{self.prefix}/completions", self._completions),
        ]

    def spec(self, **options: Any) -> OpenAIModel:
        entry = {"base_url": f"{self.url}{self.prefix}", "api_key_env": KEY_ENV, **options}
        values = {"name": "up", "engine": "openai", "model": "theirs", "options": entry}
        if self.preset is None:
            return OpenAIModel.model_validate(values | {"modalities": ["text", *self.modalities]})
        return OpenAIModel.model_validate(values | {"preset": self.preset})

    def error(self, script: Script) -> Any:
        return {"error": {"message": script.message, "type": "server_error", "param": None, "code": None}}

    def error_event(self, script: Script) -> Any:
        """An error in an answer that has begun."""
        return self.error(script)

    def problem(self, seen: Seen) -> Script | None:
        """The refusal of a request that the vendor's API does not accept."""
        return None

    def stops_of(self, body: Any) -> list[str]:
        stops: list[str] = body["stop"]
        return stops

    def schema_of(self, body: Any) -> Any:
        return body["response_format"]["json_schema"]["schema"]

    def media_of(self, body: Any) -> list[str]:
        return media_of_chat(body["messages"])

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        script = self.next_script()
        refusal = self.refusal(self.problem(seen) or script)
        return refusal or await self.stream(request, self.frames(script), script)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        assert "prompt" in seen.body
        script = self.next_script()
        refusal = self.refusal(self.problem(seen) or script)
        return refusal or await self.stream(request, self.text_frames(script), script)

    async def frames(self, script: Script) -> AsyncIterator[bytes]:
        """The events of a chat."""
        if script.noise:
            yield b": a comment\n\nid: 7\nretry: 10\nx-unknown: field\n\n"
            yield frame({"object": "chat.completion.moderation", "choices": [], "moderation": {"flagged": False}})
        for event in self.opening():
            yield event
        for kind, piece in pieces(script):
            if kind == "error":
                yield frame(self.error_event(script))
                return
            yield chunk(self.reasoning_delta(piece) if kind == "reasoning" else {"content": piece})
        for index, call in enumerate(script.calls):
            function = {"name": call.name, "arguments": ""}
            opening = {"index": index, "id": call.id, "type": "function", "function": function}
            yield chunk({"tool_calls": [opening | self.call_extras(index)]})
            for half in (call.arguments[:5], call.arguments[5:]):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": half}}]})
        yield chunk({}, self.finish_reason(script))
        if (usage := self.usage_of(script)) is not None:
            yield frame({"object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def text_frames(self, script: Script) -> AsyncIterator[bytes]:
        """The events of a completion."""
        for kind, piece in pieces(script):
            if kind == "error":
                yield frame(self.error_event(script))
                return
            yield _text_chunk(piece)
        yield _text_chunk("", self.finish_reason(script))
        if (usage := self.usage_of(script)) is not None:
            yield frame({"object": "text_completion", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    # What presets send differently

    def opening(self) -> Iterable[bytes]:
        """The events before the first token."""
        yield chunk({"role": "assistant", "content": ""})

    def reasoning_delta(self, piece: str) -> dict[str, Any]:
        return {self.reasoning_field: piece}

    def call_extras(self, index: int) -> dict[str, Any]:
        """Further members of the first fragment of a tool call."""
        return {}

    def finish_reason(self, script: Script) -> str:
        return script.finish

    def usage_of(self, script: Script) -> dict[str, Any] | None:
        """The usage of an answer; None if it is not reported."""
        usage = script.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }


def media_of_chat(messages: Any) -> list[str]:
    """The URLs of images and the data of files in messages as Chat Completions has them."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    media = []
    for part in (part for content in contents for part in content):
        if part["type"] == "image_url":
            media.append(part["image_url"]["url"])
        elif part["type"] == "file":
            media.append(part["file"]["file_data"])
    return media


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    """An event of a chat with one choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return frame(
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "theirs-0613", "choices": [choice], **more}
    )


def frame(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _text_chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return frame({"id": "cmpl-1", "object": "text_completion", "model": "theirs-0613", "choices": [choice]})
