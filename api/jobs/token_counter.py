"""Counts a prompt's tokens without torch: with the model's tokenizer, and its chat template in Jinja's sandbox."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, Message, Tool

logger = logging.getLogger(__name__)

# Chat options that change the rendered prompt in ways that only the engine knows.
_ENGINE_OPTIONS = ChatOptions.model_fields.keys() - {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "include_reasoning",
}


class TokenCounter:
    """Counts tokens with one model's tokenizer and chat template."""

    def __init__(self, folder: Path, *, renders_chat: bool = True) -> None:
        """`renders_chat`: see `shared.config.models.base.TokenizerFiles`."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text() if template_file.is_file() else config.get("chat_template")
        self._special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and value
        }
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = _to_json
        self._template = None
        if isinstance(template, str) and renders_chat:
            try:
                self._template = environment.from_string(template)
            except TemplateSyntaxError as error:  # the template uses an extension that only the engine has
                logger.warning("cannot read the chat template outside the engine: %s", error)
        self._longest_token = _longest_token(self._tokenizer)

    def count(self, request: GenerateRequest, limit: int | None = None) -> int | None:
        """Count the tokens of a prompt; None if its conversation cannot be rendered exactly as by the worker.

        With a limit, the result for a longer prompt may be `AtLeast` the limit: it is not encoded completely.
        """
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return self._encoded(request.prompt or "", limit, add_special_tokens=True)
        if self._template is None or not _is_renderable(request):
            return None
        messages = [_template_message(message) for message in request.messages]
        tools = request.chat.tools if request.chat is not None else None
        try:
            text = self._template.render(
                messages=messages,
                tools=[_template_tool(tool) for tool in tools] if tools else None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except (_TemplateError, SecurityError) as error:
            raise InvalidRequest(
                f"The model's chat template rejects the conversation: {error}", param="messages"
            ) from error
        except Exception as error:  # the template needs something that only the engine provides
            logger.warning("cannot render the chat template outside the engine: %s", error)
            return None
        return self._encoded(text, limit, add_special_tokens=False)

    def _encoded(self, text: str, limit: int | None, *, add_special_tokens: bool) -> int:
        if limit is not None and self._longest_token is not None:
            fewest = len(text.encode("utf-8", "surrogatepass")) // self._longest_token
            if fewest >= limit:
                return AtLeast(fewest)
        tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        for piece in _pieces(text):
            # `encode` would hold the interpreter's lock for half a second per megabyte.
            tokens += len(self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0])
            if limit is not None and tokens >= limit and piece is not text:
                return AtLeast(tokens)
        return tokens


class AtLeast(int):
    """A number of tokens that the prompt has at least."""


# Characters that are encoded in one piece, because an encoded text takes up to 100 times its size.
PIECE = 64 * 1024
# Every byte-level pre-tokenizer splits here.
_WORD_END = re.compile(r"[^\W\d_](?=[ \n,.;:!?，。、；：！？])")


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text after words; a word that is longer than a piece is cut too, and then counted inexactly."""
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        for match in _WORD_END.finditer(text, end - PIECE // 16, end + 1):
            end = match.end()
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """The bytes of a tokenizer's longest token; None if a token can stand for any number of bytes."""
    state = json.loads(tokenizer.to_str())
    pre_tokenizer = state.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if (
        state.get("normalizer") is not None  # it may remove text
        or state["model"].get("type") != "BPE"
        or state["model"].get("unk_token") is not None
        or state.get("truncation") is not None
        or not all(step.get("type") in ("ByteLevel", "Digits") or _splits_only(step) for step in steps)
        or all(step.get("type") != "ByteLevel" for step in steps)
        or any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    ):
        return None
    # In a byte-level vocabulary each character stands for one byte.
    added = [len(token["content"].encode()) for token in state["added_tokens"]]
    return max([*map(len, state["model"]["vocab"]), *added], default=None)


def _splits_only(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits the text without removing any of it."""
    return step.get("type") == "Split" and step.get("behavior") != "Removed"


def count_words(request: GenerateRequest, limit: int | None = None) -> int:
    """Count the tokens of a prompt for a model whose tokens are words, as `workers.engines.simulated.engine` does."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return _words(request.prompt or "") + 1
    return _words("\n".join(f"{item.role}: {item.text}" for item in request.messages)) + 1


def _words(text: str) -> int:
    words = 0
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        words += len(piece.split())
        if start and not (text[start - 1].isspace() or piece[0].isspace()):
            words -= 1  # a word that two pieces share
    return words


def is_plain(request: GenerateRequest) -> bool:
    """Whether a prompt has only texts, so that its size is known without rendering it."""
    chat = request.chat
    return (chat is None or not chat.tools) and not any(
        message.tool_calls or message.tool_call_id or message.reasoning or message.media for message in request.messages or ()
    )


class _TemplateError(TemplateError):
    """The template called `raise_exception`."""


def _raise(message: str) -> Any:
    raise _TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of the transformers library."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_renderable(request: GenerateRequest) -> bool:
    """Whether the conversation can be rendered here. Only engines know which templates support developer messages."""
    chat = request.chat or ChatOptions()
    default = ChatOptions()
    return all(message.role != "developer" for message in request.messages or ()) and all(
        getattr(chat, option) == getattr(default, option) for option in _ENGINE_OPTIONS & chat.model_fields_set
    )


def _template_message(message: Message) -> dict[str, Any]:
    """A message as vLLM passes it to chat templates: the arguments of calls are objects, and the content is a text."""
    fields = {**message.model_dump(exclude_none=True, exclude={"content", "opaque"}), "content": message.text}
    if "reasoning" in fields:
        fields["reasoning_content"] = fields["reasoning"]
    for call in fields.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return fields


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text) if text else {}
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _template_tool(tool: Tool) -> dict[str, Any]:
    """A tool as vLLM passes it to chat templates."""
    function = tool.function.model_dump()
    if function["strict"] is None:
        del function["strict"]
    return {"type": tool.type, "function": function}
