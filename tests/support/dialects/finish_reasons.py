"""Finish reasons, and the end of the stream."""

from __future__ import annotations

from typing import Any

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


FINISHES = (
    says_hi(
        "Ollama, SGLang: empty until the end",
        "ollama/ollama#4357, sgl-project/sglang#3912",
        part("Hi ", ""),
        part("there", ""),
        end(),
    ),
    _finish("unknown", "NVIDIA NIM", "finished"),
    _finish("TGI: eos_token", "huggingface/text-generation-inference#2794", "eos_token"),
    _finish("Together: eos", "Together API reference", "eos"),
    _finish("content_filter", "OpenAI API reference", "content_filter"),
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
        name="DeepSeek: the answer was interrupted",
        source="DeepSeek API reference",
        writes=frames(*HI, end("insufficient_system_resource")),
        text="Hi there",
        error="The upstream failed",
    ),
    Dialect(
        name="vLLM: the request was aborted",
        source="vLLM",
        writes=frames(*HI, end("abort")),
        text="Hi there",
        error="The upstream failed",
    ),
)
