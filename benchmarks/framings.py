"""How each API frames a streamed answer, for the simulated upstream: events from precomputed parts.

A framing knows one answer. `head` comes before the first token, `token` is one token, `tail` ends the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import orjson

from benchmarks.upstream_request import ParsedRequest


class Framing(ABC):
    """The events of one answer."""

    def head(self) -> bytes:
        return b""

    @abstractmethod
    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        """The events of one token, one for each choice. `text` needs no JSON escapes."""

    @abstractmethod
    def tail(self) -> Sequence[bytes]: ...


class Completions(Framing):
    """OpenAI's Completions and Chat Completions."""

    def __init__(self, request: ParsedRequest, number: int) -> None:
        self._request = request
        self._start = b'data: {"id":"up-%d","object":"%s","created":1700000000,"model":%s,"choices":[{"index":' % (
            number,
            b"chat.completion.chunk" if request.chat else b"text_completion",
            orjson.dumps(request.model),
        )
        before, after = (b',"delta":{"content":"', b'"}') if request.chat else (b',"text":"', b'"')
        self._starts = [self._start + b"%d" % index + before for index in range(request.choices)]
        self._end = after + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        return [b"%b%b%b" % (start, text, self._end) for start in self._starts]

    def tail(self) -> Sequence[bytes]:
        request = self._request
        content = b'"delta":{}' if request.chat else b'"text":""'
        events = [
            self._start + b'%d,%b,"finish_reason":"%b"}]}\n\n' % (index, content, request.finish_reason.encode())
            for index in range(request.choices)
        ]
        if request.include_usage:
            usage = {"id": "up", "object": "chunk", "model": request.model, "choices": [], "usage": request.usage}
            events.append(b"data: " + orjson.dumps(usage) + b"\n\n")
        return [*events, b"data: [DONE]\n\n"]


class Responses(Framing):
    """OpenAI's Responses. The numbers of the events are those of `first_token`, and of the tokens after it.

    https://platform.openai.com/docs/api-reference/responses-streaming
    """

    # The events before the first token: created, in progress, item added, part added.
    FIRST_TOKEN = 4

    def __init__(self, request: ParsedRequest, response_id: str, after: int = -1) -> None:
        """`after`: the number of the last event that the client has."""
        self._request = request
        self._id = response_id
        self._after = after
        self._item = f"msg_{response_id}"
        self._start = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":'
        self._start += orjson.dumps(self._item) + b',"output_index":0,"content_index":0,"logprobs":[],"delta":"'

    def head(self) -> bytes:
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": self._response("in_progress")},
            {"type": "response.in_progress", "response": self._response("in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", "item_id": self._item, "output_index": 0, "content_index": 0}
            | {"part": part},
        ]
        return b"".join(
            _named(event | {"sequence_number": number}) for number, event in enumerate(events) if number > self._after
        )

    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        return [b'%b%b","sequence_number":%d}\n\n' % (self._start, text, self.FIRST_TOKEN + position)]

    def tail(self) -> Sequence[bytes]:
        text = "".join(self._request.texts)
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        reached_limit = self._request.finish_reason == "length"
        status = "incomplete" if reached_limit else "completed"
        response = self._response(status) | {"output": [item], "usage": self._usage()}
        if reached_limit:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{status}", "response": response},
        ]
        first = self.FIRST_TOKEN + len(self._request.texts)
        return [_named(event | {"sequence_number": first + number}) for number, event in enumerate(events)]

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": 1700000000,
            "status": status,
            "background": True,
            "model": self._request.model,
            "output": [],
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._request.usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


class Messages(Framing):
    """Anthropic's Messages.

    https://docs.anthropic.com/en/docs/build-with-claude/streaming
    """

    _START = (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
    )

    def __init__(self, request: ParsedRequest, number: int) -> None:
        self._request = request
        self._number = number

    def head(self) -> bytes:
        usage = {
            "input_tokens": self._request.prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        }
        message: dict[str, Any] = {
            "id": f"msg_{self._number}",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return _named({"type": "message_start", "message": message}) + _named(block) + _named({"type": "ping"})

    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        return [b'%b%b"}}\n\n' % (self._START, text)]

    def tail(self) -> Sequence[bytes]:
        reason = "max_tokens" if self._request.finish_reason == "length" else "stop_sequence"
        delta = {"stop_reason": reason, "stop_sequence": None}
        return [
            _named({"type": "content_block_stop", "index": 0}),
            _named({"type": "message_delta", "delta": delta, "usage": {"output_tokens": len(self._request.texts)}}),
            _named({"type": "message_stop"}),
        ]


class Generate(Framing):
    """Triton's generate_stream, as its vLLM backend answers.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
    """

    def __init__(self, request: ParsedRequest) -> None:
        self._request = request
        self._start = b'data: {"finish_reason":"None","model_name":"sim","model_version":"1","num_input_tokens":%d,' % (
            request.prompt_tokens
        )

    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        return [b'%b"num_output_tokens":1,"text_output":"%b"}\n\n' % (self._start, text)]

    def tail(self) -> Sequence[bytes]:
        end = {
            "finish_reason": self._request.finish_reason,
            "model_name": "sim",
            "model_version": "1",
            "num_input_tokens": self._request.prompt_tokens,
            "num_output_tokens": 0,
            "text_output": "",
        }
        return [b"data: %b\n\n" % orjson.dumps(end)]


class Predictions(Framing):
    """The stream of a prediction of Replicate.

    https://replicate.com/docs/topics/predictions/streaming
    """

    def token(self, position: int, text: bytes) -> Sequence[bytes]:
        return [b"event: output\nid: 1700000000%06d:0\ndata: %b\n\n" % (position, text)]

    def tail(self) -> Sequence[bytes]:
        return [b"event: done\nid: 1700000999:0\ndata: {}\n\n"]


def _named(event: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
