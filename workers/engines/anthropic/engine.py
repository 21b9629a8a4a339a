"""Relays to a server with Anthropic's Messages API.

https://platform.claude.com/docs/en/api/messages, .../build-with-claude/streaming, .../api/errors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.config.models.anthropic import AnthropicModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.anthropic.request import request_body
from workers.engines.anthropic.stream import StreamParser
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.error_body import parse_error
from workers.engines.upstream.errors import ErrorBody


class AnthropicEngine(UpstreamEngine):
    """The `anthropic` engine."""

    def __init__(self, model: AnthropicModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._spec = model

    def auth_headers(self, key: str) -> Mapping[str, str]:
        return {"x-api-key": key}

    def endpoint(self, request: GenerateRequest) -> str:
        return "messages"

    async def body(self, request: GenerateRequest) -> dict[str, Any]:
        return await request_body(request, self._spec)

    def reply(self, request: GenerateRequest) -> StreamParser:
        return StreamParser()

    def error_body(self, content: bytes) -> ErrorBody:
        return parse_error(content)
