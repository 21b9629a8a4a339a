"""Converts a job's events to Anthropic's stream events, and finished jobs to messages.

A message is a list of content blocks; a stream opens and closes them one after the other.
https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson

from api.anthropic.error_params import rename_failure
from api.anthropic.error_shape import anthropic_error
from api.anthropic.schemas import (
    CLEAR_TOOL_USES,
    AppliedEdit,
    AppliedEdits,
    AssistantMessage,
    CacheCreation,
    InterruptReason,
    MessageUsage,
    RedactedThinkingContent,
    TextContent,
    ThinkingContent,
    ToolUseContent,
)
from api.http.errors import render_failure
from api.streaming.errors import CannotRestart, StreamAborted
from shared.domain.errors import ErrorCode
from shared.domain.events import Event, EventType
from shared.domain.job import Choice, Failure, Job, ToolCall, Usage
from shared.domain.opaque import THINKING, TOOL_CALL, OpaquePart, Reasoning, decode_all, in_order
from shared.domain.response import MESSAGE_ID_PREFIX

Block = TextContent | ThinkingContent | RedactedThinkingContent | ToolUseContent

# Keeps proxies and clients from closing an idle stream. Anthropic's clients skip it at any position.
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def message_body(job: Job, *, hides_thinking: bool) -> AssistantMessage:
    """Convert a finished job to a message."""
    assert job.usage is not None
    (choice,) = job.output
    content = list(_blocks(job.id, choice, hides_thinking=hides_thinking))
    last_call = choice.tool_calls[-1].arguments if choice.tool_calls else None
    reason, sequence = _stop(choice.finish_reason, choice.stop_reason, last_call)
    return AssistantMessage(
        id=_message_id(job.id),
        model=job.model,
        content=content or [TextContent(text="")],
        stop_reason=reason,
        stop_sequence=sequence,
        usage=_usage(job.usage),
        context_management=_applied_edits(job),
    )


def _applied_edits(job: Job) -> AppliedEdits | None:
    """The edits that were applied to the conversation; None if it was not changed by one."""
    context = job.decisions.context
    if context is None or not context.cleared_tool_uses:
        return None
    edit = AppliedEdit(
        type=CLEAR_TOOL_USES,
        cleared_tool_uses=context.cleared_tool_uses,
        cleared_input_tokens=context.cleared_tokens,
    )
    return AppliedEdits(applied_edits=[edit])


def _blocks(job_id: str, choice: Choice, *, hides_thinking: bool) -> Iterator[Block]:
    """The blocks of a choice, in the order in which they were generated."""
    of_calls = {part.call_id: part for part in choice.opaque if part.kind == TOOL_CALL}
    unsigned: str | None = None

    def thinking(text: str, signature: str) -> ThinkingContent:
        return ThinkingContent(thinking="" if hides_thinking else text, signature=signature)

    for item in (*in_order(choice.reasoning or "", [choice.text], choice.tool_calls, choice.opaque), None):
        if isinstance(item, OpaquePart) and item.kind == THINKING:
            yield thinking(unsigned or "", item.encoded())
            unsigned = None
            continue
        if unsigned is not None:
            yield thinking(unsigned, _signature(job_id))
            unsigned = None
        match item:
            case Reasoning(text):
                unsigned = text
            case OpaquePart():
                yield RedactedThinkingContent(data=item.encoded())
            case str():
                yield TextContent(text=item)
            case ToolCall():
                yield ToolUseContent(id=item.id, name=item.name, input=_input(item.arguments))
                if (part := of_calls.get(item.id)) is not None:
                    yield RedactedThinkingContent(data=part.encoded())


async def frames(job: Job, events: AsyncIterator[list[Event]], *, hides_thinking: bool) -> AsyncIterator[bytes]:
    """Convert a job's events to SSE frames, from `message_start` to `message_stop`, or `error` if the job failed.

    Raises:
        StreamAborted: after an `error`, if the job has not ended.
    """
    stream = _Stream(job, hides_thinking=hides_thinking)
    async for batch in events:
        if not batch:
            yield PING
        if encoded := b"".join(frame for event in batch for frame in stream.convert(event)):
            yield encoded
        if stream.aborted:
            if not stream.failed:
                raise StreamAborted([job])
            return


class _Stream:
    """The state of a stream. `aborted`: an error has been sent; `failed`: because the job failed."""

    def __init__(self, job: Job, *, hides_thinking: bool) -> None:
        self._job = job
        # The model of the last attempt that started: until there is output, another one may take over.
        self._model = job.model
        self._hides_thinking = hides_thinking
        self._started = False
        self._blocks = 0
        self._open: str | None = None
        self._call = -1
        self._arguments: str | None = None
        self._deferred_text = ""
        self._deferred_parts: list[str] = []
        self._finish: str | None = None
        self._stop_reason: int | str | None = None
        self.aborted = self.failed = False

    def convert(self, event: Event) -> list[bytes]:
        """Convert an event to frames; some events, and all after an abort, have none."""
        match event.type:
            case _ if self.aborted:
                return []
            case EventType.STARTED:
                self._model = event.payload().get("model", self._model)
                return []
            case EventType.DELTA:
                payload = event.payload()
                return [*self._start(payload.get("prompt_tokens", 0)), *self._delta(payload)]
            case EventType.RESTARTED if self._blocks:
                return self._abort(Failure(ErrorCode.WORKER_LOST, CannotRestart().message))
            case EventType.RESTARTED:
                return []
            case EventType.COMPLETED | EventType.INCOMPLETE:
                usage = Usage.of(event.payload()["usage"])
                return [*self._start(usage.prompt_tokens), *self._end(usage)]
            case _:
                self.failed = True
                return self._abort(rename_failure(self._job, Failure.of(event.payload()["error"])))

    def _start(self, prompt_tokens: int) -> list[bytes]:
        """Return `message_start`, once. The number of cached tokens is only known at the end."""
        if self._started:
            return []
        self._started = True
        message = AssistantMessage(
            id=_message_id(self._job.id),
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(Usage(prompt_tokens)),
        )
        return [_frame("message_start", message=message.model_dump()), PING]

    def _delta(self, payload: dict[str, Any]) -> list[bytes]:
        frames: list[bytes] = []
        if reasoning := payload.get("reasoning"):
            if self._open != "thinking":
                frames += self._begin("thinking", thinking="", signature="")
            if not self._hides_thinking:
                frames.append(self._grow("thinking_delta", thinking=reasoning))
        if text := payload["text"]:
            if self._open == "tool_use":  # the call may be incomplete; its block must not be split
                self._deferred_text += text
            else:
                frames += self._text(text)
        for call in payload.get("tool_calls", ()):
            frames += self._call_fragment(call)
        for part in decode_all(payload.get("opaque", ())):
            frames += self._part(part)
        self._finish = payload.get("finish_reason") or self._finish
        self._stop_reason = payload.get("stop_reason", self._stop_reason)
        return frames

    def _text(self, text: str) -> list[bytes]:
        opened = self._begin("text", text="") if self._open != "text" else []
        return [*opened, self._grow("text_delta", text=text)]

    def _call_fragment(self, call: dict[str, Any]) -> list[bytes]:
        frames: list[bytes] = []
        if call["index"] != self._call or self._open != "tool_use":
            if call.get("id") is None:
                return self._abort(Failure(ErrorCode.ENGINE_ERROR, "the engine continued a tool call that had ended"))
            self._call, self._arguments = call["index"], ""
            frames += self._begin("tool_use", id=call["id"], name=call["name"], input={})
        if arguments := call["arguments"]:
            self._arguments = (self._arguments or "") + arguments
            frames.append(self._grow("input_json_delta", partial_json=arguments))
        return frames

    def _part(self, part: OpaquePart) -> list[bytes]:
        """A part signs the thinking before it, or is a block of its own; that of a call follows the call's block."""
        encoded = part.encoded()
        if part.kind == TOOL_CALL and self._open == "tool_use":
            self._deferred_parts.append(encoded)
            return []
        if part.kind != THINKING:
            return [*self._begin("redacted_thinking", data=encoded), *self._close()]
        opened = self._begin("thinking", thinking="", signature="") if self._open != "thinking" else []
        return [*opened, *self._close(encoded)]

    def _begin(self, kind: str, **block: Any) -> list[bytes]:
        closed = self._close()
        self._open = kind
        self._blocks += 1
        content = {"type": kind, **block}
        return [*closed, _frame("content_block_start", index=self._blocks - 1, content_block=content)]

    def _grow(self, kind: str, **delta: str) -> bytes:
        return _frame("content_block_delta", index=self._blocks - 1, delta={"type": kind, **delta})

    def _close(self, signature: str | None = None) -> list[bytes]:
        """Close the open block, and then emit the parts and the text that were deferred while it was a tool call.

        `signature`: that of a block of thinking, if it has any.
        """
        if self._open is None:
            return []
        signature = signature or _signature(self._job.id)
        signed = [self._grow("signature_delta", signature=signature)] if self._open == "thinking" else []
        closed = [*signed, _frame("content_block_stop", index=self._blocks - 1)]
        self._open = None
        parts, self._deferred_parts = self._deferred_parts, []
        for part in parts:
            closed += [*self._begin("redacted_thinking", data=part), *self._close()]
        if self._deferred_text:
            text, self._deferred_text = self._deferred_text, ""
            return [*closed, *self._text(text), *self._close()]
        return closed

    def _end(self, usage: Usage) -> list[bytes]:
        empty = self._begin("text", text="") if not self._blocks else []
        reason, sequence = _stop(self._finish, self._stop_reason, self._arguments)
        applied = _applied_edits(self._job)
        return [
            *empty,
            *self._close(),
            _frame(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": sequence},
                usage=_usage(usage).model_dump(),
                **({} if applied is None else {"context_management": applied.model_dump()}),
            ),
            _frame("message_stop"),
        ]

    def _abort(self, failure: Failure) -> list[bytes]:
        self.aborted = True
        response = render_failure(failure)
        return [_frame("error", error=anthropic_error(response.status_code, response.message)["error"])]


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _message_id(job_id: str) -> str:
    return MESSAGE_ID_PREFIX + job_id.removeprefix("job_")


