"""Log probabilities."""

from __future__ import annotations

from typing import Any

from tests.support.dialects.base import STOP, Dialect, chunk, frames


def _logprobs(name: str, source: str, logprobs: Any, expected: list[Any], *, chat: bool = True) -> Dialect:
    content = {"delta": {"content": "Hi there"}} if chat else {"text": "Hi there"}
    writes = frames(chunk({"index": 0, **content, "logprobs": logprobs}), chunk(STOP))
    return Dialect(name=name, source=source, writes=writes, text="Hi there", logprobs=expected, chat=chat)


def _entry(token: str, logprob: float | None, top: list[Any] | None = None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top": top or []}


HI_ENTRY = _entry("Hi", -0.5)
LOGPROBS = (
    _logprobs(
        "OpenAI's",
        "OpenAI API reference",
        {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": None},
        [HI_ENTRY],
    ),
    _logprobs("content null", "OpenAI API reference", {"content": None}, []),
    _logprobs(
        "no bytes and no alternatives",
        "TGI, llama.cpp",
        {"content": [{"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": None}]},
        [HI_ENTRY],
    ),
    _logprobs("a log probability null", "vLLM", {"content": [{"token": "Hi", "logprob": None}]}, [_entry("Hi", None)]),
    _logprobs(
        "an entry without a token",
        "vllm-project/vllm#1967",
        {"content": [{}, None, {"token": "Hi", "logprob": -0.5}]},
        [HI_ENTRY],
    ),
    _logprobs("not an object", "Together API reference", [-0.5], []),
    _logprobs("one entry in place of the list", "gateways", {"content": {"token": "Hi", "logprob": -0.5}}, [HI_ENTRY]),
    _logprobs(
        "bytes that are none",
        "gateways",
        {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 1050]}]},
        [HI_ENTRY],
    ),
    _logprobs(
        "Together: lists in a chat", "Together API reference", {"tokens": ["Hi"], "token_logprobs": [-0.5]}, [HI_ENTRY]
    ),
    _logprobs(
        "lists of different lengths",
        "vllm-project/vllm#1967",
        {"tokens": ["Hi", "!"], "token_logprobs": [-0.5], "top_logprobs": None},
        [HI_ENTRY, _entry("!", None)],
        chat=False,
    ),
)
