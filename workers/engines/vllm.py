"""vLLM's `AsyncLLM`, on a GPU or a CPU. vLLM's names stand in this file alone.

Prompts are rendered and sampling parameters are made by vLLM's own code, as its OpenAI server does, so that
the same request gives the same tokens. Works with vLLM 0.26 to 0.33.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

# A forked engine process would inherit a threaded parent; nothing is reported to anybody; and its loggers use ours.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")

from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.envs import enable_envs_cache
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensInput, tokens_input
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from shared.errors import InvalidRequest
from shared.events import Delta
from shared.registry import VllmModel
from shared.sampling import GenerateRequest
from workers.engines.base import EngineDead, EngineError, EngineStats, PromptInfo
from workers.engines.vllm_executor import cpu_options
from workers.engines.vllm_stats import VllmStats, stat_logger
from workers.engines.whole_tokens import WholeTokens

# vLLM's own validation error is a ValueError in some of these versions, and not in others.
_REFUSED = (ValueError, VLLMValidationError)


class VllmEngine:
    """The `vllm` engine: continuous batching of up to `slots` sequences."""

    _llm: AsyncLLM
    _renderer: OnlineRenderer

    def __init__(self, model: VllmModel) -> None:
        self._model = model
        self._stats = VllmStats(model.name)

    @property
    def slots(self) -> int:
        return self._model.slots

    async def start(self) -> None:
        options = {
            "max_num_seqs": self._model.slots,
            "scheduling_policy": "priority",
            "disable_log_stats": True,
            **cpu_options(self._model.options),
            **self._model.options,
        }
        unknown = options.keys() - AsyncEngineArgs.__dataclass_fields__.keys()
        if unknown:
            raise InvalidRequest(
                f"models.yaml: {self._model.name}.options: vLLM knows no {', '.join(sorted(unknown))};"
                " options are AsyncEngineArgs by name"
            )
        arguments = AsyncEngineArgs(model=self._model.source, **options)
        logger = stat_logger(self._stats, beside_own=not arguments.disable_log_stats)
        self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[logger])
        # vLLM asks for a variable at each token that it counts, which costs 6 µs where it is not cached.
        enable_envs_cache()
        self._renderer = OnlineRenderer(
            model_config=self._llm.model_config,
            renderer=self._llm.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        self._renderer.warmup()
        self._defaults = self._llm.model_config.get_diff_sampling_param()
        # The `tokenizers` tokenizer inside of Hugging Face's fast ones.
        self._decoder = cast("Tokenizer | None", getattr(self._llm.renderer.tokenizer, "_tokenizer", None))

    async def stop(self) -> None:
        self._llm.shutdown()

    @property
    def dead(self) -> bool:
        return bool(self._llm.errored)

    def continues(self, request: GenerateRequest) -> bool:
        """Prompt and tokens so far are prefilled as one prompt. Not exact where the engine's state is more than
        the tokens: penalties over the output, several choices, or a tokenizer that cannot decode token by token."""
        sampling = request.sampling
        return (
            self._decoder is not None
            and sampling.n == 1
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
        )

    def stats(self) -> EngineStats:
        requests = int(self._llm.output_processor.get_num_unfinished_requests())
        return EngineStats(requests, min(self._stats.waiting, requests), self._stats.cache)

    async def generate(
        self, request_id: str, request: GenerateRequest, so_far: Sequence[Delta] = ()
    ) -> AsyncGenerator[Delta | PromptInfo, None]:
        engine_input, params = await self._prepare(request)
        prompt_tokens = len(engine_input["prompt_token_ids"])
        made = [token for delta in so_far for token in delta.token_ids]
        if made:
            engine_input = tokens_input([*engine_input["prompt_token_ids"], *made])
            params.max_tokens = (params.max_tokens or 0) - len(made)
            params.min_tokens = max(0, params.min_tokens - len(made))

        whole = None
        if self._decoder is not None and request.sampling.n == 1:
            whole = WholeTokens()
            decoding = _Decoding(self._decoder, engine_input["prompt_token_ids"])
        first = True
        outputs = self._llm.generate(engine_input, params, request_id, priority=request.priority)
        try:
            async for output in outputs:
                if first:
                    first = False
                    yield PromptInfo(prompt_tokens, min(output.num_cached_tokens or 0, prompt_tokens))
                for choice in output.outputs:
                    if choice.finish_reason not in (None, "stop", "length"):
                        # "abort" is an engine that was told to end by somebody else; "error" is one request's.
                        raise EngineDead if choice.finish_reason == "abort" else EngineError("the engine gave up")
                    text, tokens = choice.text, tuple(choice.token_ids)
                    if whole is not None:
                        for token in tokens:
                            whole.made(token, decoding.text_of(token))
                        whole.may_show(text)
                        text, tokens = whole.take(finished=choice.finish_reason is not None)
                    yield Delta(choice.index, text, tokens, choice.finish_reason)
        except EngineDeadError as error:
            raise EngineDead from error
        except EngineGenerateError as error:
            if self._llm.errored:
                raise EngineDead from error
            raise EngineError(f"the engine failed: {error.__cause__ or error}") from error
        except _REFUSED as error:
            raise InvalidRequest(str(error)) from error
        except (asyncio.CancelledError, GeneratorExit):
            await outputs.aclose()
            with contextlib.suppress(EngineDeadError):
                # The engine handles its messages in order: when it answers this, the abort is done.
                await self._llm.is_sleeping()
            raise

    async def _prepare(self, request: GenerateRequest) -> tuple[TokensInput, SamplingParams]:
        """The prompt's tokens and vLLM's sampling parameters.

        Raises:
            InvalidRequest: the template or vLLM refuses it, or it does not fit the context.
        """
        fields = request.sampling.model_dump(exclude_none=True, exclude={"max_tokens"})
        fields["stream"] = True
        limit = self._llm.model_config.max_model_len
        wanted = request.sampling.max_tokens
        param = "messages" if request.messages is not None else "prompt"
        try:
            if request.messages is not None:
                messages: list[Any] = [message.model_dump(exclude_none=True) for message in request.messages]
                chat = ChatCompletionRequest(messages=messages, **fields)
                rendered = await self._renderer.render_chat(chat)
                inputs = rendered[1] if isinstance(rendered, tuple) else rendered
                openai_request: ChatCompletionRequest | CompletionRequest = chat
            else:
                openai_request = CompletionRequest(prompt=request.prompt, max_tokens=1, **fields)
                inputs = await self._renderer.render_completion(openai_request)
            if not isinstance(inputs, list):
                raise InvalidRequest(inputs.error.message, param=param)
            engine_input = cast(TokensInput, inputs[0])
            room = limit - len(engine_input["prompt_token_ids"])
            if room < 1 or (wanted is not None and wanted > room):
                raise InvalidRequest(
                    f"This model's context is {limit} tokens; the prompt has {limit - room}"
                    f"{f' and max_tokens asks for {wanted}' if wanted else ''}.",
                    param=param,
                )
            params = openai_request.to_sampling_params(wanted or room, self._defaults)
        except ValidationError as error:
            raise InvalidRequest(error.errors()[0]["msg"], param=param) from error
        except _REFUSED as error:
            raise InvalidRequest(str(error), param=param) from error
        params.output_kind = RequestOutputKind.DELTA
        return engine_input, params


class _Decoding:
    """The text that each token adds, as vLLM's own detokenizer has it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)

    def text_of(self, token: int) -> str:
        """Empty where the token is a part of a character."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            # Bytes that no text can go on from (vllm-project/vllm#17448): begin anew, as vLLM does.
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""
