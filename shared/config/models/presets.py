"""The servers with OpenAI's API that an `openai` model can name as its `preset`: their addresses, keys and quirks.

A preset is data: what differs between servers is in this table, and the engine has no code for a single one. Each entry
names the page, or the source, that it was written from. docs/engines.md shows the table; a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from shared.config.models.capabilities import (
    ALL_SAMPLING,
    ALL_SOURCES,
    EVERYTHING,
    JSON_STRUCTURES,
    OPENAI_SAMPLING,
    Capabilities,
    Modality,
)

# The page of a server that has the context length of its model: `models` below `base_url`, or TGI's `/info`.
LengthPage = Literal["models", "info"]
# What an address of the server looks like, for presets without a default.
_VLLM_URL = "http://HOST:8000/v1"


class CacheKey(NamedTuple):
    """A parameter that names requests with a common prefix, and the most characters that it takes."""

    name: str
    length: int


# https://platform.openai.com/docs/guides/prompt-caching
OPENAI_CACHE_KEY = CacheKey("prompt_cache_key", 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A kind of server.

    `page`: its documentation. `base_url`: its address; None if each installation has its own, such as `example_url`.
    `key_headers`: the headers that carry the key: `{key}` is the key, `{id}` and `{secret}` its parts before and after
    its first colon. `query`: the query parameters of each request, whose values are names of options.
    `max_tokens_field`: the server's name of the limit in chats. `body`: members of each request. `renamed`: other names
    of a request's parameters. `structures`: the server whose names are used for structured outputs that OpenAI's API
    does not have.
    `hides_reasoning`: the server understands `include_reasoning`; otherwise the reasoning is dropped here.
    `developer_role`: the server has messages of the role `developer`; they are sent as `system` otherwise.
    `call_id_length`: the longest id of a tool call that it takes; None if there is no limit.
    `thoughts_apart`: `completion_tokens` does not include the reasoning, `total_tokens` does.
    `reasoning_field`: the name of an earlier turn's reasoning; None if it is not sent. `opaque`: the part of its
    answers that is kept and sent back: `extra_content` of messages and tool calls, or `reasoning_details`. `omitted`:
    values that it refuses although they have no effect.
    `room_error`: a pattern of its error for a limit of tokens that leaves no room for the prompt, with the groups
    `total` and `prompt`: the limit is lowered then. `follows_redirects`: redirects to the same host are followed.
    `cache_key`: the server's parameter for a client's `prompt_cache_key`, and the most characters that it
    takes; None if it has none. `cache_salt`: the server keeps the prefixes of requests with different values of
    `cache_salt` apart.
    `length_page`: the page with the context length of its model; None if there is none, or if asking for it would start
    a server that costs money.
    `quirks`: other differences, for docs/engines.md.
    """

    page: str
    capabilities: Capabilities
    provider: str | None = None
    base_url: str | None = None
    example_url: str = _VLLM_URL
    key_headers: Mapping[str, str] = field(default_factory=lambda: {"Authorization": "Bearer {key}"})
    query: Mapping[str, str] = field(default_factory=dict)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    body: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    structures: Literal["vllm", "sglang", "tgi"] = "vllm"
    hides_reasoning: bool = False
    reasoning_field: Literal["reasoning", "reasoning_content"] | None = None
    opaque: Literal["extra_content", "reasoning_details"] | None = None
    omitted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    developer_role: bool = False
    call_id_length: int | None = None
    thoughts_apart: bool = False
    room_error: str | None = None
    follows_redirects: bool = False
    cache_key: CacheKey | None = None
    cache_salt: bool = False
    length_page: LengthPage | None = None
    quirks: tuple[str, ...] = ()


# https://platform.openai.com/docs/api-reference/chat/create: images as data or by URL, files as data or by id. Results
# of tools are texts.
_CHAT_SOURCES: dict[str, Any] = {
    "image_sources": frozenset({"data", "url"}),
    "file_sources": frozenset({"data", "file_id"}),
}
_TEXT_AND_IMAGES: frozenset[Modality] = frozenset({"text", "image"})
_ALL_MODALITIES: frozenset[Modality] = frozenset({"text", "image", "file"})
# Parameters that OpenAI's API does not have are sent under vLLM's names: the server refuses what it cannot do. A stream
# carries no log probabilities of the prompt, and only the server could resume it.
_ANYTHING = replace(EVERYTHING, prompt_logprobs=None, resume=False, token_counting=False, **_CHAT_SOURCES)
_OPENAI = Capabilities(
    cancel=True,
    tools=True,
    max_tools=128,
    max_tool_name=64,
    max_stops=4,
    names=True,
    tool_media=False,
    **_CHAT_SOURCES,
    structures=JSON_STRUCTURES,
    max_choices=EVERYTHING.max_choices,
    logprobs=EVERYTHING.logprobs,
    modalities=_ALL_MODALITIES,
    sampling=OPENAI_SAMPLING,
    chat_options=frozenset({"parallel_tool_calls", "reasoning_effort"}),
)


