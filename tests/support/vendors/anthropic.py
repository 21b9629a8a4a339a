"""Messages, streamed.

https://platform.claude.com/docs/en/api/messages, https://platform.claude.com/docs/en/build-with-claude/streaming and
https://platform.claude.com/docs/en/api/errors
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import orjson
from aiohttp import web

from shared.config.models.anthropic import AnthropicModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Vendor, pieces

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_COUNTED = {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control"}
REQUEST_ID = "req_018EeWyXxfu5pfWkrYcMdjWG"


class AnthropicVendor(Vendor):
    """Messages. The signature of a thinking block is `sig` and the number of the block."""

    modalities = ("image", "file")

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.post("/v1/messages", self._messages), web.post("/v1/messages/count_tokens", self._count)]

    def spec(self, **options: Any) -> AnthropicModel:
        entry = {"base_url": f"{self.url}/v1", "api_key_env": KEY_ENV, **options}
        entry = {"name": "up", "engine": "anthropic", "model": "claude-haiku-4-5", "options": entry}
        return AnthropicModel.model_validate(entry)

    def error(self, script: Script) -> Any:
        kind = _ERROR_TYPES.get(script.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": script.message}, "request_id": REQUEST_ID}

    def stops_of(self, body: Any) -> list[str]:
        stops: list[str] = body["stop_sequences"]
        return stops

    def schema_of(self, body: Any) -> Any:
        return body["output_config"]["format"]["schema"]

    def media_of(self, body: Any) -> list[str]:
        blocks = [block for turn in body["messages"] for block in turn["content"] if "source" in block]
        return [f"data:{source['media_type']};base64,{source['data']}" for source in (b["source"] for b in blocks)]

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        script = self.next_script()
        if (refusal := problem(seen.body, seen.headers)) is not None:
            script = Script(status=400, message=refusal)
        return self.refusal(script) or await self.stream(request, self._frames(script), script)

    async def _count(self, request: web.Request) -> web.Response:
        """https://platform.claude.com/docs/en/build-with-claude/token-counting"""
        seen = await self.record(request)
        if unknown := seen.body.keys() - _COUNTED:
            script = Script(status=400, message=f"{sorted(unknown)[0]}: Extra inputs are not permitted")
            return self.refusal(script) or web.Response()
        return web.json_response({"input_tokens": 2095})

    async def _frames(self, script: Script) -> AsyncIterator[bytes]:
        usage = script.usage
        first = {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens,
            "cache_creation_input_tokens": usage.cache_write_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.cache_write_tokens - usage.cache_write_1h_tokens,
                "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
            },
            "output_tokens": 1,
            "service_tier": usage.service_tier or "standard",
        }
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5-20251001"}
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        yield _frame("message_start", message=message | nothing | {"usage": first})
        yield _frame("ping")
        if script.noise:
            yield b": a comment\n\nid: 7\nretry: 10\nx-unknown: field\n\n"
            yield _frame("a_new_event", text="hidden")
        blocks = _Blocks()
        for kind, piece in pieces(script):
            if kind == "error":
                yield _frame("error", **{name: value for name, value in self.error(script).items() if name != "type"})
                return
            for frame in blocks.add("thinking" if kind == "reasoning" else kind, piece):
                yield frame
            if script.noise:
                citation = {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "hidden"}}
                yield _frame("content_block_delta", index=blocks.index, delta=citation)
        for call in script.calls:
            for frame in blocks.call(call.id, call.name, call.arguments):
                yield frame
        for frame in blocks.close():
            yield frame
        last: dict[str, Any] = {"output_tokens": usage.completion_tokens}
        if usage.reasoning_tokens:
            last["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
        delta = {"stop_reason": _STOP_REASONS[script.finish], "stop_sequence": None}
        yield _frame("message_delta", delta=delta, usage=last)
        yield _frame("message_stop")


class _Blocks:
    """The content blocks of a message."""

    def __init__(self) -> None:
        self.index = -1
        self._kind = ""

    def add(self, kind: str, piece: str) -> Iterator[bytes]:
        """A piece of text or thinking, in a block of its kind."""
        if kind != self._kind:
            more = {"signature": ""} if kind == "thinking" else {}
            yield from self._open(kind, {"type": kind, kind: "", **more})
        yield self._delta(type=f"{kind}_delta", **{kind: piece})

    def call(self, call_id: str, name: str, arguments: str) -> Iterator[bytes]:
        yield from self._open("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})
        for half in ("", arguments[:5], arguments[5:]):
            yield self._delta(type="input_json_delta", partial_json=half)

    def close(self) -> Iterator[bytes]:
        if self._kind == "thinking":
            yield self._delta(type="signature_delta", signature=f"sig{self.index}")
        if self._kind:
            yield _frame("content_block_stop", index=self.index)
        self._kind = ""

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.close()
        self._kind = kind
        self.index += 1
        yield _frame("content_block_start", index=self.index, content_block=block)

    def _delta(self, **delta: str) -> bytes:
        return _frame("content_block_delta", index=self.index, delta=delta)


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def problem(body: Any, headers: Any) -> str | None:
    """What the API refuses in a request, as far as its pages say so."""
    if "anthropic-version" not in headers:
        return "anthropic-version: header is required"
    if not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required"
    turns = body["messages"]
    blocks = [*body.get("system", []), *body.get("tools", []), *(block for turn in turns for block in turn["content"])]
    if sum("cache_control" in block for block in blocks) > 4:
        return "A maximum of 4 blocks with cache_control may be provided."
    if any(block.get("type") == "text" and not block["text"].strip() for block in blocks):
        return "messages: text content blocks must contain non-whitespace text"
    called: set[str] = set()
    for position, turn in enumerate(turns):
        results = {block["tool_use_id"] for block in turn["content"] if block["type"] == "tool_result"}
        if called - results:
            return f"messages.{position}: `tool_use` ids were found without `tool_result` blocks immediately after"
        called = {block["id"] for block in turn["content"] if block["type"] == "tool_use"}
    if (refused := _refused_values(body)) is not None:
        return refused
    last = turns[-1]
    if last["role"] == "assistant" and _thinks(body):
        return "messages: the final block of the last message may not be of the assistant if thinking is enabled"
    if last["role"] == "assistant" and last["content"][-1].get("text", "x")[-1:].isspace():
        return "messages: final assistant content cannot end with trailing whitespace"
    return None


def _thinks(body: Any) -> bool:
    return body.get("thinking", {}).get("type") in ("enabled", "adaptive")


def _refused_values(body: Any) -> str | None:
    """Values, and combinations with thinking."""
    if any(not text.strip() for text in body.get("stop_sequences", ())):
        return "stop_sequences: each stop sequence must contain non-whitespace"
    if body.get("temperature", 1) > 1:
        return "temperature: range: 0..1"
    if not _thinks(body):
        return None
    budget = body["thinking"].get("budget_tokens")
    if budget is not None and not 1024 <= budget < body["max_tokens"]:
        return "thinking.budget_tokens: must be at least 1024 and less than max_tokens"
    if body.get("temperature", 1) != 1 or "top_k" in body or body.get("top_p", 1) < 0.95:
        return "temperature may only be set to 1 when thinking is enabled"
    if body.get("tool_choice", {}).get("type") in ("any", "tool"):
        return "Thinking may not be enabled when tool_choice forces tool use."
    return None
