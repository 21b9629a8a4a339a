"""Relays to a server with Anthropic's Messages API.

https://platform.claude.com/docs/en/api/messages, .../build-with-claude/streaming, .../api/errors
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.config.models.anthropic import AnthropicModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.anthropic.continuation import FROM_START, continuation
from workers.engines.anthropic.request import request_body
from workers.engines.anthropic.stream import StreamParser
from workers.engines.anthropic.token_count import PATH, CountParser, count_body
from workers.engines.base import NO_PRIOR, CannotContinue, Prior
from workers.engines.resume import Resume
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.exchange import Call, SingleCall


class AnthropicEngine(UpstreamEngine):
    """The `anthropic` engine."""

    def __init__(self, model: AnthropicModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._spec = model
        self._headers = {"anthropic-version": model.options.anthropic_version}
        if model.options.anthropic_beta:
            self._headers["anthropic-beta"] = ",".join(model.options.anthropic_beta)

    def auth_headers(self, key: str) -> Mapping[str, str]:
        return {"x-api-key": key}

    async def exchange(self, request: GenerateRequest, prior: Prior) -> SingleCall:
        so_far = continuation(request, prior, self._spec) if prior.deltas else FROM_START
        if so_far is None:
            raise CannotContinue
        body = await request_body(request, self._spec, so_far)
        if request.prompt_only:
            return SingleCall(Call(PATH, count_body(body), self._headers), CountParser())
        return SingleCall(Call("messages", body, self._headers), StreamParser(so_far))

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        return Resume.NONE if continuation(request, prior, self._spec) is None else Resume.EXACT
