"""What Anthropic's API refuses in a request to a model: values, and combinations of parameters.

Admission and the engine apply the same rules. https://platform.claude.com/docs/en/api/messages; for combinations with
thinking .../docs/en/build-with-claude/extended-thinking, with a started answer
.../docs/en/build-with-claude/prompt-engineering/prefill-claudes-response and .../build-with-claude/structured-outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.config.models.base import Unsupported
from shared.config.models.claude import ClaudeLimits
from shared.domain.request import ChatOptions, GenerateRequest, Message, Sampling

MIN_BUDGET = 1024
# The least top_p of a request with thinking.
MIN_TOP_P_WITH_THINKING = 0.95
_NO_OPTIONS = ChatOptions()


def unsupported(request: GenerateRequest, limits: ClaudeLimits, default_max_tokens: int) -> Iterator[Unsupported]:
    """What a model with these limits does not support in a request."""
    chat, sampling = request.chat or _NO_OPTIONS, request.sampling
    if limits.max_output_tokens is not None and output_limit(request, 0) > limits.max_output_tokens:
        yield Unsupported("max_tokens", f"more than {limits.max_output_tokens} output tokens")
    thinks = requests_thinking(request, limits)
    yield from _thinking(request, chat, limits, output_limit(request, default_max_tokens))
    if is_forced(chat) and (thinks or limits.thinking in ("between_tools", "always")):
        yield Unsupported("tool_choice", "a forced tool call while it thinks")
    yield from _sampling(sampling, limits, thinks=thinks)
    if limits.is_claude and any(not text.strip() for text in sampling.stop):
        yield Unsupported("stop", "stop strings of white space")
    if chat.continue_final_message and request.messages and request.messages[-1].role == "assistant":
        yield from _started_answer(request, request.messages[-1], chat, limits, thinks=thinks)


def output_limit(request: GenerateRequest, default: int) -> int:
    """The limit of output tokens. A request that only counts its prompt generates nothing, whatever its limit."""
    return (None if request.prompt_only else request.sampling.max_tokens) or default


def requests_thinking(request: GenerateRequest, limits: ClaudeLimits) -> bool:
    """Whether a request turns thinking on."""
    effort = request.chat.reasoning_effort if request.chat is not None else None
    budget = request.sampling.thinking_token_budget
    if effort == "none" or budget == 0:
        return False
    decides_itself = request.adaptive_thinking and limits.thinking in ("adaptive", "between_tools", "always")
    return effort is not None or budget is not None or decides_itself


def is_forced(chat: ChatOptions) -> bool:
    """Whether the model is forced to call a tool, which the API allows only without thinking."""
    return chat.tool_choice == "required" or isinstance(chat.tool_choice, dict)


def _thinking(
    request: GenerateRequest, chat: ChatOptions, limits: ClaudeLimits, max_tokens: int
) -> Iterator[Unsupported]:
    effort, budget = chat.reasoning_effort, request.sampling.thinking_token_budget
    if effort == "none" or budget == 0:
        param = "reasoning_effort" if effort == "none" else "thinking_token_budget"
        if limits.thinking == "always":
            yield Unsupported(param, "turning thinking off")
        elif limits.thinking == "between_tools" and chat.tools:
            yield Unsupported(param, "turning thinking off in a conversation with tools")
        return
    if effort is not None and limits.thinking == "none":
        yield Unsupported("reasoning_effort", "thinking")
    if effort == "xhigh" and not limits.xhigh:
        yield Unsupported("reasoning_effort", "the effort `xhigh`")
    if budget is not None and limits.thinking != "budget":
        yield Unsupported("thinking_token_budget", "thinking budgets; send reasoning_effort instead")
    elif budget is not None and budget < MIN_BUDGET:
        yield Unsupported("thinking_token_budget", f"thinking budgets of less than {MIN_BUDGET} tokens, except 0")
    elif budget is not None and budget >= max_tokens:
        # A limit that the client did not set is none of its parameters.
        param = "thinking_token_budget" if request.sampling.max_tokens is None else "max_tokens"
        yield Unsupported(param, f"a limit of {max_tokens} output tokens with a thinking budget of {budget}")
    elif effort is not None and limits.thinking == "budget" and max_tokens <= MIN_BUDGET:
        param = "reasoning_effort" if request.sampling.max_tokens is None else "max_tokens"
        yield Unsupported(param, f"thinking with a limit of {max_tokens} output tokens; it needs {MIN_BUDGET + 1}")


def _sampling(sampling: Sampling, limits: ClaudeLimits, *, thinks: bool) -> Iterator[Unsupported]:
    temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
    changes_temperature = temperature is not None and temperature != 1
    changes_top_p = top_p is not None and top_p != 1
    changes_top_k = top_k is not None and top_k > 0
    if not limits.sampling:
        changed = {"temperature": changes_temperature, "top_p": changes_top_p, "top_k": changes_top_k}
        yield from (Unsupported(name, "other values than the default") for name, is_set in changed.items() if is_set)
        return
    if temperature is not None and temperature > 1:
        yield Unsupported("temperature", "temperatures above 1")
    if not limits.is_claude:
        return
    if limits.either_temperature_or_top_p and changes_temperature and changes_top_p:
        yield Unsupported("top_p", "temperature and top_p in one request")
    if thinks and changes_temperature:
        yield Unsupported("temperature", "other temperatures than 1 while it thinks")
    if thinks and changes_top_k:
        yield Unsupported("top_k", "this parameter while it thinks")
    if thinks and top_p is not None and top_p < MIN_TOP_P_WITH_THINKING:
        yield Unsupported("top_p", f"values below {MIN_TOP_P_WITH_THINKING} while it thinks")


def _started_answer(
    request: GenerateRequest, last: Message, chat: ChatOptions, limits: ClaudeLimits, *, thinks: bool
) -> Iterator[Unsupported]:
    if not limits.prefill:
        yield Unsupported("messages", "continuing a message of the assistant")
    elif thinks:
        yield Unsupported("continue_final_message", "continuing a message while it thinks")
    elif is_forced(chat):
        yield Unsupported("continue_final_message", "continuing a message with a forced tool call")
    elif request.structured_outputs is not None:
        yield Unsupported("continue_final_message", "continuing a message with a structured output")
    elif last.text[-1:].isspace():
        yield Unsupported("continue_final_message", "continuing a message that ends with white space")
