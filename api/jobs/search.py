"""Searches of jobs over HTTP: the conditions of a query, and whose jobs they may be about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Query

from api.http.pagination import check_after
from api.http.query_parameters import check_names
from api.http.times import within_limits
from api.jobs.search_store import JobFilters, JobPage, JobSearchStore, MatchCount
from api.keys.principal import Principal, Scope
from api.keys.projects import named_project
from api.keys.store import ApiKeyStore, parse_id
from shared.config.models.base import MAX_NAME, NAME
from shared.domain.errors import InvalidRequest
from shared.domain.job import JobStatus, is_job_id
from shared.domain.owner import end_user_name

# The name that stands for all projects.
ALL = "*"
MAX_METADATA_FILTERS = 4
MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class JobQuery:
    """The conditions of a query, as the client wrote them."""

    statuses: Sequence[JobStatus] = ()
    model: str | None = None
    project: str | None = None
    key: str | None = None
    user: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Sequence[str] = field(default_factory=tuple)


async def job_query(
    _: Annotated[None, Depends(check_names)],
    status: Annotated[list[JobStatus] | None, Query(description="Repeat it for several.")] = None,
    model: Annotated[str | None, Query(max_length=MAX_NAME, pattern=NAME)] = None,
    project: Annotated[
        str | None,
        Query(max_length=MAX_TEXT, description="Another project, or `*` for all. Needs a key with the admin scope."),
    ] = None,
    key: Annotated[str | None, Query(max_length=64, description="The id of the key that submitted the job.")] = None,
    user: Annotated[str | None, Query(max_length=MAX_TEXT, description="The end user that the request named.")] = None,
    created_after: Annotated[datetime | None, Query(description="Submitted at this time or later.")] = None,
    created_before: Annotated[datetime | None, Query(description="Submitted before this time.")] = None,
    metadata: Annotated[
        list[str] | None,
        Query(
            max_length=MAX_METADATA_FILTERS,
            description="`KEY=VALUE`: the metadata has this member with exactly this value. Repeat it for several.",
        ),
    ] = None,
) -> JobQuery:
    """The conditions of a request. A dependency of routes."""
    return JobQuery(status or (), model, project, key, user, created_after, created_before, metadata or ())


class JobSearch:
    """Searches jobs for principals."""

    def __init__(self, store: JobSearchStore, keys: ApiKeyStore) -> None:
        self._store = store
        self._keys = keys

    async def page(self, principal: Principal, query: JobQuery, *, limit: int, after: str | None) -> JobPage:
        """Return a page of the jobs that a principal asks for: of its own project, unless it is an administrator.

        Raises:
            InvalidRequest: a condition or the cursor is malformed, or names a project or key that does not exist.
            Forbidden: the query is about another project, and the key has no admin scope.
        """
        check_after(after, "job", is_job_id)
        return await self._store.search(await self._filters(principal, query), limit=limit, after=after)

    async def count(self, principal: Principal, query: JobQuery, *, limit: int, after: str | None = None) -> MatchCount:
        """Count up to `limit` of these jobs, after a cursor; raises as `page`."""
        check_after(after, "job", is_job_id)
        return await self._store.count(await self._filters(principal, query), limit=limit, after=after)

    async def _filters(self, principal: Principal, query: JobQuery) -> JobFilters:
        key_id = None if query.key is None else _key_id(query.key)
        return JobFilters(
            project_id=await self._project_id(principal, query.project, key_id),
            statuses=tuple(query.statuses),
            model=query.model,
            key_id=key_id,
            end_user=end_user_name(query.user),
            start=query.created_after and within_limits(query.created_after),
            end=query.created_before and within_limits(query.created_before),
            metadata=dict(map(_member, query.metadata)),
        )

    async def _project_id(self, principal: Principal, project: str | None, key_id: int | None) -> int | None:
        """The project to search; None: all."""
        if project is None:
            return principal.project_id
        principal.require(Scope.ADMIN)
        if project != ALL:
            return await named_project(self._keys, project)
        if key_id is None:
            return None
        # The jobs of a project are found by an index, those of a key are not.
        if (found := await self._keys.project_of(key_id)) is None:
            raise InvalidRequest(f"key: there is no key key_{key_id}", param="key")
        return found


def _key_id(text: str) -> int:
    if (key_id := parse_id(text)) is None:
        raise InvalidRequest(f"key: must be the id of a key, such as key_12, got {text!r}", param="key")
    return key_id


def _member(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidRequest(f"metadata: must be KEY=VALUE, got {text[:64]!r}", param="metadata")
    return name, value
