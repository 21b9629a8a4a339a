"""The requests of one job: `/run`, then `/stream` until it has nothing more, `/status` for the final state, `/cancel`.

https://docs.runpod.io/serverless/endpoints/operation-reference
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Literal

from shared.config.models.runpod import RunpodOptions
from workers.engines.base import UpstreamError
from workers.engines.runpod.reader import JobReader
from workers.engines.upstream.errors import RunLost, TransientError
from workers.engines.upstream.exchange import Call, Exchange
from workers.engines.upstream.polling import PollPace

JSON = {"Accept": "application/json"}
NOT_STARTED = "The upstream did not start the request in time."
TIMED_OUT = "The upstream did not answer in time."


class JobExchange(Exchange):
    """The exchange of one job."""

    parser: JobReader

    def __init__(self, endpoint: str, body: dict[str, Any], options: RunpodOptions, reader: JobReader) -> None:
        self.parser = reader
        self._endpoint = endpoint
        self._body = body
        self._options = options
        self._pace = PollPace(options.poll_interval_s, options.max_poll_interval_s)
        self._step: Literal["run", "stream", "status", "cancel"] = "run"
        self._streams = True
        self._answered = False

    @property
    def repeats(self) -> bool:
        return True

    def first(self) -> Call:
        if self.parser.id:
            return self._poll()
        self._step = "run"
        self.parser.expect("run")
        return Call(f"{self._endpoint}/run", self._body, JSON)

    def next(self) -> Call | None:
        reader = self.parser
        if self._step == "cancel":
            return None
        if self._step != "run" and self._is_late():
            reader.giving_up = UpstreamError(NOT_STARTED if reader.waiting else TIMED_OUT)
            self._step = "cancel"
            reader.expect("status")
            return cancel_call(self._endpoint, reader.id)
        if reader.progressed:
            self._pace.progressed()
        return self._poll()

    def resume(self) -> Call | None:
        reader = self.parser
        if not reader.id:
            return None
        if self._step == "stream" and not self._answered:
            reader.lossy = True  # the response that broke may have had outputs
        if self._step == "status":
            reader.lenient = True
        return self._poll()

    def instead(self, status: int) -> Call | None:
        reader = self.parser
        self._answered = True
        if self._step == "cancel" and reader.giving_up is not None:
            raise reader.giving_up
        if self._step == "stream" and status in (404, 405, 410):
            self._streams = False
            return self._poll()
        if self._step == "status" and status in (404, 410):
            reader.lenient = True
            raise TransientError(RunLost().message, f"HTTP {status}") if reader.finished else RunLost()
        return None

    def _poll(self) -> Call:
        reader = self.parser
        is_final = reader.drained or reader.lossy or not self._streams
        # The state is final as soon as there is nothing more to stream.
        delay_s = 0.0 if reader.drained and self._step == "stream" else self._pace.delay_s()
        self._step = "status" if is_final else "stream"
        self._answered = False
        reader.expect(self._step)
        return Call(f"{self._endpoint}/{self._step}/{reader.id}", headers=JSON, delay_s=delay_s, once=True)

    def _is_late(self) -> bool:
        """Whether the job makes no progress."""
        options = self._options
        limit = options.start_timeout_s if self.parser.waiting else options.read_timeout_s
        return monotonic() - self.parser.progress_at > limit


def cancel_call(endpoint: str, job: str) -> Call:
    """The request that cancels a job."""
    return Call(f"{endpoint}/cancel/{job}", headers=JSON, method="POST")
