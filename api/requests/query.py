"""The conditions of a query over HTTP, and whose requests they may be about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Query

from api.http.query_parameters import check_names
from api.http.times import within_limits
from api.keys.principal import Principal, Scope
from api.keys.projects import readable_projects
from api.keys.store import ApiKeyStore
from api.requests.filters import FeedbackFilter, RequestFilters, ScoreFilter
from shared.domain.database_text import storable
from shared.domain.errors import InvalidRequest
from shared.domain.feedback import RATING, Rating
from shared.domain.job import JobStatus
from shared.domain.owner import end_user_name

MAX_TEXT = 1024
MAX_NAMES = 100


@dataclass(frozen=True, slots=True)
class RequestQuery:
    """The conditions of a query, as the client wrote them."""

    start: datetime | None = None
    end: datetime | None = None
    models: Sequence[str] = ()
    routes: Sequence[str] = ()
    project: str | None = None
    user: str | None = None
    conversation: str | None = None
    statuses: Sequence[JobStatus] = ()
    error_code: str | None = None
    refused: bool | None = None
    has_body: bool | None = None
    feedback: str | None = None
    rubric: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    batch: str | None = None
    request_id: str | None = None


def _text(description: str) -> Any:
    return Query(max_length=MAX_TEXT, description=description)


def _several(description: str) -> Any:
    return Query(max_length=MAX_NAMES, description=f"{description} Repeat it for several.")


async def request_query(
    _: Annotated[None, Depends(check_names)],
    start: Annotated[datetime | None, Query(description="Ended at this time or later.")] = None,
    end: Annotated[datetime | None, Query(description="Ended before this time.")] = None,
    model: Annotated[list[str] | None, _several("The model that answered.")] = None,
    route: Annotated[list[str] | None, _several("The model or route that the request named.")] = None,
    project: Annotated[str | None, _text("Another project than the key's; needs the scope `admin`.")] = None,
    user: Annotated[str | None, _text("The end user that the request named.")] = None,
    conversation: Annotated[str | None, _text("The conversation that the request belongs to.")] = None,
    status: Annotated[list[JobStatus] | None, Query(description="Repeat it for several.")] = None,
    error_code: Annotated[str | None, _text("Why the job failed, such as `engine_error`.")] = None,
    refused: Annotated[
        bool | None, Query(description="The model has refused to answer, or has not. Neither finds those not known.")
    ] = None,
    has_body: Annotated[bool | None, Query(description="The request and the answer are kept, or are not.")] = None,
    feedback: Annotated[
        str | None, _text("`METRIC`: has feedback by this metric; `METRIC=VALUE`: with this value.")
    ] = None,
    rubric: Annotated[str | None, _text("A judge has scored the answer by this rubric.")] = None,
    min_score: Annotated[
        float | None, Query(allow_inf_nan=False, description="With `rubric`: at least this score.")
    ] = None,
    max_score: Annotated[
        float | None, Query(allow_inf_nan=False, description="With `rubric`: at most this score.")
    ] = None,
    batch: Annotated[str | None, _text("The id of the batch that the request is a line of.")] = None,
    request_id: Annotated[str | None, _text("The `x-request-id` of the HTTP request.")] = None,
) -> RequestQuery:
    """The conditions of a request. A dependency of routes."""
    return RequestQuery(
        start=start,
        end=end,
        models=model or (),
        routes=route or (),
        project=project,
        user=user,
        conversation=conversation,
        statuses=status or (),
        error_code=error_code,
        refused=refused,
        has_body=has_body,
        feedback=feedback,
        rubric=rubric,
        min_score=min_score,
        max_score=max_score,
        batch=batch,
        request_id=request_id,
    )


async def filters_of(principal: Principal, query: RequestQuery, keys: ApiKeyStore) -> RequestFilters:
    """The requests that a principal asks for: of its own project, unless it is an administrator.

    Raises:
        InvalidRequest: a condition is malformed, or names a project that does not exist.
        Forbidden: the key has no scope for the log, or the query is about another project without the scope `admin`.
    """
    principal.require(Scope.LOGS)
    return RequestFilters(
        project_id=await _project_id(principal, query.project, keys),
        start=query.start and within_limits(query.start),
        end=query.end and within_limits(query.end),
        models=_cleaned_all(query.models),
        requested_models=_cleaned_all(query.routes),
        statuses=tuple(query.statuses),
        end_user=end_user_name(query.user),
        conversation=_cleaned(query.conversation),
        error_code=_cleaned(query.error_code),
        batch_id=_cleaned(query.batch),
        request_id=_cleaned(query.request_id),
        refused=query.refused,
        has_body=query.has_body,
        feedback=_feedback(query.feedback),
        score=_score(query),
    )


async def _project_id(principal: Principal, name: str | None, keys: ApiKeyStore) -> int | None:
    """The project whose requests are read; None: all."""
    found = await readable_projects(principal, [] if name is None else [name], keys, "requests")
    return None if found is None else next(iter(found))


def _feedback(text: str | None) -> FeedbackFilter | None:
    if not text:
        return None
    metric, separator, value = (_cleaned(text) or "").partition("=")
    if not separator:
        return FeedbackFilter(metric)
    # `true` may be a boolean or a word.
    values: list[Any] = [value]
    try:
        parsed = json.loads(value, parse_constant=str)
    except ValueError:
        parsed = None
    if isinstance(parsed, bool | int | float):
        values.append(parsed)
    if metric == RATING and isinstance(parsed, bool):
        values.append((Rating.UP if parsed else Rating.DOWN).value)  # as feedback with a boolean is stored
    return FeedbackFilter(metric, tuple(values))


def _score(query: RequestQuery) -> ScoreFilter | None:
    if query.rubric:
        return ScoreFilter(_cleaned(query.rubric) or "", query.min_score, query.max_score)
    for name in ("min_score", "max_score"):
        if getattr(query, name) is not None:
            raise InvalidRequest(f"{name}: needs `rubric`, the rubric that scores are given by", param=name)
    return None


def _cleaned(text: str | None) -> str | None:
    """A text as it is stored. Empty: as if it were absent."""
    return storable(text) if text else None


def _cleaned_all(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(storable(text) for text in texts if text)
