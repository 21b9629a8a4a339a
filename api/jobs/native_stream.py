"""The native event stream: SSE frames with the bytes of the log's events, unchanged but for log probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson

from api.jobs.queue_positions import position_data
from api.jobs.service import JobService
from api.streaming.reader import QueuedReader
from shared.domain.events import Event
from shared.domain.job import JobStatus, JobSummary
from shared.domain.logprobs import entry_object, prompt_entry_object

_POSITION = b"event: job.queued\ndata: %b\n\n"
_KEEPALIVE = b"event: job.keepalive\ndata: {}\n\n"


def native_data(event: Event) -> bytes:
    """The data of an event in the native form: as in the log, except that log probabilities become objects."""
    if b'logprobs":' not in event.data:
        return event.data
    payload = event.payload()
    if "logprobs" in payload:
        payload["logprobs"] = [entry_object(entry) for entry in payload["logprobs"]]
    if "prompt_logprobs" in payload:
        payload["prompt_logprobs"] = [prompt_entry_object(entry) for entry in payload["prompt_logprobs"]]
    return orjson.dumps(payload)


async def native_stream(jobs: JobService, job: JobSummary, after: int) -> AsyncIterator[bytes]:
    """Stream the log after a cursor and, while the job is queued, `job.queued` at each change of its position, and when
    the queue is paused or resumed.

    Positions and keepalives have no id, because they are not in the log. Positions are also sent if the job is queued
    again after the loss of its worker.

    Returns once the first frame is known, so that a database outage results in an error response, not a broken stream.
    """
    first, position, paused = b"", None, False
    if job.status is JobStatus.QUEUED and after == 0:
        position, eta_s = await jobs.queue_estimates.waiting(job)
        paused = await jobs.queue_estimates.is_paused(job)
        first = _POSITION % position_data(position, eta_s, paused=paused)
    queued = QueuedReader(job.model, job.priority, position, paused)

    async def frames() -> AsyncIterator[bytes]:
        if first:
            yield first
        with jobs.traces.streaming(job, after) as trace:
            async for events in jobs.follow(job.id, after, queued):
                if not events:
                    yield _KEEPALIVE
                    continue
                if not events[0].seq:
                    yield _POSITION % events[0].data
                    continue
                trace.delivered(len(events))
                yield b"".join(
                    [
                        b"id: %d\nevent: job.%b\ndata: %b\n\n" % (event.seq, event.name, native_data(event))
                        for event in events
                    ]
                )

    return frames()
