"""Finish reasons, and the end of the stream."""

from __future__ import annotations

from typing import Any

from shared.domain.job import ToolCall
from tests.support.dialects.base import (
    COUNTED,
    DONE,
    HI,
    ONE_CALL,
    PARIS,
    USAGE,
    Dialect,
    call,
    calls,
    chunk,
    delta,
    end,
    frames,
    part,
    says_hi,
)


def _finish(name: str, source: str, reason: Any, finish: str = "stop") -> Dialect:
    return Dialect(name=name, source=source, writes=frames(*HI, end(reason)), text="Hi there", finish=finish)


def _interrupted(name: str, source: str, reason: Any, error: str = "The upstream failed") -> Dialect:
    return Dialect(name=name, source=source, writes=frames(*HI, end(reason)), text="Hi there", error=error)


FINISHES = (
    says_hi(
        "Ollama, SGLang: empty until the end",
        "ollama/ollama#4357, sgl-project/sglang#3912",
        part("Hi ", ""),
        part("there", ""),
        end(),
    ),
    says_hi(
        "Open WebUI: stop before the text, on a chunk of reasoning",
        "open-webui/open-webui#16377",
        delta(reasoning_content="Hm. ", reason="stop"),
        *HI,
        end(),
        reasoning="Hm. ",
    ),
    Dialect(
        name="stop on a chunk of reasoning, and no end after the text",
        source="open-webui/open-webui#16377",
        writes=frames(delta(reasoning_content="Hm. ", reason="stop"), *HI, done=False),
        reasoning="Hm. ",
        text="Hi there",
        error="ended its answer too early",
        finish="stop",
    ),
    says_hi("stop in each chunk", "open-webui/open-webui#16377", part("Hi ", "stop"), part("there", "stop")),
    says_hi("KoboldCpp: the text null", "PowerShell/AIShell#350", part("Hi ", "null"), part("there", "None"), end()),
    says_hi(
        "Gemini: finishReason",
        "jakobdylanc/llmcord#84",
        *HI,
        chunk({"index": 0, "delta": {}, "finish_reason": None, "finishReason": "length"}),
        finish="length",
    ),
    says_hi(
        "the whole message again at the end",
        "perplexityai/api-discussion#209",
        *HI,
        chunk({"index": 0, "message": {"content": "Hi there"}, "finish_reason": "stop"}),
    ),
    says_hi(
        "the finish reason twice, and usage with a choice",
        "BerriAI/litellm#20480",
        *HI,
        end(),
        end(usage=USAGE),
        usage=COUNTED,
    ),
    _finish("unknown", "NVIDIA NIM", "finished"),
    _finish("TGI: eos_token", "huggingface/text-generation-inference#2794", "eos_token"),
    _finish("Together: eos", "Together API reference", "eos"),
    _finish("content_filter", "OpenAI API reference", "content_filter", "content_filter"),
    _finish("Gemini: SAFETY", "HKUDS/Vibe-Trading#308", "SAFETY", "content_filter"),
    _finish("Gemini: after a colon", "Gemini API reference", "content_filter: RECITATION", "content_filter"),
    _finish("GLM: sensitive", "Z.AI API reference", "sensitive", "content_filter"),
    _finish("Anthropic's name", "Claude API reference", "refusal", "content_filter"),
    Dialect(
        name="content_filter in a tool call",
        source="OpenAI API reference",
        writes=frames(calls(call("weather", '{"ci', index=0, id="a")), end("content_filter")),
        calls=(ToolCall("a", "weather", '{"ci'),),
        finish="content_filter",
    ),
    _finish("Gemini: STOP", "open-webui/computer#224", "STOP"),
    _finish("MAX_TOKENS", "Gemini API reference", "MAX_TOKENS", "length"),
    _finish("Mistral: model_length", "Mistral API reference", "model_length", "length"),
    says_hi("missing, [DONE] came", "alfredapp/openai-workflow#52", *HI),
    Dialect(
        name="missing after a tool call, [DONE] came",
        source="anomalyco/opencode#43882",
        writes=frames(calls(call("weather", PARIS, index=0, id="a"))),
        calls=ONE_CALL,
        finish="tool_calls",
    ),
    Dialect(
        name="no [DONE] after it",
        source="ikawrakow/ik_llama.cpp#467",
        writes=frames(*HI, end(), done=False),
        text="Hi there",
    ),
    Dialect(
        name="no [DONE], usage after it",
        source="ikawrakow/ik_llama.cpp#467",
        writes=frames(*HI, end(), chunk(usage=USAGE), done=False),
        text="Hi there",
        usage=COUNTED,
    ),
    Dialect(
        name="neither, after text",
        source="vercel/ai#19165",
        writes=frames(*HI, done=False),
        text="Hi there",
        error="ended its answer too early",
    ),
    Dialect(
        name="neither, before text",
        source="CommandCodeAI/command-code#785",
        writes=frames(delta(role="assistant"), done=False),
        error="ended its answer too early",
        requests=2,
    ),
    Dialect(
        name="an empty body",
        source="iflytek/astron-agent#1568",
        writes=(b"",),
        error="ended its answer too early",
        requests=2,
    ),
    Dialect(
        name="only [DONE]",
        source="iflytek/astron-agent#1568",
        writes=(DONE,),
        error="ended its answer too early",
        requests=2,
    ),
    Dialect(
        name="tool_calls without a call",
        source="Kilo-Org/kilocode#7773",
        writes=frames(*HI, end("tool_calls")),
        text="Hi there",
    ),
    Dialect(
        name="tool_calls with a call that has neither a name nor arguments",
        source="Kilo-Org/kilocode#7773",
        writes=frames(*HI, calls(call(None, None, index=0, id="a")), end("tool_calls")),
        text="Hi there",
    ),
    _finish("SGLang: an object", "sgl-project/sglang#3912", {"type": "length", "length": 5}, "length"),
    _finish("a list", "sgl-project/sglang#3912", ["length"], "length"),
    _finish("Gemini: LANGUAGE", "Gemini API reference", "LANGUAGE", "content_filter"),
    _interrupted("DeepSeek: no resources", "DeepSeek API reference", "insufficient_system_resource"),
    _interrupted("vLLM: the request was aborted", "vLLM", "abort"),
    _interrupted("SGLang: aborted, with a message", "SGLang", {"type": "abort", "message": "Oh no"}, "failed: Oh no"),
    _interrupted("a timeout", "gateways", "timeout", "with the reason timeout"),
    _interrupted("a gateway: cancelled", "gateways", "cancelled"),
    _interrupted("Gemini: a malformed call", "Gemini API reference", "MALFORMED_FUNCTION_CALL"),
    _interrupted(
        "Gemini: a call that the filter removed",
        "Gemini API reference",
        "function_call_filter: MALFORMED_FUNCTION_CALL",
        "with the reason function_call_filter",
    ),
    Dialect(
        name="interrupted before text, by a failure that may not recur",
        source="DeepSeek API reference",
        writes=frames(delta(role="assistant"), end("insufficient_system_resource")),
        error="ended the answer with the reason insufficient_system_resource",
        requests=2,
    ),
    Dialect(
        name="Ollama: the model was only loaded",
        source="Ollama API reference",
        writes=frames(delta(role="assistant"), end("load")),
        error="ended the answer with the reason load",
    ),
)
