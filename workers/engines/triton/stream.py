"""Parses the event stream of Triton's generate extension.

Each event has the outputs of one response of the model. The stream has no last event: it ends with its body. If the
backend reports a finish reason, it shows whether the answer is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.config.models.triton import Convention
from shared.domain.events import Delta
from shared.domain.job import Usage
from workers.engines.base import UpstreamError
from workers.engines.triton.errors import event_error
from workers.engines.triton.event_texts import EventTexts, NotAContinuation
from workers.engines.triton.output_counter import OutputCounter
from workers.engines.triton.stop_strings import StopStrings
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.sse import DONE, EventReader
from workers.engines.upstream.stream_errors import STREAM_ERRORS, ReportedError, stream_failure
from workers.engines.upstream.usage import MAX_COUNT

# The most characters of a delta: they are counted in one step of the event loop, in about 2 ms.
PIECE = 4096
# The finish reasons of vLLM and TensorRT-LLM, which are texts. Any other ends the answer with an error.
FINISH_REASONS = {"stop": "stop", "length": "length"}
UNFINISHED = ("None", "null", "")
NOT_A_STREAM = "The upstream sent something that is not the stream of Triton's generate extension."
NOT_CUMULATIVE = (
    "The upstream's event does not repeat the text before it; the model's options have `output: cumulative`."
)


class StreamParser:
    """The parser of one answer; an implementation of `workers.engines.upstream.exchange.ReplyParser`."""

    def __init__(
        self,
        convention: Convention,
        output: str,
        texts: EventTexts,
        *,
        stops: StopStrings | None = None,
        max_tokens: int | None = None,
        prompt_tokens: int = 0,
        emitted: int = 0,
        counter: OutputCounter | None = None,
    ) -> None:
        """`output`: the output with the text. `prompt_tokens`: the number counted here; 0 if unknown. `emitted`: the
        tokens after which the answer continues: for the backend they are part of the prompt. `max_tokens`: of the rest.

        `counter`: counts the output of a backend that does not; without one, each event counts as a token.
        """
        self._convention = convention
        self._output = output
        self._texts = texts
        self._stops = stops
        self._max_tokens = max_tokens
        self._prompt_tokens = prompt_tokens
        self._emitted = emitted
        self._counter = counter
        self._events = EventReader(keep_bytes=True)
        # Whether there were events, and whether they had the output with the text.
        self._has_events = False
        self._has_output = False
        # Tokens of the output: as the backend reports them, and one for each event with text.
        self._reported = 0
        self._counted = 0
        self._reason: str | None = None
        # Whether the last finish reason that was reported is none.
        self._is_unfinished = False
        self._stop_reason: str | None = None
        # Whether the delta with the finish reason was returned.
        self._ended = False
        self.begun = False
        self.done = False
        self.failure: UpstreamError | ErrorBody | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete. Its end may not have been returned yet."""
        return self._reason is not None

    @property
    def is_cut(self) -> bool:
        """Whether the worker ended the answer at a stop string although the model is still generating."""
        return self._stops is not None and self._stops.found is not None

    @property
    def usage(self) -> Usage | None:
        """The usage that the backend reported, or that was counted with a tokenizer; None if neither is known."""
        if not (self._prompt_tokens or self._reported or self._counter is not None):
            return None
        return Usage(self._prompt_tokens, 0, self._emitted + self._output_tokens)

    def feed(self, data: bytes) -> Iterator[Delta]:
        """Parse the bytes of one read; yields one delta for all events in them, or more if they have much text.

        An error from the upstream, or data that is not a stream, sets `done` and `failure`.
        """
        return self._take(self._events.read(data))

    def end(self) -> Iterator[Delta]:
        """Parse what is left at the end of the body, and end the answer if it is complete."""
        return self._take(iter(()) if self.done else self._events.end(), at_end=True)

    def _take(self, values: Iterator[Any], *, at_end: bool = False) -> Iterator[Delta]:
        if self._ended:
            return
        pieces: list[str] = []
        before = self._tokens
        try:
            for value in values:
                if value is not DONE and value is not None:  # some proxies add an end
                    self._event(value, pieces)
                if self.finished:
                    break
        except NotAContinuation:
            self.failure = UpstreamError(NOT_CUMULATIVE)
        except STREAM_ERRORS as error:
            self.failure = stream_failure(error, NOT_A_STREAM)
        is_complete = at_end and self.failure is None and self._is_complete()
        text = self._released("".join(pieces), is_last=is_complete or self.finished)
        tokens = self._tokens - before
        last = max(0, len(text) - 1) // PIECE * PIECE
        for start in range(0, last, PIECE):  # an event may have a whole answer
            piece = text[start : start + PIECE]
            self._count(piece)
            self.begun = True
            yield Delta(0, piece, unidentified=tokens)
            tokens = 0
        text = text[last:]
        self._count(text)
        if is_complete and self._reason is None:
            self._reason = "length" if self._max_tokens and self._output_tokens >= self._max_tokens else "stop"
        self.done = self.finished or self.failure is not None
        if text or tokens or self.finished:
            self.begun = True
            self._ended = self.finished
            yield Delta(0, text, (), self._reason, tokens, stop_reason=self._stop_reason)

    def _event(self, event: Any, pieces: list[str]) -> None:
        if (error := event.get("error")) is not None:
            raise ReportedError(event_error(error))
        self._has_events = True
        text = event.get(self._output)
        if text is not None:
            self._has_output = True
            if isinstance(text, list):  # of several sequences the first; a response without text has none
                text = text[0] if text else ""
            if not isinstance(text, str):
                raise TypeError
            if new := self._texts.add(text):
                pieces.append(new)
                self._counted += 1
        convention = self._convention
        if input_tokens := _count(event, convention.input_tokens):
            self._prompt_tokens = max(0, input_tokens - self._emitted)
        self._reported = min(MAX_COUNT, self._reported + _count(event, convention.output_tokens))
        if convention.finish_reason is not None and (reason := event.get(convention.finish_reason)) is not None:
            self._finish(_first(reason), _first(event.get("stop_reason")))

    def _finish(self, reason: Any, stop_reason: Any) -> None:
        self._is_unfinished = reason in UNFINISHED
        if self._is_unfinished:
            return
        if reason not in FINISH_REASONS:
            raise ReportedError(ErrorBody(f"it ended the answer with the reason {reason!s:.50}"))
        self._reason = FINISH_REASONS[reason]
        if isinstance(stop_reason, str) and stop_reason not in UNFINISHED and not stop_reason.isdecimal():
            self._stop_reason = stop_reason

    def _is_complete(self) -> bool:
        """Whether the answer is complete at the end of its body, which has no event of its own for that."""
        if self._has_events and not self._has_output:
            self.failure = UpstreamError(
                f"The upstream's events have no output `{self._output}`; `text_output` of the model's options names it."
            )
        return self._has_output and not self._is_unfinished

    def _released(self, text: str, *, is_last: bool) -> str:
        """The text for clients: up to a stop string, and without what may be the start of one."""
        if is_last:
            text += self._texts.end()
        if self._stops is not None:
            text = self._stops.add(text, at_end=is_last)
            if self._stops.found is not None:
                self._reason, self._stop_reason = "stop", self._stops.found
        return text

    def _count(self, text: str) -> None:
        if self._counter is not None and text:
            self._counter.add(text)

    @property
    def _tokens(self) -> int:
        """The tokens of the output so far, at least one for each event with text."""
        return self._reported or self._counted

    @property
    def _output_tokens(self) -> int:
        counted = self._counter.total if self._counter is not None else 0
        return self._reported or counted or self._counted


def _first(value: Any) -> Any:
    """The value of the first sequence: an output with several elements is a list."""
    return (value[0] if value else None) if isinstance(value, list) else value


def _count(event: dict[str, Any], output: str | None) -> int:
    """A number of tokens; 0 if it is none."""
    value = _first(event.get(output)) if output is not None else 0
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_COUNT else 0
