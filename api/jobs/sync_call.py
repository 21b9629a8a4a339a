"""Synchronous calls, shared by all API dialects: the client waits for the result of its jobs, or streams it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi import Request, Response

from api.http.large_json import JsonBody, json_response
from api.http.money import cost_header, total_of
from api.http.sse import event_stream
from api.http.submit_headers import SubmitHeaders, replay_headers
from api.jobs.disconnect import cancel_on_disconnect, while_connected
from api.jobs.service import JobService
from api.keys.open_requests import OpenRequest
from api.settings import StreamSettings
from shared.domain.errors import UpstreamFailed
from shared.domain.job import Failure, Job


class SyncCall:
    """A request whose client waits for the result of its jobs."""

    def __init__(self, request: Request, jobs: JobService, submission: SubmitHeaders, settings: StreamSettings) -> None:
        self._request = request
        self._jobs = jobs
        self._submission = submission
        self._settings = settings

    @property
    def _open_request(self) -> OpenRequest:
        open_request: OpenRequest = self._request.state.open_request
        return open_request

    def open_stream(self, model: str, end_user: str | None) -> None:
        """Count the call as an open stream. Called before its jobs are submitted.

        Raises:
            QuotaExceeded: there are too many open streams.
        """
        self._open_request.open_stream(model, end_user)

    def hold(self, size: int) -> None:
        """Count bytes that the call keeps in memory; raises as `OpenRequest.hold`."""
        self._open_request.hold(size)

    async def respond(
        self,
        submitted: Sequence[Job],
        *,
        created: bool,
        stream: Callable[[], AsyncIterator[bytes]] | None,
        body: Callable[[Sequence[Job]], Awaitable[JsonBody]],
        background: bool = False,
        rename: Callable[[Job, Failure], Failure] = lambda _, failure: failure,
    ) -> Response:
        """Return `stream` as an SSE response; without it, wait for the jobs to end and return their `body`.

        If the client disconnects, its jobs are cancelled, unless it sent an idempotency key, with which it can retry.
        `background` jobs are neither awaited nor cancelled. `created` is False if an earlier call with the same
        idempotency key created the jobs. `rename` names the dialect's parameters in the failure of a job.

        Raises:
            UpstreamFailed: a job did not complete.
        """
        self._request.state.job_id = submitted[0].id
        headers = replay_headers(created) | submitted[0].decisions.headers()

        def keep() -> bool:
            """Whether the jobs go on without the client. A client whose key was revoked has not abandoned them."""
            return background or self._submission.idempotency_key is not None or self._open_request.interrupted

        if stream is not None:
            frames = cancel_on_disconnect(stream(), self._jobs, submitted, keep=keep)
            return event_stream(frames, self._settings, headers)
        if background:
            return await json_response(await body(submitted), headers=headers)
        ended = await while_connected(self._request, self._jobs, submitted, keep=keep)
        if ended is None:
            return Response(status_code=499)  # the client has disconnected
        for job in ended:
            if not job.status.succeeded:
                assert job.error is not None
                failure = rename(job, job.error)
                raise UpstreamFailed(failure.message, code=failure.code, param=failure.param)
        headers |= cost_header(total_of(job.charge for job in ended))
        return await json_response(await body(ended), headers=headers)
