"""The known request members that the dialects' schemas do not have: those that are refused, and those without effect.

A member is refused if the answer would be another one, or would lack something, without it. All others, unknown ones
included, are accepted, named in `x-headrace-ignored`, and counted. Tools that only a vendor can run, such as its web
search, are ignored beside functions, because agents send them with every request. Alone, they are refused.
docs/compatibility.md repeats these tables.
"""

from __future__ import annotations

from typing import Any, Literal

from api.http.members import MemberRules, Refusal
from api.jobs.parameters import has_part, has_parts
from shared.domain.opaque import is_encoded

_TEXT_ONLY = "this model generates text only"
_STRUCTURED = "this parameter is not supported; use structured_outputs"
_NO_TEMPLATE = "this parameter is not supported: a request cannot bring its own template, which is code"
_NOT_SUPPORTED = "this parameter is not supported, and the answer would be another one without it"

# Parameters of vLLM, llama.cpp and earlier versions of both.
_ENGINE = {
    "best_of": Refusal(_NOT_SUPPORTED, (1,)),
    "early_stopping": Refusal(_NOT_SUPPORTED, (False,)),
    "grammar": Refusal(_STRUCTURED, ("",)),
    "guided_choice": Refusal(_STRUCTURED),
    "guided_grammar": Refusal(_STRUCTURED),
    "guided_json": Refusal(_STRUCTURED),
    "guided_regex": Refusal(_STRUCTURED),
    "json_schema": Refusal("this parameter is not supported; use response_format"),
    "length_penalty": Refusal(_NOT_SUPPORTED, (1,)),
    "logits_processors": Refusal(_NOT_SUPPORTED),
    "logprob_token_ids": Refusal(_NOT_SUPPORTED),
    "prompt_embeds": Refusal(_NOT_SUPPORTED),
    "repetition_detection": Refusal(_NOT_SUPPORTED),
    "return_token_ids": Refusal(_NOT_SUPPORTED, (False,)),
    "return_tokens_as_token_ids": Refusal(_NOT_SUPPORTED, (False,)),
    "truncate_prompt_tokens": Refusal("this parameter is not supported: prompts are never truncated", (-1,)),
    "use_beam_search": Refusal("this parameter is not supported: there is no beam search", (False,)),
    "vllm_xargs": Refusal(_NOT_SUPPORTED),
}
_CHAT = {
    **_ENGINE,
    "audio": Refusal(_TEXT_ONLY),
    "chat_template": Refusal(_NO_TEMPLATE),
    "function_call": Refusal("this parameter is not supported; use tool_choice", ("none", "auto")),
    "functions": Refusal("this parameter is not supported; use tools"),
    "input": Refusal("this API takes messages"),
    "messages[].audio": Refusal(_TEXT_ONLY),
    "messages[].function_call": Refusal("this parameter is not supported; use tool_calls"),
    "modalities": Refusal(_TEXT_ONLY, (["text"],)),
    "response_format.schema": Refusal("this parameter is not supported; use json_schema"),
    "web_search_options": Refusal("this parameter is not supported: models cannot search the web"),
}
# What OpenAI's APIs and vLLM's server know beside this.
_HARMLESS = (
    "cache_salt",
    "client_metadata",
    "context_management",
    "kv_transfer_params",
    "max_tool_calls",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "prediction",
    "prompt_cache_options",
    "prompt_cache_retention",
    "request_id",
    "verbosity",
)
_HARMLESS_COMPLETIONS = (
    *_HARMLESS,
    "service_tier",
    "store",
    "stream_options.include_obfuscation",
)
_HARMLESS_CHAT = (
    *_HARMLESS_COMPLETIONS,
    "messages[].annotations",
    "messages[].cache_control",
    "messages[].content[].annotations",
    "messages[].content[].cache_control",
    "messages[].id",
    "messages[].reasoning_details",
    "messages[].refusal",
    "messages[].tool_calls[].extra_content",
    "messages[].tool_calls[].index",
    "tools[].cache_control",
    "tools[].function.cache_control",
)

_TOOLS = ("tools",)


def _is_false(value: Any) -> bool:
    return value is False


# Only a response is stored for its client, so `store: true` has no effect elsewhere.
_STORE = {"store": _is_false}
# Data of a provider, which another API may have given to the client.
_OPAQUE = {"messages[].reasoning_details": has_parts, "messages[].tool_calls[].extra_content": has_part}

