"""Converts a request into vLLM's: its prompt's tokens and its sampling parameters."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensInput
from vllm.parser.abstract_parser import Parser
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine.async_llm import AsyncLLM

from shared.config.models.vllm import ChatSettings, VllmModel
from shared.domain.errors import ContextExceeded, InvalidRequest
from shared.domain.field_types import message_of
from shared.domain.request import ChatOptions, GenerateRequest, Message
from workers.engines.vllm.parsing import Parsing

# vLLM's validation error is a ValueError in only some of the supported versions.
VALIDATION_ERRORS = (ValueError, VLLMValidationError)
# Parameters that vLLM's requests name differently.
PARAMS = {"top_logprobs": "logprobs", "response_format": "structured_outputs", "input_text": "prompt"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A request in vLLM's form. `reasoning` is passed to `AsyncLLM.generate` as keyword arguments."""

    openai: ChatCompletionRequest | CompletionRequest
    prompt: TokensInput
    params: SamplingParams
    reasoning: dict[str, Any]

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the prompt."""
        return list(self.prompt["prompt_token_ids"])

    @property
    def resumable(self) -> bool:
        """Whether the request can resume exactly, with its output so far prefilled as part of the prompt.

        It cannot if the tokens are not its whole state: penalties and bad words consider the output only, a grammar and
        a seed start with the output, a stop string that is part of the text may be incomplete, and several choices
        share one prompt.
        """
        params = self.params
        return (
            params.n == 1
            and not params.presence_penalty
            and not params.frequency_penalty
            and not params.bad_words
            and not (params.stop and params.include_stop_str_in_output)
            and params.structured_outputs is None
            and (params.seed is None or params.temperature == 0)
        )


def check_parsers(model: VllmModel) -> None:
    """Raise `InvalidRequest` if models.yaml names a parser that this version of vLLM does not have."""
    for field, named, known in (
        ("tool_call_parser", model.chat.tool_call_parser, ToolParserManager.list_registered),
        ("reasoning_parser", model.chat.reasoning_parser, ReasoningParserManager.list_registered),
    ):
        if named is not None and named not in (names := known()):
            raise InvalidRequest(
                f"{model.place(f'chat.{field}')}: vLLM has no {named!r}; it has {', '.join(sorted(names))}"
            )


def is_resumable(request: GenerateRequest) -> bool:
    """Predicts `Rendered.resumable` before the request is rendered. It may be wrong: a parser can add a grammar."""
    sampling, choice = request.sampling, None if request.chat is None else request.chat.tool_choice
    return (
        sampling.n == 1
        and not sampling.presence_penalty
        and not sampling.frequency_penalty
        and not sampling.bad_words
        and not (sampling.stop and sampling.include_stop_str_in_output)
        and request.structured_outputs is None
        and not (isinstance(choice, dict) or choice == "required")
        and (sampling.seed is None or sampling.temperature == 0)
    )


class Renderer:
    """Renders requests with vLLM's renderer and the model's chat settings."""

    def __init__(self, model: VllmModel, template: str | None, llm: AsyncLLM) -> None:
        """Raises `InvalidRequest` if the model's tokenizer does not support its `chat` settings."""
        self._llm = llm
        self._chat = model.chat
        self._template = template
        try:
            self._renderer = OnlineRenderer(
                model_config=llm.model_config,
                renderer=llm.renderer,
                request_logger=None,
                chat_template=self._template,
                **_renderer_settings(model.chat),
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"{model.place('chat')}: {error}") from error
        self._renderer.warmup()
        self._defaults = llm.model_config.get_diff_sampling_param()

    async def render(self, job: str, request: GenerateRequest) -> Rendered:
        """Render a request of a job.

        Raises:
            ContextExceeded: the prompt does not fit the context.
            InvalidRequest: the template or vLLM refuses the request.
        """
        try:
            openai, inputs = await self._openai_request(request)
            if not isinstance(inputs, list):
                message = inputs.error.message
                raise _refusal(message)(message, param=_param(inputs.error.param, request, openai))
            prompt = cast(TokensInput, inputs[0])
            max_tokens = self._max_tokens(request, len(prompt["prompt_token_ids"]))
            params = openai.to_sampling_params(max_tokens, self._defaults)
        except (ValidationError, *VALIDATION_ERRORS) as error:
            raise invalid_request(error, request) from error
        params.output_kind = RequestOutputKind.DELTA
        if request.prompt_only:
            params.max_tokens, params.min_tokens = 1, 0
        rendered = Rendered(openai, prompt, params, self._reasoning(openai, prompt))
        if params.seed is None and params.temperature > 0 and not rendered.resumable:
            # The next worker must sample the same tokens.
            params.seed = zlib.crc32(job.encode())
        return rendered

    async def _openai_request(self, request: GenerateRequest) -> tuple[ChatCompletionRequest | CompletionRequest, Any]:
        """The request as vLLM's OpenAI server has it, with a list of its prompts or vLLM's error response."""
        fields = request.sampling.model_dump(exclude_none=True, exclude_defaults=True, exclude={"max_tokens"})
        if request.structured_outputs is not None:
            structured = request.structured_outputs.model_dump(exclude_none=True)
            if "json_schema" in structured:
                structured["json"] = structured.pop("json_schema")
            fields["structured_outputs"] = structured
        if request.prompt_logprobs is not None:
            fields["prompt_logprobs"] = request.prompt_logprobs
        fields["echo"] = request.echo
        if request.messages is None:
            completion = CompletionRequest(prompt=request.prompt, max_tokens=1, logprobs=request.logprobs, **fields)
            return completion, await self._renderer.render_completion(completion)
        if request.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": request.logprobs}
        messages = [_vllm_message(message) for message in request.messages]
        chat = ChatCompletionRequest(messages=messages, **fields, **_chat_options(request.chat or ChatOptions()))
        rendered = await self._renderer.render_chat(chat)
        return chat, rendered[1] if isinstance(rendered, tuple) else rendered

    def _max_tokens(self, request: GenerateRequest, prompt_tokens: int) -> int:
        """The requested number of output tokens, or what the prompt leaves of the context if that is less."""
        limit = int(self._llm.model_config.max_model_len)
        available = limit - prompt_tokens
        if available < 1:
            raise ContextExceeded(
                f"This model's context is {limit} tokens, prompt and answer together; the prompt has {prompt_tokens}.",
                param=_prompt_param(request),
            )
        return min(request.sampling.max_tokens or available, available)

    @property
    def tokenizer(self) -> Any:
        """vLLM's tokenizer; None if the model's options disable it."""
        return self._llm.renderer.tokenizer

    def parsing(self, rendered: Rendered) -> Parsing | None:
        """A new parser for one choice; None if the text is not parsed."""
        openai = rendered.openai
        parser = self._parser(openai)
        if parser is None or not isinstance(openai, ChatCompletionRequest):
            return None
        return Parsing(parser, openai, rendered.token_ids)

    def _parser(self, openai: ChatCompletionRequest | CompletionRequest) -> Parser | None:
        if self._renderer.parser is None or not isinstance(openai, ChatCompletionRequest):
            return None
        return self._renderer.parser(
            self._llm.renderer.get_tokenizer(),
            openai.tools,
            chat_template_kwargs=self._template_kwargs(openai),
            model_config=self._llm.model_config,
        )

    def _template_kwargs(self, chat: ChatCompletionRequest) -> dict[str, Any]:
        params = chat.build_chat_params(self._template, self._chat.chat_template_content_format)
        return dict(params.with_defaults(self._chat.default_chat_template_kwargs).chat_template_kwargs)

    def _reasoning(self, openai: ChatCompletionRequest | CompletionRequest, prompt: TokensInput) -> dict[str, Any]:
        """Where a grammar starts: the arguments that vLLM's server passes to its engine (`resolve_reasoning_ended`)."""
        if not isinstance(openai, ChatCompletionRequest):
            return {}
        parser = self._parser(openai)
        reasons = parser is not None and parser.reasoning_parser is not None
        ended: bool | None = None
        if (
            not openai.include_reasoning
            or getattr(openai, "_grammar_from_parser", False)
            or getattr(openai, "_grammar_from_tool_parser", False)
        ):
            ended = True
        elif parser is not None and reasons:
            ended = parser.is_reasoning_end(list(prompt["prompt_token_ids"]))
        kwargs = {"chat_template_kwargs": self._template_kwargs(openai)} if reasons else None
        return {"reasoning_ended": ended, "reasoning_parser_kwargs": kwargs}


