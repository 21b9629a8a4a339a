"""Converts a Messages request to an engine request.

A test compares the result with that of vLLM's Anthropic endpoint (vllm.entrypoints.anthropic). The exception is an
assistant message at the end, which is continued here, as in Anthropic's API.
"""

from __future__ import annotations

from typing import Any, Literal

from api.anthropic.cache_control import last_breakpoint, system_breakpoints, tool_breakpoints, turn_breakpoints
from api.anthropic.schemas import (
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from shared.domain.errors import InvalidRequest
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
    return conversation(body).model_copy(update={"sampling": sampling, "priority": body.priority})


def conversation(body: CountTokensRequest) -> GenerateRequest:
    """Build the part of the engine request that determines the prompt.

    Raises:
        InvalidRequest: all messages are empty.
    """
    messages: list[Message] = []
    breakpoints = list(tool_breakpoints(body))
    blocks = [block for block in body.system if not block.text.startswith(BILLING)]
    if system := "".join(block.text for block in blocks):
        messages.append(Message(role="system", content=system))
        breakpoints += system_breakpoints(blocks)
    before = len(messages)
    for turn in body.messages:
        converted = _messages(turn)
        breakpoints += turn_breakpoints(turn, converted, len(messages))
        messages += converted
    if len(messages) == before:
        raise InvalidRequest("messages: all messages are empty", param="messages")
    if body.cache_control is not None:
        breakpoints.append(last_breakpoint(body.cache_control, len(messages)))
    output_format = body.output_config.format if body.output_config is not None else None
    output_format = output_format or body.output_format
    structured = StructuredOutputs(json_schema=output_format.json_schema) if output_format is not None else None
    return GenerateRequest(
        messages=messages,
        chat=_chat_options(body),
        structured_outputs=structured,
        cache_breakpoints=breakpoints,
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


def _messages(turn: InputMessage) -> list[Message]:
    """Convert an input message. Each tool result becomes a message, before the rest."""
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[MessageToolCall] = []
    results: list[Message] = []
    for block in turn.content:
        match block:
            case TextBlock() if block.text and not (turn.role == "system" and block.text.startswith(BILLING)):
                texts.append(block.text)
            case ThinkingBlock():
                thinking.append(block.thinking)
            case ToolUseBlock():
                arguments = json_text(block.input)
                calls.append(MessageToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments)))
            case ToolResultBlock():
                content = "\n".join(item.text for item in block.content)
                results.append(Message(role="tool", tool_call_id=block.tool_use_id, content=content))
            case _:  # an empty text, a billing text, and redacted thinking
                pass
    if not texts and turn.role != "assistant":
        return results
    text = ("" if turn.role == "system" else "\n").join(texts) if texts else None if calls else ""
    return [
        *results,
        Message(role=turn.role, content=text, reasoning="".join(thinking) or None, tool_calls=calls or None),
    ]
