"""SQL of the report on quality: one statement per source, for all groups and periods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Float,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from api.usage.periods import Periods
from shared.domain.errors import InvalidRequest
from shared.domain.feedback import RATING, Rating
from shared.domain.job import JobStatus
from shared.domain.refusals import RefusalSource
from shared.postgres.engine import QUERY_CANCELED, transaction
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow
from shared.postgres.request_log_tables import RequestLogRow
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow, Timestamp

# A report with more rows does not belong into one response.
MAX_ROWS = 50_000
# The longest time that a source of a report is read: a report of a long time reads all requests of that time.
TIMEOUT_S = 20.0
# A job that was cancelled is neither good nor bad: its client did not want it any more.
_FAILED = (JobStatus.FAILED.value, JobStatus.EXPIRED.value)


class Dimension(StrEnum):
    """What a report can be grouped by, besides the day. `ROUTE`: the model or route that the request named."""

    PROJECT = "project"
    MODEL = "model"
    ROUTE = "route"


COLUMNS: Mapping[Dimension, str] = {
    Dimension.PROJECT: "project_id",
    Dimension.MODEL: "model",
    Dimension.ROUTE: "requested_model",
}


@dataclass(frozen=True, slots=True)
class QualitySelection:
    """A report: about which answers, grouped how. With `by_day`, each row belongs to one of the periods."""

    periods: Periods
    group_by: tuple[Dimension, ...] = ()
    by_day: bool = False
    # None: all.
    project_ids: Collection[int] | None = None
    models: Collection[str] | None = None
    routes: Collection[str] | None = None


# What identifies a group: the number of its period, or None, and the values of the dimensions.
Group = tuple[Any, ...]


@dataclass(frozen=True, slots=True, order=True)
class ScoredRubric:
    """A live run, and its rubric. Scores of another question, scale, judge or version of the prompt are not comparable,
    and are those of another run. `scale`: `yes/no`, or a range; empty if it is not known."""

    name: str
    prompt_version: str
    judge: str
    scale: str
    run_id: str


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Ended requests of clients: without cancelled ones, those that failed, those of which it is known whether the
    model has refused to answer, and those in which it has, by who says so."""

    ended: int
    failed: int
    judged: int
    refused_by_provider: int
    refused_by_classifier: int


@dataclass(frozen=True, slots=True)
class FeedbackCounts:
    """Ratings, those that are thumbs up, and values of other metrics."""

    ratings: int
    up: int
    others: int


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """The scores that judges have given by a rubric: how often each, and how many judgements have none."""

    scores: Mapping[float, int]
    unparsable: int
    failed: int


