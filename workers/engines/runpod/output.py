"""Reads what an endpoint's worker yields, which depends on the worker.

- https://github.com/runpod-workers/worker-vllm yields pieces of an event stream of OpenAI's API, cut anywhere. Its
  older versions also yield the stream's chunks as objects, and `{"choices": [{"tokens": [...]}], "usage": {"input": 1,
  "output": 2}}` for inputs of its own.
- Workers of other makers yield texts, or objects with a text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from shared.domain.events import Delta
from shared.domain.job import Usage
from workers.engines.base import EngineError, UpstreamError
from workers.engines.upstream.chat.stream import StreamParser
from workers.engines.upstream.cut_characters import CutTexts
from workers.engines.upstream.error_body import error_of, parse_error
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.usage import count_of

NOT_TEXT = "The upstream's output is not text."
EVENT_STARTS = ("data:", "event:", "id:", ":")
_TEXTS = ("text", "generated_text", "output", "response", "content", "token")
_MAX_ERROR = 64 << 10
_HTTP_ERROR = re.compile(r"vLLM returned HTTP ([45]\d\d): (.*)", re.DOTALL)


class OutputParser:
    """Converts the outputs of one job, in their order, into deltas."""

    def __init__(self, choices: int, *, logprobs: bool, named_tool: bool, max_tokens: int | None) -> None:
        """`logprobs` and `named_tool`: see `StreamParser`."""
        self.choices = choices
        self._max_tokens = max_tokens
        self._chunks = StreamParser(choices, logprobs=logprobs, named_tool=named_tool)
        # Texts of which the kind is not known yet; then whether they are pieces of an event stream.
        self._start = ""
        self._cut = [CutTexts() for _ in range(choices)]
        self._are_events: bool | None = None
        self._counts = [0] * choices
        self._usage: Usage | None = None
        self._failure: EngineError | ErrorBody | None = None

    @property
    def failure(self) -> EngineError | ErrorBody | None:
        return self._failure or self._chunks.failure

    @property
    def finished(self) -> bool:
        """Whether the outputs say that they are complete. Texts never do."""
        return self._are_events is True and self._chunks.finished

    @property
    def usage(self) -> Usage | None:
        return self._usage or self._chunks.usage

    def feed(self, output: Any) -> Iterator[Delta]:
        """The deltas of one output. A failure ends them."""
        for part in output if isinstance(output, list) else (output,):
            if self.failure is None:
                yield from self._part(part)

    def end(self) -> Iterator[Delta]:
        """End the choices: there are no more outputs."""
        for index, cut in enumerate(self._cut):
            if text := (self._start if index == 0 else "") + cut.end():
                yield self._delta(index, text, 1)
        self._start = ""
        if self._are_events:
            yield from self._chunks.end()
            return
        reported = None if self._usage is None else self._usage.completion_tokens
        for index, count in enumerate(self._counts):
            tokens = reported if reported is not None and self.choices == 1 else count
            is_cut = self._max_tokens is not None and tokens >= self._max_tokens
            yield Delta(index, finish_reason="length" if is_cut else "stop")

    def _part(self, part: Any) -> Iterator[Delta]:
        match part:
            case None:
                pass
            case str():
                yield from self._text(part)
            case {"error": error} if error:
                self._failure = worker_error(error)
            case {"choices": [{"tokens": _}, *_] as choices}:
                yield from self._tokens(choices, part.get("usage"))
            case {"choices": _} | {"object": str()}:
                self._are_events = True
                if not self._chunks.done:
                    yield from self._chunks.feed(b"data: " + _encoded(part) + b"\n\n")
            case dict():
                yield from self._object(part)
            case _:
                self._failure = UpstreamError(NOT_TEXT)

    def _text(self, text: str) -> Iterator[Delta]:
        text = self._cut[0].add(text)
        if self._are_events is None:
            text = self._start + text
            begin = text.lstrip()
            if not begin or any(len(begin) < len(start) and start.startswith(begin) for start in EVENT_STARTS):
                self._start = text
                return
            self._start, self._are_events = "", begin.startswith(EVENT_STARTS)
        if not self._are_events:
            if text:
                yield self._delta(0, text, 1)
        elif not self._chunks.done:
            yield from self._chunks.feed(text.encode())

    def _tokens(self, choices: list[Any], usage: Any) -> Iterator[Delta]:
        self._are_events = False
        for index, choice in enumerate(choices[: self.choices]):
            tokens = choice.get("tokens") if isinstance(choice, dict) else None
            if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
                self._failure = UpstreamError(NOT_TEXT)
                return
            if text := self._cut[index].add("".join(tokens)):
                yield self._delta(index, text, len(tokens))
        if isinstance(usage, dict):
            self._count(usage.get("input"), usage.get("output"))

    def _object(self, part: dict[str, Any]) -> Iterator[Delta]:
        text = next((part[name] for name in _TEXTS if part.get(name) is not None), None)
        if isinstance(text, list) and all(isinstance(piece, str) for piece in text):
            text = "".join(text)
        if not isinstance(text, str):
            self._failure = UpstreamError(NOT_TEXT)
            return
        self._are_events = False
        if text := self._cut[0].add(text):
            yield self._delta(0, text, 1)
        self._count(part.get("input_tokens"), part.get("output_tokens"))

    def _count(self, prompt: Any, completion: Any) -> None:
        if (prompt := count_of(prompt)) and (completion := count_of(completion)):
            self._usage = Usage(prompt, 0, completion)

    def _delta(self, index: int, text: str, tokens: int) -> Delta:
        self._counts[index] += tokens
        return Delta(index, text, unidentified=tokens)


def _encoded(chunk: Any) -> bytes:
    try:
        return orjson.dumps(chunk)
    except orjson.JSONEncodeError:  # it has halves of characters, or large numbers
        return json.dumps(chunk).encode()


def worker_error(error: Any) -> ErrorBody:
    """The error of a job: an object, or a text that may contain one as JSON or as Python writes it."""
    if isinstance(error, str) and error.startswith("{") and len(error) <= _MAX_ERROR:
        error = _decoded(error)
    if isinstance(error, dict):
        # Of the SDK's handler: type, message and traceback of an exception.
        error = error.get("error_message") or error
    body = error_of(error)
    if (found := _HTTP_ERROR.search(error.get("message") or "" if isinstance(error, dict) else str(error))) is None:
        return ErrorBody(body.message, body.param, body.status).of_program()
    inner = parse_error(found[2].encode("utf-8", "replace")[:_MAX_ERROR])
    return ErrorBody(inner.message or body.message, inner.param, int(found[1])).of_program()


def _decoded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
