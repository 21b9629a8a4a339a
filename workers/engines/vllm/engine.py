"""The `vllm` engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from vllm.envs import enable_envs_cache
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from shared.config.models.vllm import VllmModel
from shared.domain.engine_info import EngineInfo
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, UpstreamState
from shared.domain.request import GenerateRequest
from shared.runtime.time_slice import TimeSlice
from shared.telemetry.metrics import Metrics
from workers.engines import prompt_logprobs
from workers.engines.base import NO_PRIOR, Engine, EngineDead, EngineError, EngineStats, Prior, PromptInfo, Restarted
from workers.engines.gate import Gate
from workers.engines.resume import Resume
from workers.engines.vllm.adapters import LoadedAdapters, located
from workers.engines.vllm.output import OutputBuilder
from workers.engines.vllm.plan import make_plan
from workers.engines.vllm.report import engine_info, labels
from workers.engines.vllm.request import (
    VALIDATION_ERRORS,
    Rendered,
    Renderer,
    invalid_request,
    is_resumable,
)
from workers.engines.vllm.stats import VllmStats, stat_logger

logger = logging.getLogger(__name__)


class VllmEngine:
    """Runs up to `slots` sequences with continuous batching on one `AsyncLLM`."""

    gate: Gate | None = None

    # By the adapter's name.
    adapter_fingerprints: Mapping[str, str]
    _llm: AsyncLLM
    _renderer: Renderer
    # Of the adapters with a chat template of their own.
    _adapter_renderers: Mapping[str, Renderer]
    _adapters: LoadedAdapters
    _fingerprint: str
    _info: EngineInfo | None = None

    def __init__(self, model: VllmModel, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._stats = VllmStats(metrics, model.name)

    @property
    def slots(self) -> int:
        return self._model.slots

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    async def start(self) -> None:
        adapters = await asyncio.to_thread(located, self._model)
        plan = make_plan(self._model, adapters)
        arguments = plan.arguments
        template = self._model.chat_template_text
        own_templates = {
            adapter.name: (adapter, adapter.chat_template_text)
            for adapter in adapters
            if adapter.chat != self._model.chat
        }
        stats = stat_logger(self._stats, with_vllms_own=not arguments.disable_log_stats)
        self._llm = AsyncLLM.from_vllm_config(
            plan.config,
            usage_context=UsageContext.ENGINE_CONTEXT,
            stat_loggers=[stats],
            enable_log_requests=arguments.enable_log_requests,
            disable_log_stats=arguments.disable_log_stats,
        )
        # vLLM reads a variable for each token that it counts, which takes 6 µs if it is not cached.
        enable_envs_cache()
        try:
            self._renderer = Renderer(self._model, template, self._llm)
            self._adapter_renderers = {
                name: Renderer(adapter, text, self._llm) for name, (adapter, text) in own_templates.items()
            }
            self._adapters = LoadedAdapters(self._llm, adapters, self._metrics, on_cpu=current_platform.is_cpu())
            await self._adapters.check()
        except (InvalidRequest, EngineDead):
            self._llm.shutdown()
            raise
        self._fingerprint = plan.fingerprint
        self.adapter_fingerprints = {adapter.name: adapter.with_dtype(plan.dtype).fingerprint for adapter in adapters}
        self._stats.started(*labels(plan))
        # After the start, because the configuration has the number of the KV cache's blocks from then on.
        self._info = engine_info(plan)
        logger.info("model=%s loaded dtype=%s fingerprint=%s", self._model.name, plan.dtype, self._fingerprint)

    async def stop(self) -> None:
        self._llm.shutdown()

    @property
    def dead(self) -> bool:
        return bool(self._llm.errored)

    def take_over(self, earlier: Engine) -> None:
        """Never called: another engine needs another process."""
        raise NotImplementedError

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        return Resume.EXACT if is_resumable(request) else Resume.REGENERATE

    async def cancel(self, state: UpstreamState) -> None:
        """There is no upstream."""

    def stats(self) -> EngineStats:
        requests = int(self._llm.output_processor.get_num_unfinished_requests())
        waiting = min(self._stats.waiting, requests)
        return EngineStats(requests, waiting, self._stats.cache, self._stats.drafts, info=self._info)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo | Restarted, None]:
        renderer = self._adapter_renderers.get(request.adapter or "", self._renderer)
        rendered, emitted = await renderer.render(request_id.rpartition("-")[0], request), prior.deltas
        if emitted and not prior.comparable and not rendered.resumable:
            logger.info("call=%s restarts: its output so far was generated with another fingerprint", request_id)
            yield Restarted()
            emitted = ()
        if prompt_logprobs.may_be_incomplete(request, emitted):
            yield Restarted()
            emitted = ()
        answer = OutputBuilder(request, rendered, renderer, emitted)
        lora = await self._adapters.acquire(request.adapter)
        outputs = self._outputs(request_id, request, rendered, answer.resumed_tokens, lora)
        first = True
        try:
            async for output in outputs:
                if first:
                    first = False
                    cached = min(output.num_cached_tokens or 0, len(rendered.token_ids))
                    yield PromptInfo(len(rendered.token_ids), cached)
                    slice_ = TimeSlice()
                    for delta in answer.begin(output):
                        yield delta
                        if slice_.over:
                            await slice_.give_way()
                _check(output, request)
                for item in answer.take(output):
                    yield item
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._failure(error) from error
        except EngineDead:
            raise
        except BaseException as error:
            if first and isinstance(error, VALIDATION_ERRORS):
                raise invalid_request(error, request) from error
            await outputs.aclose()
            with contextlib.suppress(EngineDeadError):
                # The engine handles its messages in order: once it answers this one, the abort is done.
                await self._llm.is_sleeping()
            raise
        finally:
            self._adapters.release(request.adapter)

    @property
    def prefix_room(self) -> int:
        cache = self._llm.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size if cache.enable_prefix_caching else 0

    async def prefix(self, requests: Sequence[GenerateRequest]) -> Sequence[int]:
        prompts = [(await self._renderer.render("warm", request)).token_ids for request in requests]
        return _common_prefix(prompts)

    async def prefill(self, request_id: str, tokens: Sequence[int], salt: str) -> int:
        params = SamplingParams(max_tokens=1, temperature=0, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = tokens_input(list(tokens), cache_salt=salt)
        cached = 0
        try:
            async with aclosing(self._llm.generate(prompt, params, request_id)) as outputs:
                async for output in outputs:
                    cached = output.num_cached_tokens or 0
                    if any(choice.finish_reason in ("abort", "error") for choice in output.outputs):
                        raise EngineError("the engine gave up")
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._failure(error) from error
        except VALIDATION_ERRORS as error:
            raise InvalidRequest(str(error), param="prompt") from error
        return cached

    def _failure(self, error: Exception) -> EngineDead | EngineError:
        """Classify an error of vLLM: either the engine is dead, or one request has failed."""
        if isinstance(error, EngineDeadError) or self._llm.errored:
            return EngineDead()
        return EngineError(f"the engine failed: {error.__cause__ or error}")

    def _outputs(
        self,
        request_id: str,
        request: GenerateRequest,
        rendered: Rendered,
        resumed_tokens: list[int],
        lora: LoRARequest | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs for the prompt, extended by the tokens of earlier attempts."""
        prompt, params = rendered.prompt, rendered.params
        if resumed_tokens:
            prompt = tokens_input([*rendered.token_ids, *resumed_tokens])
            params.max_tokens = (params.max_tokens or 0) - len(resumed_tokens)
            params.min_tokens = max(0, params.min_tokens - len(resumed_tokens))
            params.prompt_logprobs = None
        if request.cache_salt is not None:
            prompt["cache_salt"] = request.cache_salt
        outputs: AsyncGenerator[RequestOutput, None] = self._llm.generate(
            prompt, params, request_id, lora_request=lora, priority=request.priority, **rendered.reasoning
        )
        return outputs


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    shortest = min(prompts, key=len)
    length = next((at for at, token in enumerate(shortest) if any(prompt[at] != token for prompt in prompts)), None)
    return shortest[:length]


def _check(output: RequestOutput, request: GenerateRequest) -> None:
    """Raise the error for a choice that ended abnormally."""
    for choice in output.outputs:
        if choice.finish_reason == "abort":
            raise EngineDead  # not aborted by this worker
        if choice.finish_reason == "error":
            if request.structured_outputs is not None:
                # Some grammars turn out to be invalid only when the engine compiles them; only this request fails.
                raise InvalidRequest(
                    "structured_outputs could not be compiled. If the grammar is valid, it has lengths or patterns that"
                    " take too long to compile together with other keywords: omit one or the other.",
                    param="structured_outputs",
                )
            if request.chat is not None and request.chat.tools:
                raise InvalidRequest("the parameters of the tools could not be compiled.", param="tools")
            raise EngineError("the engine gave up")
