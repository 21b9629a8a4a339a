"""The usage."""

from __future__ import annotations

from typing import Any

from shared.domain.job import Usage
from tests.support.dialects.base import COUNTED, HI, STOP, USAGE, Dialect, chunk, end, frames, part


def _usage(name: str, source: str, *chunks: dict[str, Any], usage: Usage | None = COUNTED) -> Dialect:
    """A stream of the text "Hi there"."""
    return Dialect(name=name, source=source, writes=frames(*chunks), text="Hi there", usage=usage)


USAGES = (
    _usage("OpenAI: in a chunk of its own", "OpenAI API reference", *HI, end(), chunk(usage=USAGE)),
    _usage(
        "usage null until the end",
        "OpenAI API reference",
        part("Hi ", usage=None),
        part("there"),
        end(),
        chunk(usage=USAGE),
    ),
    _usage(
        "without prompt_tokens",
        "theopenco/llmgateway#2861",
        *HI,
        end(),
        chunk(usage={"completion_tokens": 2}),
        usage=Usage(0, 0, 2),
    ),
    _usage(
        "without prompt_tokens, with a total",
        "theopenco/llmgateway#2861",
        *HI,
        end(),
        chunk(usage={"completion_tokens": 2, "total_tokens": 9}),
    ),
    _usage(
        "xAI: the completion's count lacks the reasoning, the total has it",
        "xAI API reference",
        *HI,
        end(),
        chunk(
            usage={
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            }
        ),
        usage=Usage(32, 0, 103, 94),
    ),
    _usage("LiteLLM: without completion_tokens", "vercel/ai#2763", *HI, end(), chunk(usage={"prompt_tokens": 7})),
    _usage("only a total", "vercel/ai#2763", *HI, end(), chunk(usage={"total_tokens": 9}), usage=None),
    _usage("usage null at the end", "betalgo/openai#404", *HI, end(), chunk(usage=None), usage=None),
    _usage("usage is not an object", "JSON", *HI, end(), chunk(usage=7), usage=None),
    _usage(
        "counts as floats",
        "JSON of JavaScript and Lua servers",
        *HI,
        end(),
        chunk(usage={"prompt_tokens": 7.0, "completion_tokens": 2.0}),
    ),
    _usage(
        "counts as text",
        "JSON from untyped servers",
        *HI,
        end(),
        chunk(usage={"prompt_tokens": "7", "completion_tokens": "2"}),
    ),
    _usage(
        "counts null",
        "jeremychone/rust-genai#242",
        *HI,
        end(),
        chunk(usage={"prompt_tokens": None, "completion_tokens": None}),
        usage=None,
    ),
    _usage(
        "negative counts", "JSON", *HI, end(), chunk(usage={"prompt_tokens": -1, "completion_tokens": -5}), usage=None
    ),
    _usage(
        "counts beyond 32 bits",
        "JSON",
        *HI,
        end(),
        chunk(usage={"prompt_tokens": 1e30, "completion_tokens": 2}),
        usage=Usage(0, 0, 2),
    ),
    _usage("in the chunk of the finish reason", "openai/openai-python#2641", *HI, end(usage=USAGE)),
    _usage(
        "Gemini: in the last chunk of text",
        "openai/openai-python#2641",
        part("Hi "),
        part("there", "stop", usage=USAGE),
    ),
    _usage(
        "vLLM: in each chunk",
        "vllm-project/vllm#34887",
        part("Hi ", usage={"prompt_tokens": 7, "total_tokens": 8, "completion_tokens": 1}),
        part("there", usage=USAGE),
        end(usage=USAGE),
    ),
    _usage(
        "SGLang: details without counts in between",
        "theopenco/llmgateway#2861",
        part("Hi ", usage={"prompt_tokens_details": {"cached_tokens": 0}}),
        part("there"),
        end(),
        chunk(usage=USAGE),
    ),
    _usage(
        "zeros after the counts",
        "jeremychone/rust-genai#242",
        *HI,
        end(usage=USAGE),
        chunk(usage={"prompt_tokens": 0, "completion_tokens": 0}),
    ),
    _usage("a chunk without choices", "iflytek/astron-agent#1568", *HI, end(), {"id": "c", "usage": USAGE}),
    _usage(
        "a chunk with choices null",
        "iflytek/astron-agent#1568",
        *HI,
        end(),
        {"id": "c", "choices": None, "usage": USAGE},
    ),
    _usage(
        "Groq: in x_groq",
        "jeremychone/rust-genai#242",
        chunk(x_groq={"id": "r"}),
        *HI,
        end(x_groq={"id": "r", "usage": USAGE}),
    ),
    _usage("Moonshot: in the choice", "Moonshot API reference", *HI, chunk({**STOP, "usage": USAGE})),
    _usage(
        "input_tokens and output_tokens",
        "Anthropic API reference",
        *HI,
        end(),
        chunk(usage={"input_tokens": 7, "output_tokens": 2}),
    ),
    _usage(
        "cached tokens",
        "OpenAI API reference",
        *HI,
        end(),
        chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 4}}),
        usage=Usage(7, 4, 2),
    ),
    _usage(
        "DeepSeek: prompt_cache_hit_tokens",
        "DeepSeek API reference",
        *HI,
        end(),
        chunk(usage={**USAGE, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 3}),
        usage=Usage(7, 4, 2),
    ),
    _usage("details null", "OpenAI API reference", *HI, end(), chunk(usage={**USAGE, "prompt_tokens_details": None})),
    _usage(
        "more cached tokens than tokens",
        "JSON",
        *HI,
        end(),
        chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 40}}),
        usage=Usage(7, 7, 2),
    ),
    _usage("details are no object", "JSON", *HI, end(), chunk(usage={**USAGE, "prompt_tokens_details": [1]})),
)
