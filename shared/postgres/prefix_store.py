"""SQL about prefixes of prompts: their projects, and the most reused ones.

Nothing is stored about prefixes. They are read from the jobs of the last hours, so deleted jobs do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Text, and_, func, or_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by

from shared.domain.errors import UnreadableRow
from shared.domain.prompt_cache import cache_salt
from shared.domain.request import GenerateRequest
from shared.postgres.job_rows import REQUEST, to_request
from shared.postgres.store import Store, readable, seconds
from shared.postgres.tables import ApiKeyRow, JobRow, ProjectRow
from shared.runtime.offload import off_loop

# The newest ended jobs of a model that are read, and how many of those that reused a prefix are compared.
SCANNED_JOBS = 20_000
COMPARED_JOBS = 2_000
# Requests of more bytes are not compared.
MAX_REQUEST_BYTES = 1 << 20
# Jobs of one prefix that are rendered, to find what they have in common.
SAMPLES = 3
# The projects that used a model are read from its newest jobs.
RECENT_JOBS = 10_000
# Jobs have the same prefix if the first characters of their requests are the same: one for each token that was found,
# which is less than the text of the prefix, and at most these.
COMPARED_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class ProjectPrefixes:
    """A project, by its id and name, and the salt of its prefixes."""

    id: int
    name: str
    salt: str


@dataclass(frozen=True, slots=True)
class ReusedPrefix:
    """Jobs of a project that found the same number of tokens in the prefix cache, and whose prompts begin alike.

    `saved`: the tokens that they found there, together. `job_ids`: the newest of them.
    """

    project_id: int
    tokens: int
    saved: int
    job_ids: tuple[str, ...]


class PrefixStore(Store):
    """The prefixes of the prompts of all projects."""

    async def projects(self, model: str, names: Sequence[str] | None, limit: int) -> list[ProjectPrefixes]:
        """The projects of these names, or those with a valid key that used the model, or else any, last.

        Returns at most `limit` of them, the last user of the model first.
        """
        newest = (
            select(JobRow.project_id, JobRow.finished_at)
            .where(JobRow.model == model, JobRow.finished_at.is_not(None))
            .order_by(JobRow.finished_at.desc())
            .limit(RECENT_JOBS)
            .subquery()
        )
        users = (
            select(newest.c.project_id, func.max(newest.c.finished_at).label("at"))
            .group_by(newest.c.project_id)
            .subquery()
        )
        valid = and_(
            ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now())
        )
        keys = (
            select(ApiKeyRow.project_id, func.max(ApiKeyRow.last_used_at).label("at"))
            .where(valid)
            .group_by(ApiKeyRow.project_id)
            .subquery()
        )
        statement = (
            select(ProjectRow.id, ProjectRow.name, ProjectRow.salt)
            .join(keys, keys.c.project_id == ProjectRow.id)
            .outerjoin(users, users.c.project_id == ProjectRow.id)
            .order_by(users.c.at.desc().nulls_last(), keys.c.at.desc().nulls_last(), ProjectRow.id)
            .limit(limit)
        )
        if names is not None:
            statement = statement.where(ProjectRow.name.in_(names))
        return await self._all(statement, _project)

    async def by_id(self, project_ids: Collection[int]) -> dict[int, ProjectPrefixes]:
        """The projects of these ids."""
        statement = select(ProjectRow.id, ProjectRow.name, ProjectRow.salt).where(ProjectRow.id.in_(project_ids))
        found = await self._all(statement, _project)
        return {project.id: project for project in found}

    async def most_reused(
        self, model: str, *, hours: float, limit: int, project_ids: Sequence[int] | None = None
    ) -> list[ReusedPrefix]:
        """The prefixes that saved the most tokens in the last `hours` hours, first those that saved most.

        Jobs count as having the same prefix if they found the same number of tokens, and their requests begin alike.
        Jobs that were answered without an engine do not count.
        """
        newest = (
            select(
                JobRow.id,
                JobRow.project_id,
                JobRow.finished_at,
                JobRow.request_bytes,
                func.coalesce(sql_cast(JobRow.usage["cached_tokens"].astext, Integer), 0).label("cached"),
            )
            .where(
                JobRow.model == model,
                JobRow.finished_at > func.now() - seconds(hours * 3600),
                JobRow.attempt > 0,
                JobRow.deleted_at.is_(None),
            )
            .order_by(JobRow.finished_at.desc())
            .limit(SCANNED_JOBS)
            .cte("newest")
        )
        hits = (
            select(newest)
            .where(newest.c.cached > 0, func.coalesce(newest.c.request_bytes, 0) <= MAX_REQUEST_BYTES)
            .order_by(newest.c.finished_at.desc())
            .limit(COMPARED_JOBS)
        )
        if project_ids is not None:
            hits = hits.where(newest.c.project_id.in_(project_ids))
        hit = hits.cte("hits")
        # PostgreSQL's operators of JSON fail at U+0000. The text begins with the first message, or with the prompt.
        begin = func.md5(func.left(sql_cast(JobRow.request, Text), func.least(hit.c.cached, COMPARED_CHARACTERS)))
        newest_first = func.array_agg(aggregate_order_by(hit.c.id, hit.c.finished_at.desc()))
        statement = (
            select(
                hit.c.project_id,
                hit.c.cached,
                func.sum(hit.c.cached).label("saved"),
                newest_first[1:SAMPLES].label("job_ids"),
            )
            .join(JobRow, JobRow.id == hit.c.id)
            .group_by(hit.c.project_id, hit.c.cached, begin)
            .order_by(func.sum(hit.c.cached).desc(), hit.c.project_id, hit.c.cached)
            .limit(limit)
        )
        return await self._all(
            statement, lambda row: ReusedPrefix(row.project_id, row.cached, int(row.saved), tuple(row.job_ids))
        )

    async def requests(self, job_ids: Sequence[str]) -> list[GenerateRequest]:
        """The requests of these jobs, without those that were deleted or that this version cannot read."""
        statement = select(JobRow.id, REQUEST).where(JobRow.id.in_(job_ids), JobRow.deleted_at.is_(None))
        requests = []
        for row in await self._all(statement, lambda row: row):
            try:
                requests.append(await off_loop(len(row.request), _request, row))
            except UnreadableRow:
                continue
        return requests


def _project(row: Any) -> ProjectPrefixes:
    return ProjectPrefixes(row.id, row.name, cache_salt(row.salt))


def _request(row: Any) -> GenerateRequest:
    with readable("job", row.id):
        return to_request(row.request)
