"""Chat Completions, streamed.

https://platform.openai.com/docs/api-reference/chat/create, https://platform.openai.com/docs/api-reference/chat-streaming
and https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson
from aiohttp import web

from shared.config.models.openai import OpenAIModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Vendor, pieces


class OpenAIVendor(Vendor):
    """Chat Completions."""

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.post("/v1/chat/completions", self._chat)]

    def spec(self, **options: Any) -> OpenAIModel:
        entry = {"base_url": f"{self.url}/v1", "api_key_env": KEY_ENV, **options}
        return OpenAIModel.model_validate({"name": "up", "engine": "openai", "model": "theirs", "options": entry})

    def error(self, script: Script) -> Any:
        return {"error": {"message": script.message, "type": "server_error", "param": None, "code": None}}

    def stops_of(self, body: Any) -> list[str]:
        stops: list[str] = body["stop"]
        return stops

    def schema_of(self, body: Any) -> Any:
        return body["response_format"]["json_schema"]["schema"]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        script = self.next_script()
        return self.refusal(script) or await self.stream(request, self.frames(script), script)

    async def frames(self, script: Script) -> AsyncIterator[bytes]:
        if script.noise:
            yield b": a comment\n\nid: 7\nretry: 10\nx-unknown: field\n\n"
            yield _frame({"object": "chat.completion.moderation", "choices": [], "moderation": {"flagged": False}})
        yield _chunk({"role": "assistant", "content": ""})
        for kind, piece in pieces(script):
            if kind == "error":
                yield _frame(self.error(script))
                return
            yield _chunk({"reasoning" if kind == "reasoning" else "content": piece})
        for index, call in enumerate(script.calls):
            function = {"name": call.name, "arguments": ""}
            yield _chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
            for half in (call.arguments[:5], call.arguments[5:]):
                yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": half}}]})
        yield _chunk({}, script.finish)
        usage = script.usage
        yield _frame(
            {
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                    "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
                },
            }
        )
        yield b"data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _frame({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "theirs-0613", "choices": [choice]})


def _frame(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