def as_responses(capabilities: Capabilities) -> Capabilities:
    """The capabilities of a server through its Responses API, from those through Chat Completions.

    https://platform.openai.com/docs/api-reference/responses/create: no stop strings, seeds, penalties, names of
    authors, or several choices.
    """
    return replace(
        capabilities,
        raw_prompts=False,
        token_prompts=False,
        echo=False,
        prefill=False,
        resume=True,
        continues=False,
        cancel=True,
        structures=capabilities.structures & JSON_STRUCTURES,
        max_choices=1,
        max_tools=None,
        max_tool_name=None,
        max_stops=None,
        names=False,
        tool_media=True,
        image_sources=ALL_SOURCES,
        file_sources=ALL_SOURCES,
        sampling=capabilities.sampling & {"temperature", "top_p"},
        chat_options=capabilities.chat_options & {"parallel_tool_calls", "reasoning_effort"},
    )


# A server that is not named.
UNKNOWN_SERVER = Preset(
    page="",
    capabilities=_ANYTHING,
    example_url="https://HOST/v1",
    hides_reasoning=True,
    reasoning_field="reasoning",
)

_VLLM = Preset(
    page="https://docs.vllm.ai/en/latest/serving/openai_compatible_server/",
    capabilities=replace(_ANYTHING, continues=True),
    hides_reasoning=True,
    reasoning_field="reasoning",
    # https://docs.vllm.ai/en/latest/design/prefix_caching/#cache-isolation-for-security
    cache_salt=True,
    length_page="models",
    quirks=("`/v1/chat/completions` and `/v1/completions`, with all of vLLM's parameters",),
)

