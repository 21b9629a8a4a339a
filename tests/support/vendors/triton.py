"""The generate extension of Triton, with the vLLM backend behind it.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_generate.html,
https://github.com/triton-inference-server/vllm_backend/blob/main/docs/additional_outputs.md
and the inputs and outputs that src/model.py of that repository declares. The bytes of events and errors are those of
a real server: tests/integration/workers/engines/triton/test_real_server.py compares them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from shared.config.models.triton import TritonModel
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY_ENV, Vendor, pieces

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class TritonVendor(Vendor):
    """`generate_stream` of one model."""

    tools = False
    reasoning = False
    raw_prompts = True
    filters = False

    def __init__(self) -> None:
        super().__init__()
        # Whether each event repeats the text before it.
        self.cumulative = False

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.post("/v2/models/{model}/generate_stream", self._generate)]

    def spec(self, **options: Any) -> TritonModel:
        entry = {"base_url": self.url, "api_key_env": KEY_ENV, "backend": "vllm", "chat_template": str(CHAT_TEMPLATE)}
        return TritonModel.model_validate(
            {"name": "up", "engine": "triton", "model": "theirs", "options": {**entry, **options}}
        )

    def error(self, script: Script) -> Any:
        return {"error": script.message}

    def stops_of(self, body: Any) -> list[str]:
        stops: list[str] = orjson.loads(body["sampling_parameters"])["stop"]
        return stops

    def schema_of(self, body: Any) -> Any:
        return orjson.loads(orjson.loads(body["sampling_parameters"])["guided_decoding"])["json"]

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        await self.record(request)
        script = self.next_script()
        return self.refusal(script) or await self.stream(
            request, self._frames(script), script, "text/event-stream; charset=utf-8"
        )

    async def _frames(self, script: Script) -> AsyncIterator[bytes]:
        if script.noise:
            yield b": a comment\n\nid: 7\nretry: 10\nx-unknown: field\n\n"
            yield event(sequence_start=False, text_output=[])
        input_tokens, left = script.usage.prompt_tokens, script.usage.completion_tokens
        text = ""
        for kind, piece in pieces(script):
            if kind == "error":
                yield error_event(script.message)
                return
            left -= 1
            text = text + piece if self.cumulative else piece
            yield event(finish_reason="None", num_input_tokens=input_tokens, num_output_tokens=1, text_output=text)
        text, reason = text if self.cumulative else "", script.finish
        yield event(
            finish_reason=reason, num_input_tokens=input_tokens, num_output_tokens=max(0, left), text_output=text
        )


def error_event(message: str) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({"error": message})


def event(**outputs: Any) -> bytes:
    """An event, with its members in Triton's order: sorted."""
    return b"data: %b\n\n" % orjson.dumps({"model_name": "theirs", "model_version": "1", **outputs})
