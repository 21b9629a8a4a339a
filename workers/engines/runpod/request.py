"""Converts a request into the job of an endpoint.

- https://docs.runpod.io/serverless/endpoints/send-requests (input, execution policies)
- https://docs.runpod.io/serverless/vllm/vllm-requests and https://github.com/runpod-workers/worker-vllm (inputs of the
  vLLM worker)
"""

from __future__ import annotations

from typing import Any

from shared.config.models.presets import PRESETS
from shared.config.models.runpod import RunpodModel
from shared.domain.request import GenerateRequest
from workers.engines.upstream.chat.prompt_caching import PromptCaching
from workers.engines.upstream.chat.request import request_body


async def job_body(request: GenerateRequest, model: RunpodModel) -> dict[str, Any]:
    """The body of `/run`.

    Raises:
        InvalidRequest: the worker's input cannot express the request.
    """
    options = model.options
    values = await (_openai_input(request, model) if options.input == "openai" else _vllm_input(request))
    body: dict[str, Any] = {"input": values}
    policy: dict[str, Any] = {}
    if options.execution_timeout_s is not None:
        policy["executionTimeout"] = round(options.execution_timeout_s * 1000)
    if options.ttl_s is not None:
        policy["ttl"] = round(options.ttl_s * 1000)
    if options.low_priority:
        policy["lowPriority"] = True
    return body | {"policy": policy} if policy else body


async def _openai_input(request: GenerateRequest, model: RunpodModel) -> dict[str, Any]:
    body = await request_body(
        request, PRESETS["vllm"], max_tokens_field=model.options.max_tokens_field, caching=PromptCaching(salted=True)
    )
    body = {**(request.extra_body or {}), **body, "stream": True, "stream_options": {"include_usage": True}}
    if model.model is not None:
        body["model"] = model.model
    route = "/v1/completions" if request.messages is None else "/v1/chat/completions"
    return {"openai_route": route, "openai_input": body}


async def _vllm_input(request: GenerateRequest) -> dict[str, Any]:
    """The worker's own input. Without `max_tokens`, it would generate 16."""
    sampling = {
        **(request.extra_body or {}),
        **request.sampling.model_dump(exclude_defaults=True),
        "max_tokens": request.sampling.max_tokens,
    }
    if request.messages is None:
        return {"prompt": request.prompt, "sampling_params": sampling, "stream": True}
    body = await request_body(request.model_copy(update={"chat": None}), PRESETS["vllm"], max_tokens_field="max_tokens")
    return {"messages": body["messages"], "sampling_params": sampling, "stream": True}
