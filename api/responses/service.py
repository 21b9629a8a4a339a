"""What can be done with responses: each is a job, and what `JobService` does with jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from api.http.pagination import Page, cut_page
from api.http.submit_headers import SubmitHeaders
from api.jobs.service import JobService
from api.keys.principal import Principal
from api.responses.events import frames, replayed
from api.responses.input_items import listed
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from api.responses.store import ResponseStore
from api.responses.view import STATUS, view
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.events import parse_archive
from shared.domain.response import StoredResponse, job_id_of
from shared.postgres.job_store import JobStore, NewJob

# How long a cancel waits for the engine to let go, so that its answer says `cancelled`.
CANCEL_WAIT_S = 10.0
# What jobs call these parameters.
_PARAMS = {"messages": "input", "max_tokens": "max_output_tokens"}


class ResponseService:
    """Makes, finds, follows, cancels and forgets responses."""

    def __init__(self, jobs: JobService, store: ResponseStore, job_store: JobStore) -> None:
        self._jobs = jobs
        self._store = store
        self._job_store = job_store

    async def create(
        self, body: ResponseCreate, principal: Principal, submission: SubmitHeaders
    ) -> tuple[StoredResponse, bool]:
        """Commit a response and its job together. When this returns, both are safe.

        False beside it: it is the one that this idempotency key made before.

        Raises:
            NotFound: there is no such model.
            InvalidRequest: the input does not fit, or there is nothing to go on from.
            KeyReused: the idempotency key was used with another request.
        """
        previous = None
        if body.previous_response_id is not None:
            previous = await self._previous(body.previous_response_id, principal.project_id)
        facts = body.facts()
        new = NewJob(
            owner=principal.owner,
            model=body.model,
            priority=body.priority,
            request=body.generate_request(conversation(body.instructions, previous, body.input)),
            metadata=body.metadata,
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
            response=facts,
        )
        try:
            job, created = await self._jobs.submit(principal, new, submission.idempotency("/v1/responses", body))
        except InvalidRequest as error:
            raise _in_our_words(error) from None
        if created:
            return StoredResponse(job, facts), True
        existing = await self._store.get(job.id, principal.project_id, unstored=True)
        if existing is None:
            raise _not_found("response of this Idempotency-Key any more")
        return existing, False

    async def get(self, response_id: str, project_id: int) -> StoredResponse:
        """A stored response of a project.

        Raises:
            NotFound: there is none, or it is another project's, or was not to be stored.
        """
        job_id = job_id_of(response_id)
        found = await self._store.get(job_id, project_id) if job_id is not None else None
        if found is None:
            raise _not_found(f"response `{response_id[:64]}`")
        return found

    async def shown(self, response: StoredResponse) -> dict[str, Any]:
        """A response as it is now: once it has ended, as its stream's last event tells it."""
        job = response.job
        if not job.status.terminal:
            return view(response, job.status)
        archived = await self._job_store.archived_log(job.id)
        return replayed(response, parse_archive(archived or ""))

    def stream(self, response: StoredResponse, after: int | None = None) -> AsyncIterator[bytes]:
        """A response's events after a number, up to and with its last, as frames."""
        return frames(response, self._jobs.follow(response.job.id), after)

    async def cancel(self, response_id: str, project_id: int) -> StoredResponse:
        """Cancel a response in the background, and wait a while for its end. Again, or too late: no change.

        Raises:
            NotFound: as `get`.
            InvalidRequest: somebody waits for it; who leaves cancels it.
        """
        response = await self.get(response_id, project_id)
        if not response.facts.background:
            raise InvalidRequest("Only a response with background=true can be cancelled.", param="response_id")
        job = await self._jobs.cancel(response.job.id, project_id)
        if not job.status.terminal:
            try:
                async with asyncio.timeout(CANCEL_WAIT_S):
                    job = await self._jobs.finished(job.id, project_id)
            except TimeoutError:
                job = await self._jobs.get(job.id, project_id)
        return replace(response, job=job)

    async def delete(self, response_id: str, project_id: int) -> None:
        """Forget a response's input and output.

        Raises:
            NotFound: as `get`.
            Conflict: it has not ended.
        """
        response = await self.get(response_id, project_id)
        await self._jobs.delete(response.job.id, project_id)

    async def input_items(
        self, response_id: str, project_id: int, *, limit: int, order: Literal["asc", "desc"], after: str | None
    ) -> Page[dict[str, Any]]:
        """A page of a response's own input items.

        Raises:
            NotFound: as `get`.
            InvalidRequest: the response has no item with the id `after`.
        """
        response = await self.get(response_id, project_id)
        items = listed(response.facts.input, response.digits)
        if order == "desc":
            items.reverse()
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise InvalidRequest(f"after: there is no input item {after[:64]!r} in this response", param="after")
            items = items[ids.index(after) + 1 :]
        return cut_page(items, limit)

    async def _previous(self, response_id: str, project_id: int) -> StoredResponse:
        try:
            previous = await self.get(response_id, project_id)
        except NotFound:
            raise NotFound(
                f"There is no response `{response_id[:64]}` to go on from.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None
        if not previous.job.status.succeeded:
            raise InvalidRequest(
                f"previous_response_id: that response is {STATUS[previous.job.status]}; only one that is completed or"
                " incomplete has an answer to go on from",
                param="previous_response_id",
            )
        return previous


def _in_our_words(error: InvalidRequest) -> InvalidRequest:
    """An error about a job's parameter as one about the response's."""
    param = error.param or ""
    ours = _PARAMS.get(param, param)
    text = error.message
    return InvalidRequest(f"{ours}{text.removeprefix(param)}" if text.startswith(param) else text, param=ours or None)


def _not_found(what: str) -> NotFound:
    return NotFound(f"There is no {what}.", param="response_id", code="response_not_found")
