"""Rejects, at submit, requests that their model cannot serve.

The error names the parameter and the models that can serve the request. Nothing is dropped silently: an engine never
receives a parameter that it would ignore. Values that turn a parameter off are accepted by every model. What a model's
capabilities cannot say, its spec checks (`Spec.unsupported`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from api.context.count_memo import current_memo
from api.jobs.media_check import MAX_PARTS, is_known_file_type, media_of
from shared.config.models.base import Unsupported
from shared.config.models.capabilities import Capabilities, ToolChoiceKind
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, Message, Sampling

# Values that turn a parameter off.
_NEUTRAL_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
_NEUTRAL_CHAT_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "chat_template_kwargs": ({},),
    "documents": ([],),
}
_SAMPLING_DEFAULTS = {
    name: field.get_default(call_default_factory=True) for name, field in Sampling.model_fields.items()
}
_CHAT_DEFAULTS = {
    name: field.get_default(call_default_factory=True) for name, field in ChatOptions.model_fields.items()
}
# Characters of a client's name that an error quotes.
MAX_NAME = 64
_STRUCTURE_NAMES = {
    "json_schema": "JSON schemas",
    "json_object": "JSON objects",
    "regex": "regular expressions",
    "choice": "choices",
    "grammar": "grammars",
    "structural_tag": "structural tags",
}


_SOURCE_NAMES = {"data": "as data", "url": "by URL", "file_id": "by file id"}


class Need(NamedTuple):
    """Something that a request needs: the parameter, what it asks for, and whether a model can do it."""

    param: str
    what: str
    met: Callable[[Capabilities], bool]


class CapabilityCheck:
    """Checks requests against the capabilities of their model."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` if the model cannot serve the request."""
        missing = self.unmet(model, request)
        if missing is None:
            return
        all_needs = list(needs(request))
        models = self._registry.models.items()
        able = [name for name, spec in models if _unmet(spec, all_needs, request) is None and _has_room(spec, request)]
        others = f"models that can serve this request: {', '.join(able)}" if able else "no configured model can"
        raise InvalidRequest(
            f"{missing.param}: the model `{model}` does not support {missing.what}; {others}", param=missing.param
        )

    def unmet(self, model: str, request: GenerateRequest) -> Unsupported | None:
        """The first capability that a request needs and its model lacks; None if there is none."""
        return _unmet(self._registry[model], needs(request), request)


def _unmet(spec: ModelSpec, needed: Iterable[Need], request: GenerateRequest) -> Unsupported | None:
    """The first thing in a request that a model cannot do."""
    capabilities = spec.capabilities
    for need in needed:
        if not need.met(capabilities):
            return Unsupported(need.param, need.what)
    return next(spec.unsupported(request), None)


def _has_room(spec: ModelSpec, request: GenerateRequest) -> bool:
    """Whether the requested output can fit the model's context; `ContextWindow` checks this for the request's model."""
    return spec.max_model_len is None or (request.sampling.max_tokens or 0) <= spec.max_model_len


def needs(request: GenerateRequest) -> Iterator[Need]:
    """What a request needs of a model, beside an answer in text to a conversation."""
    if request.prompt is not None:
        yield Need("prompt", "prompts without a conversation", lambda model: model.raw_prompts)
        if isinstance(request.prompt, list):
            yield Need("prompt", "prompts of token ids", lambda model: model.token_prompts)
    else:
        yield Need("messages", "conversations", lambda model: model.conversations)
        yield from current_memo().once(_of_messages, request)
    yield from _sampling(request)
    if request.structured_outputs is not None:
        for name, value in request.structured_outputs:
            if value is not None and value is not False:
                yield Need("structured_outputs", _STRUCTURE_NAMES[name], _has("structures", name))
    if request.logprobs is not None:
        yield from _logprobs("logprobs", "", request.logprobs, lambda model: model.logprobs, "top_logprobs")
    if request.prompt_logprobs is not None:
        yield from _logprobs(
            "prompt_logprobs", " of the prompt", request.prompt_logprobs, lambda model: model.prompt_logprobs
        )
    if request.echo:
        yield Need("echo", "returning the prompt", lambda model: model.echo)
    if request.chat is not None:
        yield from _chat(request.chat)
    for name in request.extra_body or ():
        yield Need(f"extra_body.{name[:MAX_NAME]}", "this parameter", _has("extra_body", name))
    if request.chat is not None and request.chat.tools and request.structured_outputs is not None:
        yield Need(
            "structured_outputs", "structured outputs together with tools", lambda model: model.tools_with_structure
        )
    yield from _media(request)
    if request.messages is not None:  # searched only for models without tools
        yield Need("messages", "tool calls in earlier turns", lambda model: model.tools or not _has_calls(request))


def _has(capability: str, name: str) -> Callable[[Capabilities], bool]:
    return lambda model: name in getattr(model, capability)


def _has_calls(request: GenerateRequest) -> bool:
    return any(message.tool_calls or message.role == "tool" for message in request.messages or ())


def _of_messages(request: GenerateRequest) -> Sequence[Need]:
    return [*_ends(request.messages or [], request.chat), *_names(request.messages or ())]


def _ends(messages: Sequence[Message], chat: ChatOptions | None) -> Iterator[Need]:
    """What a conversation ends with."""
    last = next(filter(_says_something, reversed(messages)), None)
    if last is None:
        yield Need("messages", "conversations without a message of the user", lambda model: model.system_only)
    elif last.role == "assistant" and not (chat is not None and chat.continue_final_message and messages[-1] is last):
        what = "a message of the assistant at the end without continue_final_message"
        yield Need("messages", what, lambda model: model.trailing_assistant)


