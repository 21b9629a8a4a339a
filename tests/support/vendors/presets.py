"""Servers with OpenAI's API, as the presets of the `openai` engine describe them.

Each is written from the page that shared/config/models/presets.py names for its preset, and from the further sources
that are named here. A server refuses what its page says that it refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from aiohttp import web

from tests.support.vendors.openai import OpenAIVendor, chunk, frame
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, Seen


class OpenAIPresetVendor(OpenAIVendor):
    """OpenAI's own Chat Completions: reasoning models refuse `max_tokens`, and their reasoning is not shown."""

    preset = "openai"
    reasoning = False
    raw_prompts = False

    def problem(self, seen: Seen) -> Script | None:
        if "max_tokens" in seen.body:
            return Script(status=400, message="Unsupported parameter: 'max_tokens' is not supported with this model.")
        return None


class AzureVendor(OpenAIPresetVendor):
    """Azure OpenAI: the key in a header of its own, and a first event with the results of the content filter."""

    preset = "azure"
    prefix = "/openai/v1"

    def problem(self, seen: Seen) -> Script | None:
        if seen.headers.get("api-key") != KEY:
            return Script(status=401, message="Access denied due to missing subscription key.")
        return super().problem(seen)

    def opening(self) -> Iterable[bytes]:
        results = {"hate": {"filtered": False, "severity": "safe"}}
        yield frame({"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": results}]})
        yield from super().opening()


class GeminiVendor(OpenAIVendor):
    """Gemini: thoughts count in the total only, and its thought signatures have to come back."""

    preset = "gemini"
    prefix = "/v1beta/openai"
    reasoning = False
    raw_prompts = False
    modalities = ("image",)
    known: ClassVar[frozenset[str]] = frozenset(
        {
            "model", "messages", "max_tokens", "temperature", "top_p", "stop", "stream", "stream_options", "tools",
            "tool_choice", "response_format", "reasoning_effort",
        }
    )  # fmt: skip

    def problem(self, seen: Seen) -> Script | None:
        if unknown := sorted(seen.body.keys() - self.known):
            return Script(status=400, message=f'Invalid JSON payload received. Unknown name "{unknown[0]}"')
        return None

    def error(self, script: Script) -> Any:
        return [{"error": {"code": script.status, "message": script.message, "status": "INVALID_ARGUMENT"}}]

    def call_extras(self, index: int) -> dict[str, Any]:
        """https://ai.google.dev/gemini-api/docs/thought-signatures: on the first of parallel calls."""
        return {"extra_content": {"google": {"thought_signature": "sig-1"}}} if index == 0 else {}

    def finish_reason(self, script: Script) -> str:
        return "stop" if script.calls else script.finish

    def usage_of(self, script: Script) -> dict[str, Any] | None:
        usage = script.usage
        reported = super().usage_of(script)
        assert reported is not None
        return reported | {"completion_tokens": usage.completion_tokens - usage.reasoning_tokens}


class OpenRouterVendor(OpenAIVendor):
    """OpenRouter: comments while a provider is chosen, details of the reasoning, and errors in a chunk.

    https://openrouter.ai/docs/api-reference/streaming and
    https://openrouter.ai/docs/use-cases/reasoning-tokens
    """

    preset = "openrouter"
    prefix = "/api/v1"

    def opening(self) -> Iterable[bytes]:
        yield b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
        yield chunk({"role": "assistant", "content": ""}, provider="Anthropic")

    def reasoning_delta(self, piece: str) -> dict[str, Any]:
        detail = {"type": "reasoning.text", "text": piece, "format": "anthropic-claude-v1", "index": 0}
        return {"reasoning": piece, "reasoning_details": [detail]}

    def error(self, script: Script) -> Any:
        return {"error": {"code": script.status, "message": script.message}}

    def error_event(self, script: Script) -> Any:
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
        return {"id": "gen-1", "error": {"code": "server_error", "message": script.message}, "choices": [choice]}


class VllmVendor(OpenAIVendor):
    """vLLM's own server."""

    preset = "vllm"
    modalities = ()

    def error(self, script: Script) -> Any:
        return {"error": {"message": script.message, "type": "BadRequestError", "param": None, "code": script.status}}


class SglangVendor(OpenAIVendor):
    """SGLang: reasoning and errors have other names."""

    preset = "sglang"
    reasoning_field = "reasoning_content"
    modalities = ()

    def error(self, script: Script) -> Any:
        return {
            "object": "error",
            "message": script.message,
            "type": "BadRequest",
            "param": None,
            "code": script.status,
        }

    def error_event(self, script: Script) -> Any:
        return {"error": self.error(script)}


class TgiVendor(OpenAIVendor):
    """TGI: an error is a text with its type.

    https://github.com/huggingface/text-generation-inference/blob/main/router/src/server.rs
    """

    preset = "tgi"
    reasoning = False
    modalities = ()

    def problem(self, seen: Seen) -> Script | None:
        if seen.body.get("top_p") == 1:
            return Script(status=422, message="Input validation error: `top_p` must be > 0.0 and < 1.0")
        return None

    def error(self, script: Script) -> Any:
        return {"error": script.message, "error_type": "validation"}

    def error_event(self, script: Script) -> Any:
        return {"error": script.message, "error_type": "generation"}


class TritonFrontendVendor(OpenAIVendor):
    """Triton's OpenAI frontend: no usage, and a limit that is reached does not show.

    https://github.com/triton-inference-server/server/blob/main/python/openai/openai_frontend/engine/triton_engine.py
    """

    preset = "triton"
    reasoning = False
    structure = False
    usage = False
    reports_limit = False
    modalities = ()

    def error(self, script: Script) -> Any:
        return {"detail": script.message}

    def error_event(self, script: Script) -> Any:
        return {"error": {"message": script.message}}

    def finish_reason(self, script: Script) -> str:
        return "stop" if script.finish == "length" else script.finish

    def usage_of(self, script: Script) -> dict[str, Any] | None:
        return None


class ModalVendor(VllmVendor):
    """vLLM behind Modal's proxy: two headers with the key; a cold start redirects to the result.

    https://modal.com/docs/guide/webhook-proxy-auth
    """

    preset = "modal"

    def __init__(self) -> None:
        super().__init__()
        # Whether a request takes longer than 150 s, until the container has started.
        self.cold = False

    def routes(self) -> Iterable[web.RouteDef]:
        return [*super().routes(), web.get("/v1/chat/completions", self._result)]

    def has_key(self, seen: Seen) -> bool:
        return (seen.headers.get("modal-key"), seen.headers.get("modal-secret")) == tuple(KEY.split(":"))

    def problem(self, seen: Seen) -> Script | None:
        if not self.has_key(seen):
            return Script(status=401, message="modal-http: missing credentials for proxy authorization")
        return None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if not self.cold:
            return await super()._chat(request)
        await self.record(request)
        raise web.HTTPSeeOther(f"{self.url}{request.path}?__modal_function_call_id=fc-1")

    async def _result(self, request: web.Request) -> web.StreamResponse:
        assert request.query["__modal_function_call_id"] == "fc-1"
        return await super()._chat(request)


class RunpodRouteVendor(VllmVendor):
    """The OpenAI route of a vLLM worker on RunPod."""

    preset = "runpod"
    prefix = "/v2/endpoint1/openai/v1"

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v2/{endpoint}/openai/v1/chat/completions", self._chat),
            web.post("/v2/{endpoint}/openai/v1/completions", self._completions),
        ]
