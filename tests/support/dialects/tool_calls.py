"""Tool calls: ids, indices, names and arguments."""

from __future__ import annotations

from typing import Any

from shared.domain.job import ToolCall
from tests.support.dialects.base import (
    ANY_ID,
    ONE_CALL,
    PARIS,
    ROME,
    TWO_CALLS,
    TWO_MADE,
    Dialect,
    call,
    calls,
    delta,
    end,
    frame,
    frames,
    part,
)


def _tool_calls(name: str, source: str, *chunks: dict[str, Any], **expected: Any) -> Dialect:
    """A stream of tool calls that ends with the finish reason "tool_calls"."""
    expected.setdefault("calls", TWO_CALLS)
    return Dialect(name=name, source=source, writes=frames(*chunks, end("tool_calls")), finish="tool_calls", **expected)


def _arguments(escaped: bytes) -> bytes:
    return frame(
        rb'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}}]}' % escaped
    )


TOOL_CALLS = (
    _tool_calls(
        "OpenAI: id and name once, arguments in pieces",
        "OpenAI API reference",
        calls(call("weather", "", index=0, id="a")),
        calls(call(None, '{"city": ', index=0)),
        calls(call(None, '"Paris"}', index=0)),
        calls(call("weather", "", index=1, id="b")),
        calls(call(None, ROME, index=1)),
    ),
    _tool_calls(
        "Ollama: all calls have index 0, one chunk each",
        "ollama/ollama#15457",
        calls(call("weather", PARIS, index=0, id="a")),
        calls(call("weather", ROME, index=0, id="b")),
    ),
    _tool_calls(
        "Ollama: all calls have index 0, in one chunk",
        "ollama/ollama#15457",
        calls(call("weather", PARIS, index=0, id="a"), call("weather", ROME, index=0, id="b")),
    ),
    _tool_calls(
        "a gateway: index 0 for all, arguments in pieces",
        "apache/maka#1976",
        calls(call("weather", "", index=0, id="a")),
        calls(call(None, '{"city": ', index=0)),
        calls(call(None, '"Paris"}', index=0)),
        calls(call("weather", "", index=0, id="b")),
        calls(call(None, '{"city": ', index=0)),
        calls(call(None, '"Rome"}', index=0)),
    ),
    _tool_calls(
        "index 0 for all, the same call twice",
        "run-llama/llama_index#23032",
        calls(call("weather", PARIS, index=0, id="a")),
        calls(call("weather", PARIS, index=0, id="b")),
        calls=(ToolCall("a", "weather", PARIS), ToolCall("b", "weather", PARIS)),
    ),
    _tool_calls(
        "Gemini: no index",
        "googleapis/python-genai#2868, open-webui/computer#224",
        calls(call("weather", PARIS, id="a", extra_content={"google": {"thought_signature": "x"}})),
        calls(call("weather", ROME, id="b")),
    ),
    _tool_calls(
        "Gemini through a proxy: no index, pieces with an empty id",
        "AstrBotDevs/AstrBot#6661",
        calls(call("weather", "", id="a")),
        calls(call(None, '{"city": ', id="")),
        calls(call(None, '"Paris"}', id="")),
        calls(call("weather", "", id="b")),
        calls(call(None, ROME, id="")),
    ),
    _tool_calls(
        "no index, the id in each chunk",
        "BerriAI/litellm#20480",
        calls(call("weather", '{"city": ', id="a")),
        calls(call(None, '"Paris"}', id="a")),
        calls(call("weather", '{"city": ', id="b")),
        calls(call(None, '"Rome"}', id="b")),
    ),
    _tool_calls(
        "a proxy of Claude: indices from 1",
        "router-for-me/CLIProxyAPI#5229",
        calls(call("weather", PARIS, index=1, id="a")),
        calls(call("weather", "", index=2, id="b")),
        calls(call(None, ROME, index=2)),
    ),
    _tool_calls(
        "a proxy of Bedrock: the first index is -1",
        "aws-samples/bedrock-access-gateway#247",
        calls(call("weather", "", index=-1, id="a")),
        calls(call(None, PARIS, index=-1)),
        calls(call("weather", "", index=0, id="b")),
        calls(call(None, ROME, index=0)),
    ),
    _tool_calls(
        "a proxy of Bedrock: indices of content blocks, with gaps",
        "higress-group/higress#3786",
        calls(call("weather", PARIS, index=1, id="a")),
        calls(call("weather", ROME, index=4, id="b")),
    ),
    _tool_calls(
        "SGLang: the first index is the tool's, the next are the call's",
        "sgl-project/sglang#6310",
        calls(call("weather", "", index=3, id="a")),
        calls(call(None, PARIS, index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "indices as text",
        "JSON from untyped servers",
        calls(call("weather", PARIS, index="0", id="a")),
        calls(call("weather", '{"city": ', index="1", id="b")),
        calls(call(None, '"Rome"}', index="1")),
    ),
    _tool_calls(
        "LM Studio: a new id and an empty name in each chunk",
        "NousResearch/hermes-agent#5331",
        calls(call("weather", "", index=0, id="a")),
        calls(call("", '{"city":', index=0, id="a1")),
        calls(call("", ' "Paris"}', index=0, id="a2")),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "LM Studio: a call without an id, a name and arguments",
        "lmstudio-ai/lmstudio-bug-tracker#830",
        calls(call("weather", PARIS, index=0, id="a")),
        calls(call(id="")),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "MiniMax on NIM: the name in each chunk",
        "NousResearch/hermes-agent#8259",
        calls(call("weather", "", index=0, id="a")),
        calls(call("weather", '{"city": ', index=0)),
        calls(call("weather", '"Paris"}', index=0)),
        calls(call("weather", ROME, index=1, id="b")),
    ),
    _tool_calls(
        "the name is empty after the first chunk",
        "0xPlaygrounds/rig#423",
        calls(call("weather", "", index=0, id="a")),
        calls(call("", PARIS, index=0, id="")),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "the name follows the id",
        "sgl-project/sglang#4700",
        calls(call(None, None, index=0, id="a")),
        calls(call("weather", None, index=0)),
        calls(call(None, PARIS, index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "no ids at all",
        "BerriAI/litellm#33223",
        calls(call("weather", '{"city": ', index=0)),
        calls(call(None, '"Paris"}', index=0)),
        calls(call("weather", ROME, index=1)),
        calls=TWO_MADE,
    ),
    _tool_calls(
        "no ids, all indices 0",
        "QuantumNous/new-api#2701",
        calls(call("weather", PARIS, index=0)),
        calls(call("weather", ROME, index=0)),
        calls=TWO_MADE,
    ),
    _tool_calls(
        "neither ids nor indices",
        "ollama/ollama#7881",
        calls(call("weather", PARIS)),
        calls(call("weather", ROME)),
        calls=TWO_MADE,
    ),
    _tool_calls(
        "ids are null or empty",
        "BerriAI/litellm#33223",
        calls(call("weather", PARIS, index=0, id="")),
        calls(call("weather", ROME, index=1, id=None)),
        calls=TWO_MADE,
    ),
    _tool_calls(
        "TGI: the id is the number 0 for all calls",
        "huggingface/text-generation-inference#2136",
        calls(call("weather", PARIS, index=0, id=0)),
        calls(call("weather", ROME, index=1, id=0)),
        calls=(ToolCall("0", "weather", PARIS), ToolCall(ANY_ID, "weather", ROME)),
    ),
    _tool_calls(
        "the id comes after the first chunk",
        "langchain-ai/langchainjs#8581",
        calls(call("weather", "", index=0)),
        calls(call(None, PARIS, index=0, id="a")),
        calls=(ToolCall(ANY_ID, "weather", PARIS),),
    ),
    _tool_calls(
        "TGI: arguments as an object",
        "huggingface/text-generation-inference#2461",
        calls(call("weather", {"city": "Paris"}, index=0, id="a")),
        calls=(ToolCall("a", "weather", '{"city":"Paris"}'),),
    ),
    _tool_calls(
        "TGI: one call in place of the list, arguments in pieces, the name in each",
        "huggingface/text-generation-inference#2954",
        delta(tool_calls=call("weather", '{"city": ', index=0, id="")),
        delta(tool_calls=call("weather", '"Paris"}', index=0, id="")),
        calls=(ToolCall(ANY_ID, "weather", PARIS),),
    ),
    _tool_calls(
        "arguments null, then empty: a tool without parameters",
        "langchain-ai/langchainjs#8581",
        calls(call("weather", index=0, id="a")),
        calls(call(None, "", index=0)),
        calls=(ToolCall("a", "weather", "{}"),),
    ),
    _tool_calls(
        "Claude through a proxy: {} first, then the arguments",
        "BerriAI/litellm#5231",
        calls(call("weather", "{}", index=0, id="a")),
        calls(call(None, '{"city": ', index=0)),
        calls(call(None, '"Paris"}', index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "arguments are {} and stay {}",
        "OpenAI API reference",
        calls(call("now", "{}", index=0, id="a")),
        calls(call("weather", ROME, index=1, id="b")),
        calls=(ToolCall("a", "now", "{}"), ToolCall("b", "weather", ROME)),
    ),
    _tool_calls(
        "LiteLLM: the whole call again at the end",
        "BerriAI/litellm#20480",
        calls(call("weather", '{"city": ', index=0, id="a")),
        calls(call(None, '"Paris"}', index=0, id="a")),
        calls(call("weather", PARIS, index=0, id="a")),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "vLLM's xlam parser: the arguments twice",
        "vllm-project/vllm#51697",
        calls(call("weather", "", index=0, id="a")),
        calls(call(None, PARIS, index=0)),
        calls(call(None, PARIS, index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "vLLM's xlam parser: a brace, then the whole arguments",
        "vllm-project/vllm#51697",
        calls(call("weather", "{", index=0, id="a")),
        calls(call(None, PARIS, index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "each chunk has all the arguments so far",
        "lidge-jun/opencodex#361",
        calls(call("weather", '{"city', index=0, id="a")),
        calls(call(None, '{"city": ', index=0)),
        calls(call(None, PARIS, index=0)),
        calls=ONE_CALL,
    ),
    _tool_calls(
        "arguments that contain their own beginning",
        "JSON",
        calls(call("f", '{"a":', index=0, id="a")),
        calls(call(None, '{"a":', index=0)),
        calls(call(None, '{"a": "{}{"}}}', index=0)),
        calls=(ToolCall("a", "f", '{"a":{"a":{"a": "{}{"}}}'),),
    ),
    _tool_calls(
        "fragments of two calls alternate",
        "OpenAI API reference: fragments are joined by index",
        calls(call("weather", "", index=0, id="a"), call("weather", "", index=1, id="b")),
        calls(call(None, '{"city": ', index=0), call(None, '{"city": ', index=1)),
        calls(call(None, '"Paris"}', index=0), call(None, '"Rome"}', index=1)),
    ),
    _tool_calls(
        "text before and after a call",
        "meilisearch/meilisearch#6327",
        part("Hi "),
        calls(call("weather", PARIS, index=0, id="a")),
        part("there"),
        calls=ONE_CALL,
        text="Hi there",
    ),
    Dialect(
        name="a surrogate pair in two fragments",
        source="elizaOS/eliza#30904",
        writes=(
            frames(calls(call("weather", '{"city": "', index=0, id="a")), done=False)[0]
            + _arguments(rb"\ud83c")
            + _arguments(rb"\udf0a\"}")
            + frames(end("tool_calls"))[0],
        ),
        calls=(ToolCall("a", "weather", '{"city": "🌊"}'),),
        finish="tool_calls",
    ),
    Dialect(
        name="the last fragment and the finish reason in one chunk",
        source="vllm-project/vllm#44098",
        writes=frames(
            calls(call("weather", '{"city": ', index=0, id="a")),
            calls(call("weather", '"Paris"}', index=0, id="a"), reason="tool_calls"),
        ),
        calls=ONE_CALL,
        finish="tool_calls",
    ),
    Dialect(
        name="the old function_call",
        source="OpenAI API reference (deprecated)",
        writes=frames(
            delta(function_call={"name": "weather", "arguments": ""}),
            delta(function_call={"arguments": '{"city": '}),
            delta(function_call={"arguments": '"Paris"}'}),
            end("function_call"),
        ),
        calls=(ToolCall(ANY_ID, "weather", PARIS),),
        finish="tool_calls",
    ),
    Dialect(
        name="Gemini: the finish reason of a tool call is stop",
        source="googleapis/python-genai#2868",
        writes=frames(calls(call("weather", PARIS, id="a")), end("stop")),
        calls=ONE_CALL,
        finish="tool_calls",
    ),
    Dialect(
        name="a call that max_tokens truncates stays truncated",
        source="OpenAI API reference",
        writes=frames(calls(call("weather", '{"ci', index=0, id="a")), end("length")),
        calls=(ToolCall("a", "weather", '{"ci'),),
        finish="length",
    ),
)
