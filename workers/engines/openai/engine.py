"""Relays to a server with OpenAI's API, such as OpenAI, Gemini's compatible endpoint, TGI or another vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.config.models.openai import OpenAIModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.openai.errors import parse_error
from workers.engines.openai.request import optional_parameters, request_body
from workers.engines.openai.stream import StreamParser
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.errors import ErrorBody


class OpenAIEngine(UpstreamEngine):
    """The `openai` engine."""

    def __init__(self, model: OpenAIModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._upstream_model = model.model
        self._max_tokens_field = model.options.max_tokens_field

    def auth_headers(self, key: str) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def endpoint(self, request: GenerateRequest) -> str:
        return "completions" if request.messages is None else "chat/completions"

    async def body(self, request: GenerateRequest) -> dict[str, Any]:
        body = await request_body(request, max_tokens_field=self._max_tokens_field)
        return body | {"model": self._upstream_model, "stream": True, "stream_options": {"include_usage": True}}

    def optional(self, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return optional_parameters(body)

    def reply(self, request: GenerateRequest) -> StreamParser:
        return StreamParser(
            request.sampling.n,
            logprobs=request.logprobs is not None,
            named_tool=request.chat is not None and isinstance(request.chat.tool_choice, dict),
        )

    def error_body(self, content: bytes) -> ErrorBody:
        return parse_error(content)
