"""Relays to a server with OpenAI's API, such as OpenAI, Gemini's compatible endpoint, TGI or another vLLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import NO_PRIOR, CannotContinue, Prior
from workers.engines.openai import responses
from workers.engines.openai.context_length import length_in, length_url
from workers.engines.openai.continuation import ContinuedParser, can_continue, continued_request
from workers.engines.resume import Resume
from workers.engines.upstream.chat.opaque import OpaqueReader
from workers.engines.upstream.chat.prompt_caching import PromptCaching
from workers.engines.upstream.chat.request import optional_parameters, request_body
from workers.engines.upstream.chat.stream import StreamParser
from workers.engines.upstream.engine import UpstreamEngine
from workers.engines.upstream.exchange import Call, Exchange, SingleCall


class OpenAIEngine(UpstreamEngine):
    """The `openai` engine. What is particular about a kind of server is in its preset."""

    _options: OpenAIOptions

    def __init__(self, model: OpenAIModel, metrics: Metrics) -> None:
        super().__init__(model, metrics)
        self._api = model.api
        self.run_api = "responses" if model.api == "responses" else None
        self._continues = model.capabilities.continues
        self._upstream_model = model.model
        self._server = model.server
        self._max_tokens_field = model.options.max_tokens_field
        self._caching = PromptCaching(model.cache_key, model.sends_cache_salt)
        self._query = _query(model)

    def auth_headers(self, key: str) -> Mapping[str, str]:
        key_id, _, secret = key.partition(":")
        if not secret and any("{secret}" in value for value in self._server.key_headers.values()):
            raise InvalidRequest(
                f"{self._model.place('options.api_key_env')}: the key must be an id and a secret, as ID:SECRET"
            )
        return {
            name: value.format(key=key, id=key_id, secret=secret) for name, value in self._server.key_headers.items()
        }

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        if self._api == "responses":
            return super().resume_mode(request, prior)
        if self._continues and can_continue(request, prior):
            return Resume.EXACT
        return Resume.NONE

    def cancel_call(self, run_id: str) -> Call:
        return responses.cancel_call(run_id, self._query)

    async def exchange(self, request: GenerateRequest, prior: Prior) -> Exchange:
        if self._api == "responses":
            return await self._response(request, prior)
        if prior.deltas:
            if not self.resume_mode(request, prior):
                raise CannotContinue
            request = continued_request(request, prior)
        body = await request_body(request, self._server, max_tokens_field=self._max_tokens_field, caching=self._caching)
        body = _with_members(body, request.extra_body or {})
        body |= {"model": self._upstream_model, "stream": True, "stream_options": {"include_usage": True}}
        path = "completions" if request.messages is None else "chat/completions"
        return SingleCall(Call(path + self._query, body), self._parser(request, prior))

    async def _response(self, request: GenerateRequest, prior: Prior) -> Exchange:
        chat, provider = request.chat, self._server.provider
        body = await responses.response_body(request, provider=provider, summary=self._options.reasoning_summary)
        parser = responses.ResponseParser(
            prior,
            logprobs=request.logprobs is not None,
            reasoning=chat is None or chat.include_reasoning,
            provider=provider,
        )
        body |= self._caching.members(request)
        body = {**_with_members(body, request.extra_body or {}), "model": self._upstream_model}
        accepted = self._refused.accepted(body, self.optional(body))
        return responses.ResponseExchange(accepted, parser, self._query, self._options.read_timeout_s)

    def _parser(self, request: GenerateRequest, prior: Prior) -> StreamParser:
        chat, server = request.chat, self._server
        opaque = None
        if server.provider is not None and server.opaque is not None:
            opaque = partial(OpaqueReader, server.provider, server.opaque)
        options: dict[str, Any] = {
            "logprobs": request.logprobs is not None,
            "reasoning": chat is None or chat.include_reasoning,
            "tools": [tool.function.name for tool in (chat.tools if chat is not None else None) or ()],
            "named_tool": chat is not None and isinstance(chat.tool_choice, dict),
            "thoughts_apart": server.thoughts_apart,
            "opaque": opaque,
        }
        return ContinuedParser(prior, **options) if prior.deltas else StreamParser(request.sampling.n, **options)

    def corrected(self, body: Mapping[str, Any], error: bytes) -> Mapping[str, Any]:
        """A limit of tokens that the prompt leaves room for, if the error says how much there is."""
        field = self._max_tokens_field
        if (pattern := self._server.room_error) is None or field not in body:
            return {}
        found = re.search(pattern, error.decode("utf-8", "replace"))
        room = int(found["total"]) - int(found["prompt"]) if found else 0
        return {field: room} if 0 < room < body[field] else {}

    def length_url(self, base_url: str) -> str:
        assert self._server.length_page is not None
        return length_url(base_url, self._server.length_page)

    def length_in(self, content: bytes) -> int | None:
        assert self._server.length_page is not None
        return length_in(content, self._server.length_page, self._upstream_model)

    def optional(self, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        return responses.optional_parameters(body) if self._api == "responses" else optional_parameters(body)


def _with_members(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with the client's parameters of the provider. Of an object in both, such as `text`, the body's members
    take precedence."""
    merged = {**extra, **body}
    for name, value in extra.items():
        if isinstance(value, dict) and isinstance(body.get(name), dict):
            merged[name] = {**value, **body[name]}
    return merged


def _query(model: OpenAIModel) -> str:
    """The query of each request, with a question mark; empty if there is none."""
    values = {name: getattr(model.options, option) for name, option in model.server.query.items()}
    query = urlencode({name: value for name, value in values.items() if value is not None})
    return f"?{query}" if query else ""
