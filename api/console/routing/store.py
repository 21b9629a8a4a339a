"""SQL of the page of routing and the cache: bounded samples, however many jobs and answers there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Integer, Text, bindparam, cast, func, literal_column, select, true

from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import CachedAnswerRow, JobRow

# The most requests that are read of each part of the time, the newest of it.
SAMPLED = 20
# Answers of the response cache are counted up to this number.
COUNTED_ANSWERS = 20_000


class Decided(NamedTuple):
    """Requests of one part of the time (its number) for which the same was decided.

    `skipped`: a model was passed over when the request came. `moved`: a fallback took over later.
    """

    part: int
    model: str
    route: str | None
    rule: str | None
    mode: str | None
    skipped: bool
    moved: bool
    outcome: str | None
    reason: str | None
    requests: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """The stored answers of a model, up to `COUNTED_ANSWERS` of all models together."""

    model: str
    entries: int
    bytes: int
    hits: int


class RoutingStore(Store):
    """Reads what was decided about requests."""

    async def decided(self, starts: Sequence[datetime], end: datetime, project_id: int | None) -> list[Decided]:
        """What was decided about a sample of a project's requests, or of those of all (None).

        `starts`: the starts of the parts of the time, in order; the last one ends at `end`.
        """
        firsts = [first_id(JOB_ID_PREFIX, moment) for moment in (*starts, end)]
        values: dict[str, Any] = {"firsts": firsts[:-1], "untils": firsts[1:]}
        statement = _SAMPLE
        if project_id is not None:
            statement, values["project_id"] = _SAMPLE_OF_PROJECT, project_id
        return [Decided(**vars(row)) for row in await statement.run(self._engine, values)]

    async def answers(self, project_id: int | None) -> list[Answers]:
        """The stored answers by model, of a project or of all."""
        values: dict[str, Any] = {}
        statement = _ANSWERS
        if project_id is not None:
            statement, values["project_id"] = _ANSWERS_OF_PROJECT, project_id
        rows = await statement.run(self._engine, values)
        return [Answers(row.model, row.entries, int(row.held), int(row.hits)) for row in rows]


def sample_statement(*, of_project: bool) -> Any:
    """Read the newest `SAMPLED` requests of each part of the time: a range of an index each.

    Its parameters are the first ids of the parts, `firsts`, those after them, `untils`, and, if wanted, `project_id`.
    """
    parts = (
        func.unnest(bindparam("firsts", type_=ARRAY(Text)), bindparam("untils", type_=ARRAY(Text)))
        .table_valued("first", "until", with_ordinality="part")
        .render_derived(name="parts")
    )
    columns = (JobRow.model, JobRow.kind, JobRow.decisions, JobRow.usage)
    newest = (
        select(*columns)
        .where(JobRow.id >= parts.c.first, JobRow.id < parts.c.until)
        .order_by(JobRow.id.desc())
        .limit(literal_column(str(SAMPLED)))
    )
    if of_project:
        newest = newest.where(JobRow.project_id == bindparam("project_id", type_=BigInteger))
    job = newest.lateral("job")
    route, cache = job.c.decisions["route"], job.c.decisions["cache"]
    texts = [
        route["route"].astext.label("route"),
        route["rule"].astext.label("rule"),
        route["mode"].astext.label("mode"),
        cache["outcome"].astext.label("outcome"),
        cache["reason"].astext.label("reason"),
    ]
    left = func.coalesce(func.jsonb_array_length(route["left"]), 0)
    moved = (left > 0).label("moved")
    skipped = (func.coalesce(func.jsonb_array_length(route["tried"]), 0) > left).label("skipped")
    part = (cast(parts.c.part, Integer) - 1).label("part")
    keys = (part, job.c.model, *texts[:3], skipped, moved, *texts[3:])
    tokens = [
        func.coalesce(func.sum(cast(job.c.usage[name].astext, Integer)), 0).label(name)
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    ]
    return (
        select(*keys, func.count().label("requests"), *tokens)
        .join_from(parts, job, true())
        .where(job.c.kind.is_(None))
        .group_by(*keys)
        .order_by(part)
    )


def _answers_statement(*, of_project: bool) -> Any:
    """Count the stored answers by model. Its parameter is, if wanted, `project_id`."""
    columns = (CachedAnswerRow.model, CachedAnswerRow.bytes, CachedAnswerRow.hits)
    some = select(*columns).where(CachedAnswerRow.expires_at > func.now()).limit(literal_column(str(COUNTED_ANSWERS)))
    if of_project:
        some = some.where(CachedAnswerRow.project_id == bindparam("project_id", type_=BigInteger))
    found = some.subquery("found")
    return (
        select(
            found.c.model,
            func.count().label("entries"),
            func.sum(found.c.bytes).label("held"),
            func.sum(found.c.hits).label("hits"),
        )
        .group_by(found.c.model)
        .order_by(func.count().desc(), found.c.model)
    )


def parts_of(start: datetime, end: datetime, width: timedelta) -> list[datetime]:
    """The starts of the parts of a time."""
    starts = []
    while start < end:
        starts.append(start)
        start += width
    return starts


# Compiled once: SQLAlchemy takes longer for them than PostgreSQL.
_SAMPLE = Prepared(sample_statement(of_project=False))
_SAMPLE_OF_PROJECT = Prepared(sample_statement(of_project=True))
_ANSWERS = Prepared(_answers_statement(of_project=False))
_ANSWERS_OF_PROJECT = Prepared(_answers_statement(of_project=True))