def _signature(job_id: str) -> str:
    return job_id.removeprefix("job_")


def _usage(usage: Usage) -> MessageUsage:
    return MessageUsage(
        input_tokens=max(0, usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens),
        cache_read_input_tokens=usage.cached_tokens,
        cache_creation_input_tokens=usage.cache_write_tokens or None,
        cache_creation=CacheCreation(
            ephemeral_5m_input_tokens=usage.cache_write_tokens - usage.cache_write_1h_tokens,
            ephemeral_1h_input_tokens=usage.cache_write_1h_tokens,
        )
        if usage.cache_write_tokens
        else None,
        output_tokens=usage.completion_tokens,
    )


def _stop(
    finish_reason: str | None, stop_reason: int | str | None, last_call: str | None
) -> tuple[InterruptReason, str | None]:
    """Return `stop_reason` and `stop_sequence`, as vLLM's endpoint does.

    Only a string is a stop sequence; a stop token means `end_turn`. If a stop sequence truncated the last tool call,
    the reason is not `tool_use`, so that clients do not run the call.
    """
    if finish_reason == "length":
        return "max_tokens", None
    if finish_reason == "content_filter":
        return "refusal", None
    truncated = isinstance(stop_reason, str) and last_call is not None and _object(last_call) is None
    if last_call is not None and not truncated:
        return "tool_use", None
    if isinstance(stop_reason, str):
        return "stop_sequence", stop_reason
    return "end_turn", None


def _input(arguments: str) -> dict[str, Any]:
    """Parse a call's arguments. If they are not a JSON object, wrap them as in Anthropic's page on tool streaming."""
    parsed = _object(arguments or "{}")
    return {"INVALID_JSON": arguments} if parsed is None else parsed


def _object(text: str) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None
