"""Converts a Messages request to an engine request.

A test compares the result with that of vLLM's Anthropic endpoint (vllm.entrypoints.anthropic). The exception is an
assistant message at the end, which is continued here, as in Anthropic's API.
"""

from __future__ import annotations

from base64 import b64encode
from itertools import islice
from typing import Any, Literal

from api.anthropic.cache_control import last_breakpoint, system_breakpoints, tool_breakpoints, turn_breakpoints
from api.anthropic.schemas import (
    Base64Source,
    CountTokensRequest,
    DocumentBlock,
    FileSource,
    ImageBlock,
    InputMessage,
    MessagesRequest,
    RedactedThinkingBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)
from shared.domain.content import ContentPart, FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.opaque import MAX_OPAQUE_PARTS, OpaquePart, decode
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
    json_text,
)

# Anthropic's API refuses more than four. These are enough to be refused, and finding all could take long.
MAX_BREAKPOINTS = 16
# Claude Code starts its system prompt with a hash of the request, which would defeat prefix caching.
BILLING = "x-anthropic-billing-header"
# Engines reject 0, which means the same: only the most likely token.
SMALLEST_TOP_P = 1e-6
_TOOL_CHOICES: dict[str, Literal["auto", "required", "none"]] = {"auto": "auto", "any": "required", "none": "none"}


def generate_request(body: MessagesRequest) -> GenerateRequest:
    """Build the engine request.

    Raises:
        InvalidRequest: all messages are empty.
    """
    parameters: dict[str, Any] = {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p if body.top_p != 0 else SMALLEST_TOP_P,
        "thinking_token_budget": body.thinking.budget_tokens if body.thinking is not None else None,
    }
    sampling = Sampling.model_validate({name: value for name, value in parameters.items() if value is not None})
    return conversation(body).model_copy(
        update={"sampling": sampling, "priority": body.priority, "extra_body": body.extra_body}
    )


def conversation(body: CountTokensRequest) -> GenerateRequest:
    """Build the part of the engine request that determines the prompt.

    Raises:
        InvalidRequest: all messages are empty.
    """
    messages: list[Message] = []
    breakpoints = list(islice(tool_breakpoints(body), MAX_BREAKPOINTS))
    blocks = [block for block in body.system if not block.text.startswith(BILLING)]
    if system := "".join(block.text for block in blocks):
        messages.append(Message(role="system", content=system))
        breakpoints += islice(system_breakpoints(blocks), MAX_BREAKPOINTS - len(breakpoints))
    before = len(messages)
    tool_errors: list[int] = []
    for index, turn in enumerate(body.messages):
        converted = _messages(turn, f"messages[{index}]")
        found = turn_breakpoints(turn, converted, len(messages))
        breakpoints += islice(found, MAX_BREAKPOINTS - len(breakpoints))
        # The results of a turn are messages of their own, before the rest of it.
        results = (block for block in turn.content if isinstance(block, ToolResultBlock))
        tool_errors += (len(messages) + position for position, block in enumerate(results) if block.is_error)
        messages += converted
    if len(messages) == before:
        raise InvalidRequest("messages: all messages are empty", param="messages")
    if body.cache_control is not None and len(breakpoints) < MAX_BREAKPOINTS:
        breakpoints.append(last_breakpoint(body.cache_control, len(messages)))
    output_format = body.output_config.format if body.output_config is not None else None
    output_format = output_format or body.output_format
    structured = StructuredOutputs(json_schema=output_format.json_schema) if output_format is not None else None
    return GenerateRequest(
        messages=messages,
        chat=_chat_options(body),
        structured_outputs=structured,
        cache_breakpoints=breakpoints,
        tool_errors=tool_errors,
        adaptive_thinking=body.thinking is not None and body.thinking.type == "adaptive",
    )


