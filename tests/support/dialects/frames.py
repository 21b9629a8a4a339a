"""The bytes around the chunks, and documents in place of a stream."""

from __future__ import annotations

import gzip
import json
from typing import Any

from shared.domain.job import ToolCall
from tests.support.dialects.base import (
    COUNTED,
    DONE,
    HI,
    JSON,
    PARIS,
    TWO_CALLS,
    USAGE,
    Dialect,
    call,
    end,
    frame,
    frames,
    part,
)

PLAIN = frames(*HI, end())[0]
EMOJI = frames(part("Mühle "), part("水車 "), part("🌊"), end())[0]
RAW_EMOJI = b"".join(
    b"data: " + json.dumps(item, ensure_ascii=False).encode() + b"\n\n"
    for item in (part("Mühle "), part("水車 "), part("🌊"), end())
)
WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
WHOLE_CALLS = {
    "choices": [
        {
            "message": {
                "content": None,
                "tool_calls": [call("weather", PARIS, id="a"), call("weather", {"city": "Rome"}, id="b")],
            },
            "finish_reason": "tool_calls",
        }
    ]
}


def _bytes(name: str, source: str, *writes: bytes, **expected: Any) -> Dialect:
    expected.setdefault("text", "Hi there")
    return Dialect(name=name, source=source, writes=writes, **expected)


