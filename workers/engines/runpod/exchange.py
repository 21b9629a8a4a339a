"""The requests of one job: `/run`, then `/stream` until it has nothing more, `/status` for the final state, `/cancel`.

https://docs.runpod.io/serverless/endpoints/operation-reference
"""

from __future__ import annotations

from typing import Any, Literal

from shared.config.models.runpod import RunpodOptions
from workers.engines.runpod.reader import JobReader
from workers.engines.upstream.exchange import Call
from workers.engines.upstream.polling import FORGOTTEN, PollPace, PollRate, RunExchange

JSON = {"Accept": "application/json"}


class JobExchange(RunExchange):
    """The exchange of one job."""

    parser: JobReader

    def __init__(
        self, endpoint: str, body: dict[str, Any], options: RunpodOptions, reader: JobReader, rate: PollRate
    ) -> None:
        super().__init__(
            reader,
            PollPace(options.poll_interval_s, options.max_poll_interval_s, rate),
            start_timeout_s=options.start_timeout_s,
            read_timeout_s=options.read_timeout_s,
        )
        self._endpoint = endpoint
        self._body = body
        self._step: Literal["run", "stream", "status", "cancel"] = "run"
        self._streams = True
        self._answered = False

    @property
    def is_state(self) -> bool:
        return self._step in ("stream", "status")

    @property
    def repeats(self) -> bool:
        return True

    def _create(self) -> Call:
        self._step = "run"
        self.parser.expect("run")
        return Call(f"{self._endpoint}/run", self._body, JSON)

    def _follow(self) -> Call:
        if self.parser.has_news:
            self._pace.progressed()
        return self._poll()

    def _follow_again(self) -> Call:
        if self._step == "stream" and not self._answered:
            self.parser.lossy = True  # the response that broke may have had outputs
        if self._step == "status":
            self.parser.lenient = True
        return self._poll()

    def _follow_otherwise(self, status: int) -> Call | None:
        self._answered = True
        if self._step == "stream" and status in (404, 405, 410):
            self._streams = False
            return self._poll()
        if self._step == "status" and status in FORGOTTEN:
            raise self._forgotten(status)
        return None

    def _cancel(self) -> Call:
        self._step = "cancel"
        self.parser.expect("status")
        return cancel_call(self._endpoint, self.parser.run_id)

    def _poll(self) -> Call:
        reader = self.parser
        is_final = reader.drained or reader.lossy or not self._streams
        # The state is final as soon as there is nothing more to stream.
        delay_s = 0.0 if reader.drained and self._step == "stream" else self._pace.delay_s()
        self._step = "status" if is_final else "stream"
        self._answered = False
        reader.expect(self._step)
        return Call(f"{self._endpoint}/{self._step}/{reader.run_id}", headers=JSON, delay_s=delay_s, once=True)


def cancel_call(endpoint: str, job: str) -> Call:
    """The request that cancels a job."""
    return Call(f"{endpoint}/cancel/{job}", headers=JSON, method="POST")
