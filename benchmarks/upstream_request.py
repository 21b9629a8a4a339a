"""A request to the simulated upstream, in the format of any vendor, with its complete answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

PROMPTS = ("messages", "prompt", "input", "text_input")
MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class Pace:
    """Response timing, in milliseconds to the first token and between tokens, and limits in tokens."""

    ttft_ms: float = 20
    itl_ms: float = 5
    default_tokens: int = 64
    max_model_len: int = 8192


class Refused(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed request with its complete response."""

    chat: bool
    stream: bool
    include_usage: bool
    model: str
    prompt_tokens: int
    choices: int
    texts: list[str]
    finish_reason: str

    @property
    def usage(self) -> dict[str, Any]:
        completion_tokens = len(self.texts) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def text_of_tokens(count: int) -> str:
    """Return the text of `count` tokens."""
    return "".join(f"{position} " for position in range(count))


def parse(path: str, body: bytes, pace: Pace) -> ParsedRequest:
    """Parse a request and compute its response.

    Raises:
        Refused: The request is invalid or does not fit the context.
    """
    try:
        fields = orjson.loads(body)
        if isinstance(inner := fields.get("input"), dict):  # a prediction, or a job with a request of OpenAI's API
            fields = inner.get("openai_input", inner)
        if isinstance(inner := fields.get("sampling_parameters"), str):  # Triton's vLLM backend
            fields |= orjson.loads(inner)
        chat = "messages" in fields
        prompt = _prompt(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"The body is not a valid request: {error}") from error
    prompt_tokens = len(prompt.split()) + 1
    room = pace.max_model_len - prompt_tokens
    wanted = next((fields[name] for name in MAX_TOKENS if fields.get(name)), None)
    if room < 1 or (wanted or 0) > room:
        raise Refused(400, f"This model's maximum context length is {pace.max_model_len} tokens.")
    count = wanted or min(pace.default_tokens, room)
    texts, finish_reason = [f"{position} " for position in range(count)], "length"
    stops = fields.get("stop") or fields.get("stop_sequences") or []
    full_text = text_of_tokens(count)
    found = [at for stop in ([stops] if isinstance(stops, str) else stops) if (at := full_text.find(stop)) >= 0]
    if found:
        texts, finish_reason, left = [], "stop", min(found)
        for position in range(count):
            if left <= 0:
                break
            texts.append(f"{position} "[:left])
            left -= len(texts[-1])
    return ParsedRequest(
        chat=chat,
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        model=str(fields.get("model", "")),
        prompt_tokens=prompt_tokens,
        choices=int(fields.get("n") or 1),
        texts=texts,
        finish_reason=finish_reason,
    )


def _prompt(fields: dict[str, Any]) -> str:
    """The prompt: a text, or the contents of messages.

    Raises:
        KeyError: there is none.
    """
    name = next((name for name in PROMPTS if name in fields), "prompt")
    value = fields[name]
    if not isinstance(value, list):
        return str(value)
    return " ".join(str(item["content"]) for item in value)
