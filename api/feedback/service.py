"""Gives, changes, lists and deletes feedback for principals, and for holders of tokens."""

from __future__ import annotations

from typing import Any

from api.feedback.schemas import FeedbackCreate, JobFeedbackCreate, format_id
from api.feedback.store import Feedback, FeedbackFilters, FeedbackStore, JobFacts, NewFeedback
from api.feedback.tokens import FeedbackTokens
from api.http.pagination import Page, fetch_page, number_after
from api.http.times import within_limits
from api.keys.principal import Principal, Scope
from api.keys.projects import named_project
from api.keys.store import ApiKeyStore
from shared.domain.database_text import storable
from shared.domain.errors import InvalidRequest, NotFound, Unauthorized
from shared.domain.feedback import MAX_BY_TOKEN, MAX_OF_TARGET, RATING, FeedbackSource, Rating
from shared.domain.ids import number_of
from shared.domain.job import is_job_id
from shared.domain.owner import end_user_name
from shared.domain.response import job_id_of_answer
from shared.telemetry.metrics import Metrics

# The name that stands for all projects.
ALL = "*"


class FeedbackService:
    """Feedback about answers and conversations of a project. Other projects' jobs are as those that do not exist."""

    def __init__(self, store: FeedbackStore, tokens: FeedbackTokens, keys: ApiKeyStore, metrics: Metrics) -> None:
        self._store = store
        self._tokens = tokens
        self._keys = keys
        self._metrics = metrics

    async def give(self, principal: Principal | None, body: FeedbackCreate) -> Feedback:
        """Give or replace feedback with a key, or without a principal, with the token of the body.

        Raises:
            Unauthorized: there is neither a key nor a valid token for the answer.
            InvalidRequest: a token was sent beside a key, or for something else than an answer; or there is too much
                feedback about the answer or conversation.
            NotFound: the project has no such job.
        """
        if principal is None:
            try:
                return await self._give_by_token(body)
            except Unauthorized:
                self._metrics.auth_failures.labels("missing" if body.token is None else "invalid").inc()
                raise
        if body.token is not None:
            raise InvalidRequest("token: send either this or an API key", param="token")
        if body.conversation is not None:
            return await self._put(
                NewFeedback(
                    project_id=principal.project_id,
                    job=None,
                    conversation=body.conversation,
                    metric=body.metric,
                    author=end_user_name(body.user) or "",
                    value=body.value,
                    comment=body.comment,
                    tags=body.tags,
                    source=FeedbackSource.KEY,
                )
            )
        if body.job_id is None and body.response_id is None:
            raise InvalidRequest("job_id: give this, response_id or conversation", param="job_id")
        named, param = (body.job_id, "job_id") if body.job_id is not None else (body.response_id, "response_id")
        assert named is not None
        job_id = named if param == "job_id" else job_id_of_answer(named)
        job = await self._job(job_id, principal.project_id, named, param)
        return await self._put(_about(job, body, FeedbackSource.KEY, end_user_name(body.user)))

    async def rate(
        self,
        project_id: int | None,
        job_id: str,
        body: JobFeedbackCreate,
        *,
        source: FeedbackSource = FeedbackSource.KEY,
    ) -> Feedback:
        """Give or replace thumbs for the answer of a job of a project, or of any; raises as `give`."""
        job = await self._job(job_id, project_id, job_id, "job_id")
        values = {"job_id": job.id, "metric": RATING, "value": body.rating.value}
        whole = FeedbackCreate(**values, comment=body.comment, tags=body.tags, user=body.user)
        return await self._put(_about(job, whole, source, end_user_name(body.user)))

    async def page(
        self, principal: Principal, *, project: str | None, limit: int, after: str | None, **filters: Any
    ) -> Page[Feedback]:
        """Return a page of the feedback that a principal asks for: of its own project, unless it is an administrator.

        Raises:
            InvalidRequest: the cursor is malformed, or there is no such project.
            Forbidden: the query is about another project, and the key has no admin scope.
        """
        after_id = number_after(after, "feedback", _number)
        project_id: int | None = principal.project_id
        if project is not None:
            principal.require(Scope.ADMIN)
            project_id = None if project == ALL else await named_project(self._keys, project)
        given: dict[str, Any] = {
            name: storable(value) if isinstance(value, str) else within_limits(value)
            for name, value in filters.items()
            if value is not None
        }
        found = FeedbackFilters(project_id=project_id, **given)
        return await fetch_page(limit, lambda count: self._store.page(found, limit=count, after=after_id))

    async def ratings_of(self, project_id: int | None, job_id: str) -> list[Feedback]:
        """The thumbs for the answer of a job of a project, or of any; the latest first."""
        filters = FeedbackFilters(project_id=project_id, job_id=job_id, metric=RATING)
        return await self._store.page(filters, limit=MAX_OF_TARGET, after=None)

    async def take_back(self, project_id: int | None, job_id: str, author: str) -> None:
        """Delete the thumbs of an author for the answer of a job of a project, or of any, if there are any."""
        for one in await self.ratings_of(project_id, job_id):
            if one.author == author:
                await self._store.delete(one.id, project_id)

    async def delete(self, principal: Principal, feedback_id: str) -> str:
        """Delete feedback of the principal's project; return its id.

        Raises:
            NotFound: the project has no such feedback.
        """
        number = _number(feedback_id)
        if number is None or not await self._store.delete(number, principal.project_id):
            raise NotFound(
                f"There is no feedback `{feedback_id[:64]}`.", param="feedback_id", code="feedback_not_found"
            )
        return format_id(number)

    async def _give_by_token(self, body: FeedbackCreate) -> Feedback:
        if body.token is None:
            raise Unauthorized
        job_id = self._tokens.job_of(body.token)
        if body.conversation is not None or body.user is not None:
            param = "conversation" if body.conversation is not None else "user"
            raise InvalidRequest(f"{param}: a token is for the answer that it was given with", param=param)
        named = body.job_id if body.response_id is None else job_id_of_answer(body.response_id)
        if (body.job_id or body.response_id) is not None and named != job_id:
            raise Unauthorized("The feedback token is for another answer.")
        # Whoever holds the token may have been sent it by anybody: it always speaks for the end user of the request.
        return await self._put(_about(await self._job(job_id, None, job_id, "token"), body, FeedbackSource.TOKEN, None))

    async def _job(self, job_id: str | None, project_id: int | None, named: str, param: str) -> JobFacts:
        job = await self._store.job(job_id) if job_id is not None and is_job_id(job_id) else None
        if job is None or project_id not in (None, job.project_id):
            what = param.removesuffix("_id")
            raise NotFound(f"There is no {what} `{named[:64]}`.", param=param, code=f"{what}_not_found")
        return job

    async def _put(self, new: NewFeedback) -> Feedback:
        put = await self._store.put(new)
        if put is None:
            limit = MAX_BY_TOKEN if new.source is FeedbackSource.TOKEN else MAX_OF_TARGET
            message = f"there are {limit} values of feedback about it already; change or delete one"
            raise InvalidRequest(f"metric: {message}", param="metric")
        rating = new.value if new.metric == RATING and isinstance(new.value, str) else "other"
        self._metrics.feedback.labels(new.source.value, rating if rating in tuple(Rating) else "other").inc()
        return put[0]


def _about(job: JobFacts, body: FeedbackCreate, source: FeedbackSource, author: str | None) -> NewFeedback:
    """Feedback about the answer of a job: by the end user of the request, unless it names somebody."""
    return NewFeedback(
        project_id=job.project_id,
        job=job,
        conversation=None,
        metric=body.metric,
        author=author or job.end_user or "",
        value=body.value,
        comment=body.comment,
        tags=body.tags,
        source=source,
    )


def _number(feedback_id: str) -> int | None:
    return number_of("feedback_", feedback_id)