class QualityStore(Store):
    """Reads what reports on quality are made of."""

    async def requests(self, selection: QualitySelection) -> dict[Group, RequestCounts]:
        """Counts of requests by group."""
        row = RequestLogRow
        by_whom = [
            func.count().filter(row.refused.is_(true()), row.refusal_source == source.value)
            for source in (RefusalSource.PROVIDER, RefusalSource.CLASSIFIER)
        ]
        values = (
            func.count().filter(row.status != JobStatus.CANCELLED.value),
            func.count().filter(row.status.in_(_FAILED)),
            func.count().filter(row.refused.is_not(None)),
            *by_whom,
        )
        statement = _statement(selection, row, row.ended_at, values).where(row.kind.is_(None))
        return {tuple(key): RequestCounts(*counts) for key, counts in await self._read(statement, len(values))}

    async def feedback(self, selection: QualitySelection) -> dict[Group, FeedbackCounts]:
        """Counts of feedback by group, at the time when it was first given."""
        row = FeedbackRow
        is_rating = row.metric == RATING
        values = (
            func.count().filter(is_rating),
            func.count().filter(is_rating, row.value == literal(Rating.UP.value, JSONB)),
            func.count().filter(~is_rating),
        )
        rows = await self._read(_statement(selection, row, row.created_at, values), len(values))
        return {tuple(key): FeedbackCounts(*counts) for key, counts in rows}

    async def scores(self, selection: QualitySelection) -> dict[tuple[Group, ScoredRubric], ScoreCounts]:
        """The scores of judges by group and rubric, of answers to clients: those of sets are compared elsewhere."""
        row, run = JudgementRow, EvalRunRow
        rubric = (
            run.rubric, run.prompt_version, run.judge_model, func.coalesce(run.options["scale"].astext, ""), run.id
        )  # fmt: skip
        values = (
            *rubric,
            cast(row.score, Float),
            func.count().filter(row.state == "scored"),
            func.count().filter(row.state == "unparsable"),
            func.count().filter(row.state == "failed"),
        )
        statement = _statement(selection, row, row.answered_at, values, groups=len(rubric) + 1)
        statement = statement.join(run, run.id == row.run_id).where(run.kind == "live", row.position == 0)
        found: dict[tuple[Group, ScoredRubric], ScoreCounts] = {}
        for key, (*identity, score, scored, unparsable, failed) in await self._read(statement, len(values)):
            place = (tuple(key), ScoredRubric(*identity))
            so_far = found.get(place, ScoreCounts({}, 0, 0))
            scores = {**so_far.scores, score: scored} if scored else so_far.scores
            found[place] = ScoreCounts(scores, so_far.unparsable + unparsable, so_far.failed + failed)
        return found

    async def project_names(self, project_ids: Collection[int]) -> dict[int, str]:
        """The names of projects, by id."""
        statement = select(ProjectRow.id, ProjectRow.name).where(ProjectRow.id.in_(sorted(project_ids)))
        return dict(await self._all(statement, lambda row: (row.id, row.name)))

    async def _read(self, statement: Select[Any], values: int) -> list[tuple[Sequence[Any], Sequence[Any]]]:
        """The groups of a statement whose last columns are `values`, and these.

        Raises:
            InvalidRequest: there are too many, or reading them takes too long.
        """
        try:
            async with transaction(self._engine) as connection:
                await connection.execute(_limits())
                rows = [tuple(row) for row in await connection.execute(statement.limit(MAX_ROWS + 1))]
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != QUERY_CANCELED:
                raise
            raise InvalidRequest(
                f"start: the report has taken longer than {TIMEOUT_S:g} s; choose a shorter time, or one project",
                param="start",
            ) from error
        if len(rows) > MAX_ROWS:
            raise InvalidRequest(
                f"The report has more than {MAX_ROWS} rows. Choose a shorter time, or fewer groups", param="group_by"
            )
        return [(row[:-values], row[-values:]) for row in rows]


def _limits() -> Select[Any]:
    """How the transaction of a report is run: not for too long, and with a plan for its own times and projects. From
    its sixth execution on, PostgreSQL would plan it for any."""
    return select(
        func.set_config("statement_timeout", f"{max(1, round(1000 * TIMEOUT_S))}", True),
        func.set_config("plan_cache_mode", "force_custom_plan", True),
    )


def _statement(
    selection: QualitySelection, row: Any, moment: Any, values: Sequence[Any], *, groups: int = 0
) -> Select[Any]:
    """Select values by the groups of a report, from rows that have the columns of its dimensions. The first `groups`
    of the values are groups too."""
    periods = selection.periods
    keys: list[Any] = [getattr(row, COLUMNS[dimension]) for dimension in selection.group_by]
    if selection.by_day:
        keys.insert(0, func.width_bucket(moment, _array(periods.starts, Timestamp)) - 1)
    else:
        keys.insert(0, literal_column("0"))
    statement = select(*keys, *values).where(
        moment >= literal(periods.start, Timestamp), moment < literal(periods.end, Timestamp)
    )
    for name, wanted, kind in (
        ("project_id", selection.project_ids, BigInteger),
        ("model", selection.models, Text),
        ("requested_model", selection.routes, Text),
    ):
        if wanted is not None:
            statement = statement.where(getattr(row, name) == func.any(_array(sorted(wanted), kind)))
    # By number, because the array of the periods is a parameter, and two of them are not the same expression.
    numbers: list[Any] = [literal_column(str(number + 1)) for number in range(len(keys) + groups)]
    return statement.group_by(*numbers)


def _array(values: Sequence[Any], kind: Any) -> Any:
    return cast(bindparam(None, list(values), type_=ARRAY(kind), unique=True), ARRAY(kind))
