"""Operations on responses. A response is a job with additional data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Literal

from api.http.json_body import BodyWork
from api.http.large_json import JsonBody
from api.http.pagination import Page, cut_page
from api.http.submit_headers import SubmitHeaders
from api.jobs.service import JobService
from api.keys.principal import Principal
from api.responses.error_params import rename_param
from api.responses.events import ResponseEvents, frames
from api.responses.input_items import with_ids
from api.responses.limits import ConversationLimits
from api.responses.messages import PreviousTurns, conversation
from api.responses.schemas import ResponseCreate
from api.responses.store import ResponseStore
from api.responses.stored_media import is_stored, with_data
from api.responses.view import STATUS, view
from shared.domain.conversation import EarlierAnswer
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.events import Event, parse_archive
from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest
from shared.domain.response import StoredResponse, job_id_of
from shared.postgres.job_store import JobStore
from shared.runtime.offload import off_loop
from shared.runtime.time_slice import TimeSlice

# How long a cancel waits for the job to end, so that the returned response has the status `cancelled`.
CANCEL_WAIT_S = 10.0
# A small input item.
_ITEM_BYTES = 128


class ResponseService:
    """Creates, looks up, streams, cancels and deletes responses."""

    def __init__(self, jobs: JobService, store: ResponseStore, job_store: JobStore, limits: ConversationLimits) -> None:
        self._limits = limits
        self._jobs = jobs
        self._store = store
        self._job_store = job_store

    async def create(
        self,
        body: ResponseCreate,
        principal: Principal,
        submission: SubmitHeaders,
        work: BodyWork,
        hold: Callable[[int], None],
    ) -> tuple[StoredResponse, Job, bool]:
        """Commit a response together with its job. When this returns, both are durable.

        The last value is False if an earlier call with this idempotency key created the response. `hold` is called with
        the size of the conversation that the response continues.

        Raises:
            QuotaExceeded: as `JobService.submit`.
            NotFound: the model or the previous response does not exist.
            InvalidRequest: the input does not fit the context, the previous response has no output to continue, or the
                conversation is too large.
            KeyReused: the idempotency key was used with a different request.
        """
        previous = None
        if body.previous_response_id is not None:
            previous = await self._previous(body.previous_response_id, principal.project_id)
            hold(previous.job.request.size + previous.job.output_size)
            work = BodyWork(work.size + previous.job.request.size + previous.job.output_size)
        facts = await work.run(body.facts)
        new = NewJob(
            owner=principal.owner,
            model=body.model,
            priority=body.priority,
            request=await work.run(self._request, body, previous),
            metadata=body.metadata,
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
            options=submission.options(body),
            webhook=body.request_webhook,
            response=facts,
            earlier_answer=_earlier_answer(previous),
        )
        idempotency = await work.run(submission.idempotency, "/v1/responses", body)
        try:
            background = facts.background and not body.stream
            job, created = await self._jobs.submit(principal, new, idempotency, background=background)
        except InvalidRequest as error:
            raise rename_param(error) from None
        if created:
            return StoredResponse(job, facts), job, True
        existing = await self._store.get(job.id, principal.project_id, unstored=True)
        if existing is None:
            raise _not_found("response of this Idempotency-Key any more")
        return existing, job, False

    async def get(self, response_id: str, project_id: int) -> StoredResponse:
        """Return a stored response of a project.

        Raises:
            NotFound: it does not exist, belongs to another project, or has `store` false.
        """
        job_id = job_id_of(response_id)
        response = await self._store.get(job_id, project_id) if job_id is not None else None
        if response is None:
            raise _not_found(f"response `{response_id[:64]}`")
        return response

    async def body(self, response: StoredResponse) -> JsonBody:
        """Build a response's current body. After its end it is the same as in the last event of its stream."""
        job = response.job
        if not job.status.terminal:
            return JsonBody(lambda: view(response, job.status), response.facts.size)
        events = ResponseEvents(response)
        slice_ = TimeSlice()
        async for page in self._archive(job.id):
            for event in page:
                events.convert(event)
                if slice_.over:
                    await slice_.give_way()
        return JsonBody(lambda: events.response, events.size)

    async def _archive(self, job_id: str) -> AsyncIterator[list[Event]]:
        """Read the archived log of an ended job, a page at a time."""
        page = await self._job_store.archive_page(job_id)
        while page is not None:
            yield parse_archive(page.text)
            if page.next_start is None:
                return
            page = await self._job_store.archive_page(job_id, start=page.next_start)

    def stream(self, response: StoredResponse, after: int | None = None) -> AsyncIterator[bytes]:
        """Stream a response's events after a sequence number, up to and including the last, as SSE frames."""
        return frames(response, self._jobs.follow_submitted(response.job, created=False), after)

    async def cancel(self, response_id: str, project_id: int) -> StoredResponse:
        """Cancel a background response, and wait up to `CANCEL_WAIT_S` for its end. No effect if it has ended.

        Raises:
            NotFound: as `get`.
            InvalidRequest: the response is not a background response.
        """
        response = await self.get(response_id, project_id)
        if not response.facts.background:
            raise InvalidRequest("Only a response with background=true can be cancelled.", param="response_id")
        job = await self._jobs.cancel(response.job.id, project_id)
        if not job.status.terminal:
            try:
                async with asyncio.timeout(CANCEL_WAIT_S):
                    await self._jobs.wait_for_end(job.id)
            except TimeoutError:
                pass
            job = await self._jobs.summary(job.id, project_id)
        return replace(response, job=job)

    async def delete(self, response_id: str, project_id: int) -> None:
        """Delete a response's input and output.

        Raises:
            NotFound: as `get`.
            Conflict: it has not ended.
        """
        response = await self.get(response_id, project_id)
        await self._jobs.delete(response.job.id, project_id)

    async def input_items(
        self, response_id: str, project_id: int, *, limit: int, order: Literal["asc", "desc"], after: str | None
    ) -> Page[dict[str, Any]]:
        """Return a page of a response's own input items, without those of previous responses.

        Raises:
            NotFound: as `get`.
            InvalidRequest: the response has no item with the id `after`.
        """
        response = await self.get(response_id, project_id)
        stored = await self._store.input(response.job.id, project_id) or []
        if is_stored(stored):
            request = (await self._jobs.get(response.job.id, project_id)).request
            await off_loop(request.size, with_data, stored, request.messages or ())

        def page() -> Page[dict[str, Any]]:
            items = with_ids(stored, response.digits)
            if order == "desc":
                items.reverse()
            if after is not None:
                ids = [item["id"] for item in items]
                if after not in ids:
                    raise InvalidRequest(
                        f"after: there is no input item {after[:64]!r} in this response", param="after"
                    )
                del items[: ids.index(after) + 1]
            return cut_page(items, limit)

        return await off_loop(len(stored) * _ITEM_BYTES, page)

    def _request(self, body: ResponseCreate, previous: PreviousTurns | None) -> GenerateRequest:
        messages = conversation(body.instructions, previous, body.input)
        request = body.generate_request(messages)
        if previous is not None:
            self._limits.check(request)
        return request

    async def _previous(self, response_id: str, project_id: int) -> PreviousTurns:
        try:
            previous = await self.get(response_id, project_id)
        except NotFound:
            raise NotFound(
                f"The previous response `{response_id[:64]}` does not exist.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None
        if not previous.job.status.succeeded:
            raise InvalidRequest(
                f"previous_response_id: the response is {STATUS[previous.job.status]}; only a completed or incomplete"
                " response can be continued",
                param="previous_response_id",
            )
        job = await self._jobs.get(previous.job.id, project_id)
        return PreviousTurns(job, has_instructions="instructions" in previous.facts.request_params)


def _earlier_answer(previous: PreviousTurns | None) -> EarlierAnswer | None:
    """The answer that a response continues, if a route chose its model."""
    if previous is None or (route := previous.job.decisions.route) is None:
        return None
    job = previous.job
    return EarlierAnswer(route.route, job.model, route.conversation, job.created_at)


def _not_found(what: str) -> NotFound:
    return NotFound(f"There is no {what}.", param="response_id", code="response_not_found")