def _chat_options(body: CountTokensRequest) -> ChatOptions:
    options = ChatOptions()
    if body.tools:
        options.tools = [
            Tool(
                function=Function(
                    name=tool.name,
                    description=tool.description,
                    parameters={"type": "object"} | tool.input_schema,
                    strict=tool.strict,
                )
            )
            for tool in body.tools
        ]
        options.tool_choice = "auto"
    if body.tools and body.tool_choice is not None:
        options.tool_choice = _tool_choice(body.tool_choice)
        options.parallel_tool_calls = not body.tool_choice.disable_parallel_tool_use
    if body.output_config is not None:
        options.reasoning_effort = body.output_config.effort
    if body.thinking is not None and body.thinking.type == "disabled":
        options.reasoning_effort = "none"
    if body.messages[-1].role == "assistant":
        options.add_generation_prompt = False
        options.continue_final_message = True
    return options


def _tool_choice(choice: ToolChoice) -> Literal["none", "auto", "required"] | dict[Literal["name"], str]:
    return {"name": choice.name} if choice.name is not None else _TOOL_CHOICES[choice.type]


def _messages(turn: InputMessage, path: str) -> list[Message]:
    """Convert an input message, which is at `path`. Each tool result becomes a message, before the rest."""
    if turn.role == "assistant":
        return [_assistant_message(turn)]
    parts: list[ContentPart] = []
    results: list[Message] = []
    for position, block in enumerate(turn.content):
        at = f"{path}.content[{position}]"
        match block:
            case TextBlock() if block.text and not (turn.role == "system" and block.text.startswith(BILLING)):
                parts.append(TextPart(type="text", text=block.text))
            case ImageBlock() | DocumentBlock():
                parts.append(_media(block, at))
            case ToolResultBlock():
                content = _content(
                    [_result_part(item, f"{at}.content[{number}]") for number, item in enumerate(block.content)]
                )
                results.append(Message(role="tool", tool_call_id=block.tool_use_id, content=content))
            case _:  # an empty text, a billing text
                pass
    if not parts:
        return results
    return [*results, Message(role=turn.role, content=_content(parts, "" if turn.role == "system" else "\n"))]


def _assistant_message(turn: InputMessage) -> Message:
    """Convert a turn of the model. The places of opaque parts follow from the order of the blocks."""
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[MessageToolCall] = []
    opaque: list[OpaquePart] = []
    for block in turn.content:
        part = None
        match block:
            case TextBlock() if block.text:
                texts.append(block.text)
            case ThinkingBlock():
                thinking.append(block.thinking)
                part = decode(block.signature)
            case RedactedThinkingBlock():
                part = decode(block.data)
            case ToolUseBlock():
                arguments = json_text(block.input)
                calls.append(MessageToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments)))
            case _:  # an empty text
                pass
        if part is not None and len(opaque) < MAX_OPAQUE_PARTS:
            place = {"reasoning": sum(map(len, thinking)), "text": sum(map(len, texts)), "calls": len(calls)}
            opaque.append(part.at(**place))
    content: str | list[ContentPart] | None
    if opaque and len(texts) > 1:  # their boundaries are needed for the order
        content = [TextPart(type="text", text=text) for text in texts]
    else:
        content = "\n".join(texts) if texts else None if calls else ""
    return Message(
        role="assistant",
        content=content,
        reasoning="".join(thinking) or None,
        tool_calls=calls or None,
        opaque=opaque or None,
    )


def _content(parts: list[ContentPart], separator: str = "\n") -> str | list[ContentPart]:
    """A content of these parts; a string if all are texts."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return separator.join(texts) if len(texts) == len(parts) else parts


def _result_part(block: TextBlock | ImageBlock | DocumentBlock, path: str) -> ContentPart:
    return TextPart(type="text", text=block.text) if isinstance(block, TextBlock) else _media(block, path)


def _media(block: ImageBlock | DocumentBlock, path: str) -> ImagePart | FilePart:
    source: dict[str, str] = {"path": path}
    match block.source:
        case Base64Source(media_type=media_type, data=data):
            source |= {"media_type": media_type, "data": data}
        case TextSource(data=text):
            source |= {"media_type": "text/plain", "data": b64encode(text.encode()).decode()}
        case UrlSource(url=url):
            source["url"] = url
        case FileSource(file_id=file_id):
            source["file_id"] = file_id
    if isinstance(block, ImageBlock):
        return ImagePart(type="image", **source)
    return FilePart(type="file", filename=block.title, context=block.context, **source)