PRESETS: Mapping[str, Preset] = {
    "openai": Preset(
        page="https://platform.openai.com/docs/api-reference/chat/create",
        capabilities=_OPENAI,
        provider="openai",
        base_url="https://api.openai.com/v1",
        max_tokens_field="max_completion_tokens",
        developer_role=True,
        call_id_length=40,
        cache_key=OPENAI_CACHE_KEY,
        quirks=(
            "`max_tokens` is refused by newer models, which take `max_completion_tokens`",
            "more than 4 stop strings or 128 tools, and tools with names of more than 64 characters, are refused at"
            " submit",
        ),
    ),
    "azure": Preset(
        page="https://learn.microsoft.com/en-us/azure/ai-foundry/openai/latest",
        capabilities=_OPENAI,
        provider="azure",
        example_url="https://RESOURCE.openai.azure.com/openai/v1",
        key_headers={"api-key": "{key}"},
        query={"api-version": "api_version"},
        max_tokens_field="max_completion_tokens",
        developer_role=True,
        call_id_length=40,
        # https://learn.microsoft.com/en-us/azure/foundry/openai/how-to/prompt-caching
        cache_key=OPENAI_CACHE_KEY,
        quirks=(
            "`model` is the name of the deployment; the key is sent as `api-key`",
            "the v1 API needs no `api_version`; a dated one does, with a `base_url` that ends with"
            " `/openai/deployments/DEPLOYMENT`",
            "the limits of stop strings and tools are those of `openai`",
        ),
    ),
    "gemini": Preset(
        page="https://ai.google.dev/gemini-api/docs/openai",
        capabilities=replace(
            _OPENAI,
            max_choices=1,
            # https://ai.google.dev/api/generate-content#v1beta.GenerationConfig
            max_stops=5,
            max_tools=None,
            logprobs=None,
            modalities=_TEXT_AND_IMAGES,
            sampling=frozenset({"temperature", "top_p", "stop"}),
            chat_options=frozenset({"reasoning_effort"}),
        ),
        provider="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        thoughts_apart=True,
        opaque="extra_content",
        quirks=(
            "`completion_tokens` does not count thoughts, `total_tokens` does: the difference is added",
            "`extra_content` of tool calls and messages (thought signatures) is kept and sent back",
            "parameters that it does not know, such as `seed` and `frequency_penalty`, are errors",
            "more than 5 stop strings are refused at submit",
            "errors come in a list; the finish reason of tool calls may be `stop`",
        ),
    ),
    "openrouter": Preset(
        page="https://openrouter.ai/docs/api-reference/parameters",
        capabilities=replace(
            _OPENAI,
            raw_prompts=True,
            max_choices=1,
            # The limits are those of the model's provider.
            max_tools=None,
            max_tool_name=None,
            max_stops=None,
            # https://openrouter.ai/docs/features/multimodal/pdfs
            file_sources=frozenset({"data", "url"}),
            sampling=OPENAI_SAMPLING | {"top_k", "min_p", "repetition_penalty"},
        ),
        provider="openrouter",
        base_url="https://openrouter.ai/api/v1",
        body={"provider": {"require_parameters": True}},
        developer_role=True,
        reasoning_field="reasoning",
        opaque="reasoning_details",
        # https://openrouter.ai/docs/guides/best-practices/prompt-caching
        cache_key=CacheKey("session_id", 256),
        quirks=(
            "`provider.require_parameters` is set, so that no provider ignores a parameter",
            "`reasoning_details` are kept and sent back",
            "`prompt_cache_key` is sent as `session_id`",
            "comments (`: OPENROUTER PROCESSING`) before the first token, errors in the stream",
        ),
    ),
    "vllm": _VLLM,
    "sglang": Preset(
        page="https://docs.sglang.io/basic_usage/openai_api_completions.html",
        capabilities=replace(
            _ANYTHING,
            continues=True,
            echo=False,
            structures=EVERYTHING.structures - {"choice"},
            sampling=ALL_SAMPLING
            - {
                "allowed_token_ids",
                "bad_words",
                "spaces_between_special_tokens",
                "thinking_token_budget",
            },
            chat_options=frozenset({"parallel_tool_calls", "reasoning_effort", "chat_template_kwargs"}),
        ),
        example_url="http://HOST:30000/v1",
        renamed={"include_stop_str_in_output": "no_stop_trim"},
        structures="sglang",
        reasoning_field="reasoning_content",
        cache_salt=True,
        length_page="models",
        quirks=(
            "unknown parameters are ignored without an error, so the others are refused at submit",
            "a regex is `regex`, a grammar `ebnf`; `include_stop_str_in_output` is `no_stop_trim`",
        ),
    ),
    "tgi": Preset(
        page="https://huggingface.co/docs/text-generation-inference/messages_api",
        capabilities=Capabilities(
            raw_prompts=True,
            cancel=True,
            tools=True,
            tools_with_structure=False,
            names=True,
            structures=frozenset({"json_schema", "regex"}),
            **_CHAT_SOURCES,
            logprobs=5,
            sampling=frozenset({"temperature", "top_p", "stop", "seed", "frequency_penalty"}),
        ),
        example_url="http://HOST:8080/v1",
        structures="tgi",
        omitted={"top_p": (1,)},
        length_page="info",
        # router/src/validation.rs
        room_error=r"must be <= (?P<total>\d{1,9})\. Given: (?P<prompt>\d{1,9}) `inputs` tokens and",
        quirks=(
            "errors in the stream are `error` and `error_type`",
            "`inputs` and `max_new_tokens` together may not exceed `max_total_tokens` of `/info`: a `max_tokens` that"
            " does not fit is lowered to what the prompt leaves",
            "`n` and `logit_bias` are ignored, and `presence_penalty` acts as a repetition penalty: refused at submit",
            "tools cannot be combined with a structured output: refused at submit",
        ),
    ),
    "triton": Preset(
        page="https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/client_guide/openai_readme.html",
        capabilities=Capabilities(
            raw_prompts=True,
            cancel=True,
            tools=True,
            tool_choices=frozenset({"none", "auto", "named"}),
            names=True,
            **_CHAT_SOURCES,
            logprobs=EVERYTHING.logprobs,
            sampling=OPENAI_SAMPLING - {"logit_bias"},
        ),
        example_url="http://HOST:9000/v1",
        quirks=(
            "`response_format` and `parallel_tool_calls` are ignored, `required` always calls the first tool:"
            " refused at submit",
            "an answer without `max_tokens` ends after `--default-max-tokens`, which is 16; the finish reason at a"
            " limit is `stop`",
            "log probabilities and usage need its vLLM backend; without usage, tokens are counted here",
        ),
    ),
    "modal": replace(
        _VLLM,
        page="https://modal.com/docs/guide/webhook-timeouts",
        example_url="https://WORKSPACE--APP-serve.modal.run/v1",
        key_headers={"Modal-Key": "{id}", "Modal-Secret": "{secret}"},
        follows_redirects=True,
        length_page=None,
        quirks=(
            "the key is `TOKEN_ID:TOKEN_SECRET` of a proxy auth token"
            " (https://modal.com/docs/guide/webhook-proxy-auth)",
            "a request without an answer after 150 s, for example because of a cold start, is redirected (303) to the"
            " same host, and the redirect is followed",
            "the server behind it is assumed to be vLLM",
        ),
    ),
    "runpod": replace(
        _VLLM,
        page="https://docs.runpod.io/serverless/vllm/openai-compatibility",
        example_url="https://api.runpod.ai/v2/ENDPOINT/openai/v1",
        length_page=None,
        quirks=("the OpenAI route of a vLLM worker; the time in RunPod's queue counts as time to the first byte",),
    ),
}