def invalid_request(error: Exception, request: GenerateRequest) -> InvalidRequest:
    """The error for a request that vLLM refuses: vLLM's message and the field that it concerns."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        inner = problem.get("ctx", {}).get("error")
        field = getattr(inner, "parameter", None) or next((step for step in problem["loc"] if step in _FIELDS), None)
        return InvalidRequest(message_of(problem), param=_param(field, request))
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return _refusal(message)(message, param=_param(getattr(error, "parameter", None), request))


def _refusal(message: str) -> type[InvalidRequest]:
    """The class of an error with vLLM's message."""
    return ContextExceeded if message.startswith(_TOO_LONG) else InvalidRequest


# vLLM's renderer, and its engine.
_TOO_LONG = ("This model's maximum context length is ", "The decoder prompt (length ")


_FIELDS = ("tools", "tool_choice", "structured_outputs", "reasoning_effort", "logprobs", "prompt_logprobs")


def _param(
    named: str | None, request: GenerateRequest, openai: ChatCompletionRequest | CompletionRequest | None = None
) -> str:
    if named is not None:
        return PARAMS.get(named, named)
    if request.structured_outputs is not None:
        return "structured_outputs"
    if isinstance(openai, ChatCompletionRequest) and openai.tools and openai.tool_choice != "none":
        return "tool_choice"
    return _prompt_param(request)


def _prompt_param(request: GenerateRequest) -> str:
    return "messages" if request.messages is not None else "prompt"


def _renderer_settings(chat: ChatSettings) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "chat_template_content_format": chat.chat_template_content_format,
        "enable_auto_tools": chat.tool_call_parser is not None,
        "tool_parser": chat.tool_call_parser,
        "reasoning_parser": chat.reasoning_parser,
        "default_chat_template_kwargs": chat.default_chat_template_kwargs,
        "exclude_tools_when_tool_choice_none": chat.exclude_tools_when_tool_choice_none,
    }
    if chat.tool_strict_level is not None:
        settings["tool_strict_level"] = chat.tool_strict_level
    return settings


def _vllm_message(message: Message) -> Any:
    """A message as vLLM takes it. Models are served for text only, so a content of several parts has texts."""
    fields = message.model_dump(exclude_none=True, exclude={"content", "opaque"})
    return fields if message.content is None else {**fields, "content": message.text}


def _chat_options(chat: ChatOptions) -> dict[str, Any]:
    """The chat options as fields of vLLM's request."""
    options = chat.model_dump(exclude_none=True, exclude_defaults=True)
    if isinstance(chat.tool_choice, dict):
        options["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice["name"]}}
    if chat.tools is not None:
        options["tools"] = [tool.model_dump(exclude_none=True) for tool in chat.tools]
    return options