def _says_something(message: Message) -> bool:
    """Whether a message is not of the system, and more than white space."""
    if message.role in ("system", "developer"):
        return False
    if message.tool_calls or message.opaque or message.role == "tool":
        return True
    content = message.content
    if isinstance(content, list):
        return bool(message.media) or any(text and not text.isspace() for text in message.texts)
    return content is not None and content != "" and not content.isspace()


def _names(messages: Iterable[Message]) -> Iterator[Need]:
    """The names of authors. That of a tool repeats the name in its call."""
    for position, message in enumerate(messages):
        if message.name is not None and message.role != "tool":
            yield Need(f"messages[{position}].name", "names of authors", lambda model: model.names)
            return


def _media(request: GenerateRequest) -> Iterator[Need]:
    """The kinds of images and files, each at its first path: not a need for each, of which there may be many."""
    modalities: dict[str, str] = {}
    sources: dict[tuple[str, str], str] = {}
    types: dict[str, str] = {}
    in_results: list[str] = []
    for role, path, part in media_of(request)[:MAX_PARTS]:  # a request with more is rejected
        if role == "tool" and not in_results:
            in_results.append(path)
        modalities.setdefault(part.type, path)
        sources.setdefault((part.type, part.source), path)
        # Others are rejected for every model.
        if part.type == "file" and part.data is not None and is_known_file_type(part.media_type or ""):
            types.setdefault(part.media_type or "", path)
    for kind, path in modalities.items():
        yield Need(path, f"{kind}s", _has("modalities", kind))
    for path in in_results:
        yield Need(path, "images and files in results of tools", lambda model: model.tool_media)
    for (kind, source), path in sources.items():
        yield Need(path, f"{kind}s {_SOURCE_NAMES[source]}", _has(f"{kind}_sources", source))
    for media_type, path in types.items():
        yield Need(path, f"files of the type {media_type}", _has_file_type(media_type))


def _has_file_type(media_type: str) -> Callable[[Capabilities], bool]:
    return lambda model: (
        media_type in model.file_types or (media_type.startswith("text/") and "text/*" in model.file_types)
    )


def _sampling(request: GenerateRequest) -> Iterator[Need]:
    sampling = request.sampling
    if sampling.max_tokens is not None and not request.prompt_only:
        yield Need("max_tokens", "a limit of output tokens", lambda model: model.max_tokens)
    if (stops := len(sampling.stop)) > 1:
        yield Need("stop", f"{stops} stop strings", lambda model: _within(stops, model.max_stops))
    if (n := sampling.n) > 1:
        yield Need("n", f"{n} choices for one prompt", lambda model: n <= model.max_choices)
    for name in sampling.model_fields_set:
        if name in ("n", "max_tokens"):
            continue
        value = getattr(sampling, name)
        if name == "temperature" and value == 1:
            yield Need(name, "this parameter", lambda model: model.fixed_temperature or "temperature" in model.sampling)
        elif value != _SAMPLING_DEFAULTS[name] and value not in _NEUTRAL_SAMPLING.get(name, ()):
            yield Need(name, "this parameter", _has("sampling", name))


def _within(number: int, limit: int | None) -> bool:
    return limit is None or number <= limit


def _logprobs(
    param: str, of: str, number: int, limit_of: Callable[[Capabilities], int | None], number_param: str | None = None
) -> Iterator[Need]:
    """`number_param`: the parameter with the number of alternatives, if it is another one."""
    yield Need(param, f"log probabilities{of}", lambda model: limit_of(model) is not None)
    what = f"{number} alternatives for each token{of}"
    yield Need(number_param or param, what, lambda model: number <= (limit_of(model) or 0))


def _chat(chat: ChatOptions) -> Iterator[Need]:
    if chat.tools:
        yield Need("tools", "tools", lambda model: model.tools)
        number, longest = len(chat.tools), max(len(tool.function.name) for tool in chat.tools)
        yield Need("tools", f"{number} tools", lambda model: _within(number, model.max_tools))
        yield Need("tools", f"names of {longest} characters", lambda model: _within(longest, model.max_tool_name))
        kind: ToolChoiceKind = "named" if isinstance(chat.tool_choice, dict) else chat.tool_choice or "auto"
        what = "a tool choice that names a tool" if kind == "named" else f"the tool choice `{kind}`"
        yield Need("tool_choice", what, lambda model: kind in model.tool_choices)
    if chat.continue_final_message:
        yield Need("continue_final_message", "continuing the last message", lambda model: model.prefill)
    for name in chat.model_fields_set - _CHECKED_CHAT_OPTIONS:
        value = getattr(chat, name)
        if value == _CHAT_DEFAULTS[name] or value in _NEUTRAL_CHAT_OPTIONS.get(name, ()):
            continue
        if name == "add_generation_prompt" and chat.continue_final_message:
            continue  # required with it
        if name == "reasoning_effort" and value == "none":
            yield Need(name, "this parameter", _turns_reasoning_off)
        else:
            yield Need(name, "this parameter", _has("chat_options", name))


def _turns_reasoning_off(model: Capabilities) -> bool:
    return model.never_reasons or "reasoning_effort" in model.chat_options


_CHECKED_CHAT_OPTIONS = {"tools", "tool_choice", "continue_final_message", "include_reasoning"}
