"""Relays to a server with OpenAI's API, such as OpenAI, Gemini's compatible endpoint, TGI or another vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.config.models.openai import OpenAIModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import CannotContinue, Prior
from workers.engines.openai.request import optional_parameters, request_body
from workers.engines.openai.stream import StreamParser
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.exchange import Call, SingleCall


class OpenAIEngine(UpstreamEngine):
    """The `openai` engine."""

    def __init__(self, model: OpenAIModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._upstream_model = model.model
        self._max_tokens_field = model.options.max_tokens_field

    def auth_headers(self, key: str) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {key}"}

    async def exchange(self, request: GenerateRequest, prior: Prior) -> SingleCall:
        if prior.deltas:
            raise CannotContinue
        body = await request_body(request, max_tokens_field=self._max_tokens_field)
        body = (request.extra_body or {}) | body
        body |= {"model": self._upstream_model, "stream": True, "stream_options": {"include_usage": True}}
        parser = StreamParser(
            request.sampling.n,
            logprobs=request.logprobs is not None,
            named_tool=request.chat is not None and isinstance(request.chat.tool_choice, dict),
        )
        return SingleCall(Call("completions" if request.messages is None else "chat/completions", body), parser)

    def optional(self, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return optional_parameters(body)