FRAMES = (
    _bytes("CRLF", "HTML standard", PLAIN.replace(b"\n", b"\r\n")),
    _bytes("CR", "HTML standard", PLAIN.replace(b"\n", b"\r")),
    _bytes("CRLF, cut between CR and LF", "HTML standard", *(b"%c" % byte for byte in PLAIN.replace(b"\n", b"\r\n"))),
    _bytes("mixed line ends", "langgenius/dify#2144", PLAIN.replace(b"\n\n", b"\r\n\r\n", 1)),
    _bytes("no space after data:", "karthink/gptel#592", PLAIN.replace(b"data: ", b"data:")),
    _bytes(
        "two spaces, and at the end of the line",
        "gateways",
        PLAIN.replace(b"data: ", b"data:  ").replace(b"\n\n", b" \n\n"),
    ),
    _bytes("a byte order mark", "HTML standard", b"\xef\xbb\xbf" + PLAIN),
    _bytes(
        "OpenRouter's comments",
        "docker/docker-agent#2349",
        b": OPENROUTER PROCESSING\n\n" * 3 + PLAIN.replace(b"\n\n", b"\n\n: OPENROUTER PROCESSING\n\n", 1),
    ),
    _bytes("DeepSeek's keep-alive comments", "tmc/langchaingo#942", b": keep-alive\n\n" * 3 + PLAIN),
    _bytes("comments that a proxy made events", "mnfst/llm-gateway#2053", b"data: : OPENROUTER PROCESSING\n\n" + PLAIN),
    _bytes("empty events", "coddy-project/coddy-agent#106", b"data:\n\ndata: \n\n" + PLAIN),
    _bytes(
        "event, id and retry fields",
        "theopenco/llmgateway#2334",
        b"retry: 5\n" + PLAIN.replace(b"data: {", b"event: message\nid: 7\ndata: {"),
    ),
    _bytes(
        "data over several lines",
        "HTML standard",
        b"".join(
            b"".join(b"data: %b\n" % line for line in json.dumps(item, indent=1).encode().split(b"\n")) + b"\n"
            for item in (*HI, end())
        )
        + DONE,
    ),
    _bytes("one line break between events", "ggml-org/llama.cpp#14268", PLAIN.replace(b"\n\n", b"\n")),
    _bytes("no line break after the last line", "darshi1337/apogee#139", PLAIN.removesuffix(b"\n\n")),
    _bytes("data: twice", "openclaw/openclaw#97474", PLAIN.replace(b"data: ", b"data: data: ")),
    _bytes("spaces before the field", "gateways", PLAIN.replace(b"data: ", b" data: ")),
    _bytes(
        "cut inside of characters",
        "RFC 3629",
        *(RAW_EMOJI[at : at + 3] for at in range(0, len(RAW_EMOJI), 3)),
        text="Mühle 水車 🌊",
    ),
    _bytes("escaped characters", "RFC 8259", EMOJI, text="Mühle 水車 🌊"),
    _bytes(
        "half a character in a chunk",
        "abetlen/llama-cpp-python (raw token bytes)",
        frame(b'{"choices":[{"index":0,"delta":{"content":"Hi \xe6\xb0"}}]}') + frames(end())[0],
        text="Hi \ufffd",
    ),
    _bytes(
        "half a surrogate pair in a chunk",
        "RFC 8259, section 8.2",
        frame(rb'{"choices":[{"index":0,"delta":{"content":"Hi \ud83c"}}]}') + frames(end())[0],
        text="Hi \ufffd",
    ),
    _bytes(
        "a surrogate pair in two chunks",
        "elizaOS/eliza#30904",
        frame(rb'{"choices":[{"index":0,"delta":{"content":"Hi \ud83c"}}]}')
        + b": ping\n\n"
        + frame(rb'{"choices":[{"index":0,"delta":{"content":"\udf0a \ud83d"}}]}')
        + frame(rb'{"choices":[{"index":0,"delta":{"content":"\ude00"},"finish_reason":"stop"}]}'),
        text="Hi 🌊 😀",
    ),
    _bytes(
        "half a surrogate pair, then another text",
        "RFC 8259, section 8.2",
        frame(rb'{"choices":[{"index":0,"delta":{"content":"Hi \ud83c"}}]}')
        + frame(rb'{"choices":[{"index":0,"delta":{"content":"the\ude00re"}}]}')
        + frame(rb'{"choices":[{"index":0,"delta":{"content":"\udf0a"}}]}')
        + frames(end())[0],
        text="Hi \ufffdthe\ufffdre\ufffd",
    ),
    _bytes(
        "two values on one line",
        "bentoml/OpenLLM#864",
        b"data: " + json.dumps(part("Hi ")).encode() + json.dumps(part("there")).encode() + b"\n\n" + DONE,
    ),
    _bytes(
        "two events on one line",
        "bentoml/OpenLLM#864",
        frame(part("Hi ")).strip() + b" " + frame(part("there")) + frames(end())[0],
    ),
    _bytes(
        "a line break that is not escaped",
        "RFC 8259",
        frame(b'{"choices":[{"index":0,"delta":{"content":"Hi\n there: a"}}]}') + frames(end())[0],
        text="Hi\n there: a",
    ),
    _bytes(
        "NaN for a number",
        "Python's json",
        frame(b'{"choices":[{"index":0,"delta":{"content":"Hi there"},"score":NaN}]}') + frames(end())[0],
    ),
    _bytes(
        "a raw control character in a text",
        "RFC 8259",
        frame(b'{"choices":[{"index":0,"delta":{"content":"Hi\tthere"}}]}') + frames(end())[0],
        text="Hi\tthere",
    ),
    _bytes("[done] in small letters", "gateways", PLAIN.replace(b"[DONE]", b"[done]")),
    _bytes("[DONE] in quotation marks", "gateways", PLAIN.replace(b"[DONE]", b'"[DONE]"')),
    _bytes("null events", "gateways", b"data: null\n\n" + PLAIN),
    _bytes("bytes after [DONE]", "decolua/9router#3492", PLAIN + b"data: {broken\n\n"),
    _bytes("a stream labelled as JSON", "openclaw/openclaw#97474", PLAIN, headers=JSON),
    _bytes("a stream without a label", "tinyhumansai/tinyagents#56", PLAIN, headers={"Content-Type": "text/plain"}),
    _bytes(
        "gzip",
        "RFC 9110: servers that ignore Accept-Encoding",
        gzip.compress(PLAIN),
        headers={"Content-Encoding": "gzip"},
    ),
    _bytes(
        "a whole completion in place of a stream",
        "tinyhumansai/tinyagents#56",
        json.dumps(WHOLE).encode(),
        headers=JSON,
        usage=COUNTED,
    ),
    _bytes(
        "a whole completion, indented",
        "unslothai/unsloth#6570",
        json.dumps(WHOLE, indent=2).encode() + b"\n",
        headers=JSON,
        usage=COUNTED,
    ),
    _bytes(
        "a whole completion after empty lines",
        "sgl-project/sglang#3689 (DeepSeek)",
        b"\n\n\n" + json.dumps(WHOLE).encode(),
        headers=JSON,
        usage=COUNTED,
    ),
    _bytes(
        "a whole completion labelled as a stream",
        "decolua/9router#3492",
        json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n",
        usage=COUNTED,
    ),
    _bytes("a whole completion as an event", "Zen4-bit/Proxima#45", *frames(WHOLE), usage=COUNTED),
    _bytes(
        "a whole completion with tool calls",
        "huggingface/text-generation-inference#2136",
        json.dumps(WHOLE_CALLS).encode(),
        headers=JSON,
        text="",
        calls=(TWO_CALLS[0], ToolCall("b", "weather", '{"city":"Rome"}')),
        finish="tool_calls",
    ),
    _bytes(
        "a whole completion without a finish reason",
        "alfredapp/openai-workflow#52",
        json.dumps({"choices": [{"message": {"content": "Hi there"}}]}).encode(),
        headers=JSON,
    ),
    _bytes(
        "lines of JSON",
        "Ollama",
        b"".join(json.dumps(item).encode() + b"\n" for item in (*HI, end())),
        headers={"Content-Type": "application/x-ndjson"},
    ),
)
