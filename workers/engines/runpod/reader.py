"""Reads what RunPod sends about a job.

- https://docs.runpod.io/serverless/endpoints/operation-reference (`/run`, `/stream`, `/status`)
- https://docs.runpod.io/serverless/endpoints/job-states (the states, `delayTime` and `executionTime`)

`/stream` returns each output once: what was lost with a response is in the final state only, which has all outputs
if the worker aggregates them (`return_aggregate_stream`, as worker-vllm does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from shared.domain.events import Delta, UpstreamState
from workers.engines.base import Prior, UpstreamError
from workers.engines.runpod.output import EVENT_STARTS, OutputParser, worker_error
from workers.engines.upstream.emitted import Differs, Emitted
from workers.engines.upstream.errors import RunLost
from workers.engines.upstream.polling import StateParser, is_run_id

# Texts of a final state are parsed in pieces of this size, with time for other tasks between them.
PIECE_CHARACTERS = 64 << 10
NOT_A_JOB = "The upstream sent something that is not the state of a job."
TOO_EARLY = "The upstream ended its answer too early."
CHANGED = "The upstream does not have the output that it sent before."
# Order of the states of a job that runs. States that this version does not know count as running.
_RANKS = {"IN_QUEUE": 0, "IN_PROGRESS": 1, "RUNNING": 1}
_STOPPED = {
    "CANCELLED": "The upstream cancelled the job.",
    "CANCELED": "The upstream cancelled the job.",
    "TIMED_OUT": "The job exceeded its execution timeout, or its time to live, at the upstream.",
}
_FINAL = ("COMPLETED", "FAILED", *_STOPPED)


class JobReader(StateParser):
    """The parser of one answer."""

    ranks = _RANKS
    ends = _FINAL

    def __init__(
        self,
        prior: Prior,
        new_parser: Callable[[], OutputParser],
        on_times: Callable[[str, float | None, float | None], None],
    ) -> None:
        """`on_times` is called at the end, with the job's id and the seconds that it waited and ran."""
        super().__init__(prior)
        self._emitted = Emitted(prior.deltas)
        self._ended = {delta.index for delta in prior.deltas if delta.finish_reason}
        self._new_parser = new_parser
        self._output = new_parser()
        self._on_times = on_times
        self._kind: Literal["run", "stream", "status"] = "run"
        self._index: int | None = None
        # Whether outputs may be missing, so that only the final state is complete.
        self.lossy = prior.upstream is not None
        # Whether `/stream` has nothing more.
        self.drained = False
        # Whether the last response had something new.
        self.has_news = False

    @property
    def finished(self) -> bool:
        """False until the answer is `done`, because the final state comes last, or needs no final state."""
        return (self.done and self.failure is None) or (self.lenient and self.complete)

    @property
    def complete(self) -> bool:
        """Whether the outputs so far are the whole answer."""
        return self._output.finished and not self.lossy

    def expect(self, kind: Literal["run", "stream", "status"]) -> None:
        """The next response is that of `/run`, `/stream` or `/status`."""
        self.expect_state()
        self._kind, self.has_news = kind, False

    def _finish_without_state(self) -> Iterator[Delta]:
        return self._finish(self._output)

    def _read_state(self, content: bytes) -> Iterator[Delta | UpstreamState | None]:
        state = self._decoded(content, keep_surrogates=True)
        if self._kind == "stream" and isinstance(state, list):
            state = {"status": self.status, "stream": state}
        if not isinstance(state, dict) or not isinstance(state.get("status"), str):
            return self._fail_with_page(NOT_A_JOB)
        if not self.run_id:
            if not is_run_id(state.get("id")):
                return self._fail(UpstreamError(NOT_A_JOB))
            self.run_id = state["id"]
            yield UpstreamState(self.run_id)
        self.note_status(state["status"].upper())
        if self._kind == "stream":
            yield from self._read_stream(state.get("stream"))
        elif self._kind == "status" and self.status in _FINAL:
            self._on_times(self.run_id, _seconds(state.get("delayTime")), _seconds(state.get("executionTime")))
            yield from self._read_final(state)

    def note_status(self, status: str) -> None:
        super().note_status(status)
        if self.waiting and self.begun:
            self.lossy = True  # another worker of the endpoint begins it again

    def _read_stream(self, chunks: Any) -> Iterator[Delta]:
        outputs = chunks if isinstance(chunks, list) else []
        self.drained = self.status in _FINAL and not outputs
        if outputs or self.drained:
            self.progressed()
            self.has_news = True
        for chunk in outputs:
            if self.lossy or self.failure is not None:
                return
            if not isinstance(chunk, dict) or "output" not in chunk:
                chunk = {"output": chunk}
            if not self._is_next(chunk.get("metrics")):
                continue
            for delta in self._output.feed(chunk["output"]):
                yield from self._emit(delta)
            if self._output.failure is not None:
                self._fail(self._output.failure)
        # The end of the output is the end of the stream, even if the upstream returns it again and again.
        self.drained = self.drained or (self.status in _FINAL and self.complete)

    def _is_next(self, metrics: Any) -> bool:
        """Whether an output is new, if its worker numbers them. One that is missing is noted."""
        index = metrics.get("stream_index") if isinstance(metrics, dict) else None
        if not isinstance(index, int):
            return True
        if self._index is not None and index <= self._index:
            return False
        if self._index is not None and index > self._index + 1:
            self.lossy = True
            return False
        self._index = index
        return True

    def _read_final(self, state: dict[str, Any]) -> Iterator[Delta | None]:
        output = state.get("output")
        if self.status in _STOPPED:
            return self._fail(self.giving_up or UpstreamError(_STOPPED[self.status]))
        if self.status == "FAILED":
            if not state.get("error") and isinstance(output, dict):
                state = output
            return self._fail_for_good(worker_error(state.get("error") or ""))
        if self.complete:
            yield from self._finish(self._output)
            return
        whole, unsent = self._new_parser(), self._emitted.unsent()
        is_same = bool(output) or not self.lossy
        try:
            for item in _pieces(output):
                yield None
                for delta in whole.feed(item):
                    if (rest := unsent.rest(delta)) is not None:
                        yield from self._emit(rest)
        except Differs:
            is_same = False
        if whole.failure is not None:
            self._fail_for_good(whole.failure)
        elif is_same and unsent.complete:
            yield from self._finish(whole)
        elif not self.lossy:  # the worker does not aggregate its outputs
            yield from self._finish(self._output)
        else:
            self._fail(RunLost(CHANGED))

    def _finish(self, parser: OutputParser) -> Iterator[Delta]:
        for delta in parser.end():
            yield from self._emit(delta)
        if len(self._ended) < parser.choices:
            return self._fail(parser.failure or UpstreamError(TOO_EARLY))
        self._usage = parser.usage
        self.done = True

    def _emit(self, delta: Delta) -> Iterator[Delta]:
        if delta.finish_reason:
            if delta.index in self._ended:
                delta = replace(delta, finish_reason=None)
            self._ended.add(delta.index)
        if not delta.visible:
            return
        self._emitted.add(delta)
        self.begun = True
        yield delta


def _pieces(output: Any) -> Iterator[Any]:
    """The outputs of a final state. Those of an event stream are joined, because larger pieces take less time."""
    if not isinstance(output, list):
        yield output
        return
    texts: list[str] = []
    size = 0
    is_stream = bool(output) and isinstance(output[0], str) and output[0].lstrip().startswith(EVENT_STARTS)
    for item in output:
        if is_stream and isinstance(item, str):
            texts.append(item)
            size += len(item)
            if size < PIECE_CHARACTERS:
                continue
        if texts:
            yield "".join(texts)
            texts, size = [], 0
        if not (is_stream and isinstance(item, str)):
            yield item
    if texts:
        yield "".join(texts)


def _seconds(value: Any) -> float | None:
    """Milliseconds as seconds; None if they are no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        return None
    return value / 1000
