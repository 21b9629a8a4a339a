"""OpenAI's Responses API, streamed and in the background.

https://platform.openai.com/docs/api-reference/responses, https://platform.openai.com/docs/api-reference/responses-streaming
and https://platform.openai.com/docs/guides/background; members as in the types of the `openai` package.

Responses are kept: a closed connection does not end one, its stream can be read again from any event, and
`POST /responses/{id}/cancel` ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import orjson
from aiohttp import web

from shared.config.models.openai import OpenAIModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Cut, Vendor, pieces

ENCRYPTED = "reasoning.encrypted_content"
REFUSED = "include: Encrypted content is not supported with this model."


@dataclass(eq=False)
class Stored:
    """A response: its events so far, the object that they describe, and after how many events its stream is cut."""

    id: str
    events: list[dict[str, Any]] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    cut_at: int | None = None
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.body["status"] not in ("queued", "in_progress")

    async def add(self, kind: str, **members: Any) -> None:
        async with self.grown:
            self.events.append({"type": f"response.{kind}", "sequence_number": len(self.events), **members})
            self.grown.notify_all()


class ResponsesVendor(Vendor):
    """Responses. `gate` is awaited before each piece of text, if it is set."""

    resumes: ClassVar[bool] = True
    stops: ClassVar[bool] = False
    modalities = ("image", "file")

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Stored] = {}
        self.gate: asyncio.Semaphore | None = None
        # Whether streams can be resumed.
        self.streams_again = True
        self._goes_on = asyncio.Event()
        # Whether the model does not reason, so that encrypted reasoning cannot be requested.
        self.refuses_reasoning = False
        # Whether responses cannot be cancelled.
        self.failing_cancels = False
        # The encrypted content of reasoning items.
        self.encrypted = "gAAAA-1"

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v1/responses", self._create),
            web.get("/v1/responses/{id}", self._get),
            web.post("/v1/responses/{id}/cancel", self._cancel),
        ]

    def spec(self, **options: Any) -> OpenAIModel:
        entry = {"base_url": f"{self.url}/v1", "api_key_env": KEY_ENV, **options}
        values = {"name": "up", "engine": "openai", "preset": "openai", "api": "responses", "model": "theirs"}
        return OpenAIModel.model_validate({**values, "options": entry})

    def error(self, script: Script) -> Any:
        return {"error": {"message": script.message, "type": "server_error", "param": None, "code": None}}

    def schema_of(self, body: Any) -> Any:
        return body["text"]["format"]["schema"]

    def media_of(self, body: Any) -> list[str]:
        contents = [item["content"] for item in body["input"] if isinstance(item["content"], list)]
        parts = [part for content in contents for part in content]
        return [part[name] for part in parts for name in ("image_url", "file_data") if name in part]

    def left(self) -> None:
        """A closed connection means nothing."""

    async def go_on(self) -> None:
        self._goes_on.set()

    def forget(self) -> None:
        self.stored.clear()

    async def _create(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        if self.refuses_reasoning and ENCRYPTED in seen.body.get("include", ()):
            return _error(400, REFUSED)
        script = self.next_script()
        if (refusal := self.refusal(script)) is not None:
            return refusal
        assert seen.body["background"]
        assert seen.body["stream"]
        assert seen.body["store"]
        stored = Stored(f"resp_{self.generated}")
        stored.body = {
            "id": stored.id, "object": "response", "created_at": 1, "status": "queued", "background": True,
            "error": None, "incomplete_details": None, "model": "theirs-0613", "output": [], "usage": None,
        }  # fmt: skip
        self.stored[stored.id] = stored
        stored.task = asyncio.create_task(self._generate(stored, script))
        return await self.stream(request, self._frames(stored, 0, script), script)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        seen = await self.record(request)
        stored = self.stored.get(request.match_info["id"])
        if stored is None:
            return _error(404, f"Response with id '{request.match_info['id']}' not found.")
        if self.refuses_reasoning and ENCRYPTED in request.query.getall("include[]", []):
            return _error(400, REFUSED)
        if seen.query.get("stream") != "true":
            return web.json_response(stored.body)
        if not self.streams_again:
            return _error(400, "This response cannot be streamed.")
        after = int(seen.query.get("starting_after", -1))
        return await self.stream(request, self._frames(stored, after + 1, None), Script())

    async def _cancel(self, request: web.Request) -> web.Response:
        await self.record(request)
        stored = self.stored.get(request.match_info["id"])
        if stored is None:
            return _error(404, "not found")
        if self.failing_cancels:
            return _error(500, "the reason")
        self.cancelled.set()
        assert stored.task is not None
        stored.task.cancel()
        stored.body["status"] = "cancelled"
        async with stored.grown:
            stored.grown.notify_all()
        return web.json_response(stored.body)

    async def _frames(self, stored: Stored, start: int, script: Script | None) -> AsyncIterator[bytes]:
        """The events from a position, and those that follow. `script`: that of the first connection."""
        if script is not None and script.noise:
            yield b": a comment\n\nid: 7\nretry: 10\nx-unknown: field\n\n"
        position = start
        while True:
            async with stored.grown:
                while len(stored.events) == position and not stored.ended:
                    if script is not None and position == stored.cut_at:
                        raise Cut
                    await stored.grown.wait()
            for event in stored.events[position:]:
                if script is not None and position == stored.cut_at:
                    raise Cut
                position += 1
                yield b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
            if stored.ended and position == len(stored.events):
                return

    async def _generate(self, stored: Stored, script: Script) -> None:
        """Create the events of a response."""
        body, output = stored.body, stored.body["output"]
        await stored.add("created", response=_copy(body))
        if script.noise:
            await stored.add("rate_limits.updated", limits={"left": 3})
        body["status"] = "in_progress"
        await stored.add("in_progress", response=_copy(body))
        message: dict[str, Any] | None = None
        reasoning: dict[str, Any] | None = None
        texts = 0
        for kind, piece in pieces(replace(script, cut_after=None, hang_after=None)):
            if kind == "error":
                await self._end(stored, "failed", error={"code": "server_error", "message": script.message})
                return
            if kind == "text" and texts == script.hang_after:
                await self._goes_on.wait()
            if kind == "reasoning":
                if reasoning is None:
                    reasoning = {
                        "id": "rs_1",
                        "type": "reasoning",
                        "summary": [{"type": "summary_text", "text": ""}],
                    }
                    output.append(reasoning)
                    await stored.add("output_item.added", output_index=0, item={**reasoning, "summary": []})
                    await stored.add("reasoning_summary_part.added", item_id="rs_1", output_index=0, summary_index=0)
                reasoning["summary"][0]["text"] += piece
                await stored.add("reasoning_summary_text.delta", item_id="rs_1", output_index=0, delta=piece)
                continue
            if reasoning is not None and message is None:
                await self._end_reasoning(stored, reasoning)
            if message is None:
                message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
                output.append(message)
                await stored.add("output_item.added", output_index=len(output) - 1, item=_copy(message))
                message["content"].append({"type": "output_text", "text": "", "annotations": []})
            if self.gate is not None:
                await self.gate.acquire()
            message["content"][0]["text"] += piece
            texts += 1
            if texts == script.cut_after:
                stored.cut_at = len(stored.events) + 1
            place = {"item_id": "msg_1", "output_index": len(output) - 1, "content_index": 0}
            await stored.add("output_text.delta", **place, delta=piece, logprobs=[], obfuscation="x")
        if texts == script.hang_after:
            await self._goes_on.wait()
        if message is not None:
            await stored.add("output_item.done", output_index=len(output) - 1, item=_copy(message))
        for call in script.calls:
            members = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name}
            index = len(output)
            await stored.add("output_item.added", output_index=index, item={**members, "arguments": ""})
            for half in (call.arguments[:5], call.arguments[5:]):
                await stored.add("function_call_arguments.delta", item_id=members["id"], output_index=index, delta=half)
                if script.cut_after == 0 and stored.cut_at is None:
                    stored.cut_at = len(stored.events)
            done = {**members, "arguments": call.arguments}
            await stored.add("function_call_arguments.done", output_index=index, arguments=call.arguments)
            output.append(done)
            await stored.add("output_item.done", output_index=index, item=done)
        usage = script.usage
        body["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        if script.finish in reasons:
            await self._end(stored, "incomplete", incomplete_details={"reason": reasons[script.finish]})
        else:
            await self._end(stored, "completed")

    async def _end_reasoning(self, stored: Stored, item: dict[str, Any]) -> None:
        item["encrypted_content"] = self.encrypted
        await stored.add("output_item.done", output_index=0, item=_copy(item))

    async def _end(self, stored: Stored, status: str, **members: Any) -> None:
        stored.body |= members
        response = {**_copy(stored.body), "status": status}
        await stored.add(status, response=response)
        stored.body["status"] = status
        async with stored.grown:
            stored.grown.notify_all()


def _copy(body: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = orjson.loads(orjson.dumps(body))
    return copied


def _error(status: int, message: str) -> web.Response:
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return web.json_response(error, status=status)
