"""The requests that a model can serve, and how its engine handles interrupted ones.

A request that needs something else is refused when it is submitted. The names are those of a job's parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import PlainSerializer

from shared.domain.request import MAX_CHOICES, MAX_LOGPROBS, ChatOptions, Sampling, StructuredOutputs

_Name = TypeVar("_Name", bound=str)
# A sorted list in JSON.
_Set = Annotated[frozenset[_Name], PlainSerializer(sorted, return_type=list[_Name])]
Modality = Literal["text", "image", "file"]
ToolChoiceKind = Literal["none", "auto", "required", "named"]
# How the data of an image or a file is given. The names are those of the parts of messages.
Source = Literal["data", "url", "file_id"]

TEXT_ONLY: frozenset[Modality] = frozenset({"text"})
ALL_TOOL_CHOICES: frozenset[ToolChoiceKind] = frozenset({"none", "auto", "required", "named"})
# The members of a constraint: a request has exactly one of them.
ALL_STRUCTURES = frozenset(StructuredOutputs.model_fields)
JSON_STRUCTURES = frozenset({"json_schema", "json_object"})
ALL_SOURCES: frozenset[Source] = frozenset({"data", "url", "file_id"})
# The media types of files that requests may have as data.
ALL_FILE_TYPES = frozenset(
    {
        "application/pdf",
        "application/json",
        "application/msword",
        "application/rtf",
        "application/vnd.ms-excel",
        "application/vnd.ms-powerpoint",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "application/xml",
        "text/*",
    }
)
# Several choices and the limit of tokens are capabilities of their own.
ALL_SAMPLING = frozenset(Sampling.model_fields) - {"n", "max_tokens"}
# Those that OpenAI's API has.
OPENAI_SAMPLING = frozenset(
    {"temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"}
)
# Without those that have a capability of their own. `include_reasoning` is honoured for every model.
ALL_CHAT_OPTIONS = frozenset(ChatOptions.model_fields) - {
    "tools",
    "tool_choice",
    "continue_final_message",
    "include_reasoning",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The capabilities of a model. The defaults are those of a model that only answers conversations with text.

    `conversations`: the engine or its upstream has a chat template. `system_only`: conversations without a text of the
    user. `trailing_assistant`: conversations that end with a message of the assistant that is not to be continued.
    `raw_prompts`: prompts without a chat template; `token_prompts`: as token ids. `prefill`: a last message of the
    assistant that the answer continues. `names`: messages with the names of their authors. `tools_with_structure`:
    tools and a structured output in one request. `max_choices`: choices for one prompt. `max_tokens`: a limit of output
    tokens. `logprobs` and `prompt_logprobs`: the most alternatives for each token; None without log probabilities.
    `structures`, `sampling` and `chat_options` are names of parameters. `max_stops`, `max_tools` and `max_tool_name`
    (in characters) are limits of the provider below those of this API; None without. `image_sources`, `file_sources`
    and `file_types` (of data) restrict the modalities. `tool_media`: results of tools may have images and files.
    `fixed_temperature`: the model always samples at 1. `never_reasons`: it cannot reason, so none is to be turned off.

    `resume`: an answer whose worker was lost continues where it was interrupted, at no cost. `continues`: it continues
    from its text, for the price of another prompt; a request with tools or a structured output may be excluded.
    `cancel`: the upstream stops at a cancel. `usage`: it reports the number of tokens. `token_counting`: the tokens of
    a prompt can be counted without running it. `signed_reasoning`: reasoning of earlier turns is accepted only with the
    signature that came with it.
    """

    conversations: bool = True
    system_only: bool = True
    trailing_assistant: bool = True
    raw_prompts: bool = False
    token_prompts: bool = False
    echo: bool = False
    prefill: bool = False
    resume: bool = False
    continues: bool = False
    cancel: bool = False
    usage: bool = True
    token_counting: bool = False
    signed_reasoning: bool = False
    tools: bool = False
    tool_choices: _Set[ToolChoiceKind] = ALL_TOOL_CHOICES
    tools_with_structure: bool = True
    max_tools: int | None = None
    max_tool_name: int | None = None
    names: bool = False
    structures: _Set[str] = frozenset()
    max_choices: int = 1
    max_tokens: bool = True
    max_stops: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    modalities: _Set[Modality] = TEXT_ONLY
    tool_media: bool = True
    image_sources: _Set[Source] = ALL_SOURCES
    file_sources: _Set[Source] = ALL_SOURCES
    file_types: _Set[str] = ALL_FILE_TYPES
    extra_body: _Set[str] = frozenset()
    sampling: _Set[str] = OPENAI_SAMPLING
    fixed_temperature: bool = False
    never_reasons: bool = False
    chat_options: _Set[str] = frozenset()


def union(capabilities: Sequence[Capabilities]) -> Capabilities:
    """What at least one of several models can do."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Capabilities)):
        found = [getattr(item, name) for item in capabilities]
        if name in _RESTRICTIONS:
            values[name] = all(found)
        elif name in _LIMITS:
            values[name] = None if None in found else max(found, default=None)
        elif isinstance(getattr(Capabilities(), name), frozenset):
            values[name] = frozenset().union(*found)
        elif isinstance(getattr(Capabilities(), name), bool):
            values[name] = any(found)
        else:
            values[name] = max((item for item in found if item is not None), default=None)
    return Capabilities(**values)


# Capabilities that say what a model cannot do, and limits of providers, of which None is the highest.
_RESTRICTIONS = frozenset({"fixed_temperature", "never_reasons", "signed_reasoning"})
_LIMITS = frozenset({"max_tools", "max_tool_name", "max_stops"})

# All that this API has: the capabilities of a model that runs in the worker.
EVERYTHING = Capabilities(
    raw_prompts=True,
    token_prompts=True,
    echo=True,
    prefill=True,
    resume=True,
    cancel=True,
    token_counting=True,
    tools=True,
    names=True,
    structures=ALL_STRUCTURES,
    max_choices=MAX_CHOICES,
    logprobs=MAX_LOGPROBS,
    prompt_logprobs=MAX_LOGPROBS,
    sampling=ALL_SAMPLING,
    chat_options=ALL_CHAT_OPTIONS,
)