CHAT = MemberRules(
    droppable=_TOOLS,
    significant={**_OPAQUE, **_STORE},
    refused={**_CHAT, "prompt": Refusal("this API takes messages")},
    ignored=_HARMLESS_CHAT,
)
JOB = MemberRules(
    droppable=_TOOLS,
    significant={**_OPAQUE, **_STORE},
    refused={
        **_CHAT,
        "max_completion_tokens": Refusal("this API takes max_tokens"),
        "stream": Refusal("a job is always stored; stream it with GET /v1/jobs/ID/stream", (False,)),
        "top_logprobs": Refusal("this API takes the number of alternatives as logprobs", (0,)),
    },
    ignored=(
        *(path for path in _HARMLESS_CHAT if not path.startswith("stream_options.")),
        "stream_options",
    ),
)
# Bodies of jobs and of chat completions.
ROUTE = MemberRules(droppable=_TOOLS, significant=_OPAQUE, refused=_CHAT, ignored=_HARMLESS_CHAT)
TEXT = MemberRules(
    refused={
        **_ENGINE,
        "input": Refusal("this API takes prompt"),
        "messages": Refusal("this API takes prompt; conversations are for /v1/chat/completions"),
        "suffix": Refusal("this parameter is not supported: models cannot fill in text before a suffix", ("",)),
        "tools": Refusal("this parameter is not supported here; tools are for /v1/chat/completions"),
        "top_logprobs": Refusal("this API takes the number of alternatives as logprobs", (0,)),
    },
    significant=_STORE,
    ignored=_HARMLESS_COMPLETIONS,
)
# The edits of long conversations in Anthropic's `context_management` that have an effect.
APPLIED_EDITS: tuple[Literal["compact_20260112"], Literal["clear_tool_uses_20250919"]] = (
    "compact_20260112",
    "clear_tool_uses_20250919",
)


def has_applied_edit(management: Any) -> bool:
    """Whether Anthropic's `context_management` has an edit that has an effect."""
    edits = management.get("edits") if isinstance(management, dict) else None
    return isinstance(edits, list) and any(
        isinstance(edit, dict) and edit.get("type") in APPLIED_EDITS for edit in edits
    )


MESSAGES = MemberRules(
    droppable=_TOOLS,
    significant=_STORE | {"context_management": has_applied_edit},
    refused={
        "container": Refusal("this parameter is not supported: there are no containers or skills"),
        "mcp_servers": Refusal("this parameter is not supported; connect to MCP servers in the client"),
        "n": Refusal("a message has one output", (1,)),
        "prompt": Refusal("this API takes messages"),
        "response_format": Refusal("this API takes output_config.format", ({"type": "text"},)),
    },
    ignored=(
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "cache_control.scope",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "messages[].content[].cache_control.scope",
        "messages[].content[].citations",
        "messages[].id",
        "service_tier",
        "speed",
        "store",
        "system[].cache_control.scope",
        "tools[].allowed_callers",
        "tools[].cache_control.scope",
        "tools[].defer_loading",
        "tools[].eager_input_streaming",
        "tools[].input_examples",
        "user_profile_id",
    ),
)
# The parameters of a message that do not change the prompt, which clients send along.
COUNT_TOKENS = MemberRules(
    droppable=_TOOLS,
    refused=MESSAGES.refused,
    ignored=(
        *MESSAGES.ignored, "context_management",
        "max_tokens", "metadata", "priority", "stop_sequences", "stream", "temperature", "top_k",
        "top_p",
    ),
)  # fmt: skip


def has_compaction(entries: Any) -> bool:
    """Whether `context_management` has an entry of a type that OpenAI documents."""
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and entry.get("type") == "compaction" for entry in entries
    )


LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
RESPONSES = MemberRules(
    droppable=_TOOLS,
    significant={"input[].encrypted_content": is_encoded, "context_management": has_compaction},
    refused={
        **_ENGINE,
        "chat_template": Refusal(_NO_TEMPLATE),
        "n": Refusal("a response has one output", (1,)),
        "audio": Refusal(_TEXT_ONLY),
        "conversation": Refusal("this parameter is not supported; use previous_response_id"),
        "input[].encrypted_content": Refusal(
            "encrypted reasoning is accepted as this API returned it; another API's cannot be read", ("",)
        ),
        "messages": Refusal("this API takes input"),
        "modalities": Refusal(_TEXT_ONLY, (["text"],)),
        "prompt": Refusal("this parameter is not supported: there are no stored prompts; this API takes input"),
        "response_format": Refusal("this API takes text.format", ({"type": "text"},)),
    },
    ignored=(
        *(name for name in _HARMLESS if name != "context_management"),
        "input[].agent",
        "input[].internal_chat_message_metadata_passthrough",
        "input[].namespace",
        "input[].phase",
        "reasoning.context",
        "reasoning.generate_summary",
        "reasoning.mode",
        "reasoning.summary",
        "text.verbosity",
        "tools[].defer_loading",
        "tools[].output_schema",
    ),
    effective={
        "include": (LOGPROBS, ENCRYPTED_REASONING),
        "service_tier": ("auto", "default"),
        "stream_options.include_obfuscation": (False,),
        "truncation": ("auto", "disabled"),
    },
)
