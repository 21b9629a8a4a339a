"""SQL of the overview: three statements, whose cost does not grow with the number of jobs in the database."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.store import to_worker, workers_statement
from api.console.data.job_counts import INTERACTIVE, counted
from api.console.data.overview import Charts, Live, Measures, QueueState, Rescue, charts
from api.console.data.statistics_store import MARK, uncounted_from
from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX, AttemptOutcome
from shared.domain.priorities import is_batch
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.job_rows import LOST
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, JobStatisticsRow, ModelPauseRow

Timestamp = DateTime(timezone=True)
# The widths of buckets, of which the narrowest is used that divides the time into at most `MAX_BUCKETS`.
WIDTHS = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 180, 720))
MAX_BUCKETS = 100
# Jobs of one priority of a model's queue are counted up to this number.
COUNTED = 10_000
RESCUES = 50
# Jobs that are older than this when they lose their worker are not shown as rescued.
RESCUED_AGE = timedelta(days=1)
_LOSSES = (AttemptOutcome.WORKER_LOST.value, AttemptOutcome.ENGINE_LOST.value)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def bucket_width(length: timedelta) -> timedelta:
    """The width of the buckets of a time."""
    return next((width for width in WIDTHS if length <= width * MAX_BUCKETS), WIDTHS[-1])


class OverviewStore(Store):
    """Reads what the overview shows, of all projects."""

    def __init__(self, engine: AsyncEngine, queue_of: Callable[[str], str] = str) -> None:
        """`queue_of`: see `Registry.queue_of`. The jobs of adapters count for the queue that they lie on."""
        super().__init__(engine)
        self._queue_of = queue_of

    async def charts(self, start: datetime, end: datetime, *, model: str | None = None) -> Charts:
        """What happened from `start`, rounded down to the width of a bucket, to `end`; of one model or of all.

        The width is chosen by the length, so that a chart has 20 to 100 buckets. Buckets start at multiples of it.
        """
        width = bucket_width(end - start)
        start -= (start - _EPOCH) % width
        values: dict[str, Any] = {"start": start, "end": end, "width": width}
        statement = _CHARTS
        if model is not None:
            statement, values["of_model"] = _CHARTS_OF_MODEL, model
        measured: dict[datetime, Measures] = defaultdict(Measures)
        for row in await statement.run(self._engine, values):
            measured[row.bucket].add(row.measure, row.values)
        return charts(start, end, width, model, measured)

    async def live(self, models: Sequence[str], since: datetime) -> Live:
        """What waits and runs now: the queues of these models and of all others with jobs, all workers, and the last
        rescues since `since`."""
        queues = await self._queues(models)
        workers = [to_worker(row) for row in await _WORKERS.run(self._engine, {})]
        return Live(datetime.now(UTC), queues, workers, await self.rescues(since))

    async def rescues(self, since: datetime) -> list[Rescue]:
        """The last rescues since a time, the newest first."""
        oldest = first_id(JOB_ID_PREFIX, since - RESCUED_AGE)
        return [_rescue(row) for row in await _RESCUES.run(self._engine, {"since": since, "oldest": oldest})]

    async def _queues(self, models: Sequence[str]) -> list[QueueState]:
        """The queues in the order of `models`, then those of other models, interactive jobs first."""
        waiting: dict[tuple[str, bool], list[Any]] = defaultdict(list)
        for row in await _QUEUES.run(self._engine, {}):
            waiting[self._queue_of(row.model), not is_batch(row.priority)].append(row)
        running: Counter[tuple[str, bool]] = Counter()
        for row in await _RUNNING.run(self._engine, {}):
            running[self._queue_of(row.model), row.interactive] += row.running
        paused = {row.model: row.paused_at for row in await _PAUSES.run(self._engine, {})}
        known = dict.fromkeys(models)
        others = sorted({model for model, _ in (*waiting, *running)} - known.keys())
        queues = []
        for model in (*known, *others):
            for interactive in (True, False):
                lists = waiting.get((model, interactive), [])
                queues.append(
                    QueueState(
                        model,
                        interactive,
                        sum(min(row.waiting, COUNTED) for row in lists),
                        any(row.waiting > COUNTED for row in lists),
                        max((float(row.oldest_s) for row in lists), default=None),
                        running[model, interactive],
                        paused.get(model),
                    )
                )
        return queues


def _charts_statement(*, of_model: bool) -> Any:
    """Sum up the statistics of minutes that were counted, and count the jobs that have ended since.

    Its parameters are `start`, `end`, the `width` of buckets and, if wanted, `of_model`.
    """
    start, end = bindparam("start", type_=Timestamp), bindparam("end", type_=Timestamp)
    width, model = bindparam("width", type_=Interval), bindparam("of_model", type_=Text) if of_model else None
    models = JobStatisticsRow.model != MARK if model is None else JobStatisticsRow.model == model
    stored = (
        select(JobStatisticsRow)
        .where(JobStatisticsRow.minute >= start, JobStatisticsRow.minute < end, models)
        .cte("stored")
    )
    fresh = counted(uncounted_from(start), end, model=model).cte("fresh")

    def of_stored(measure: str, column: Any) -> Select[Any]:
        entries = func.jsonb_each_text(column).table_valued("key", "value").render_derived(name=f"of_{measure}")
        return select(
            stored.c.minute, literal(measure, Text), cast(entries.c.key, Text), cast(entries.c.value, BigInteger)
        ).join_from(stored, entries, true())

    def of_fresh(measure: str, label: Any, value: Any) -> Select[Any]:
        return select(fresh.c.minute, literal(measure, Text), cast(label, Text), cast(value, BigInteger)).where(
            label.is_not(None)
        )

    tokens = literal("tokens", Text)
    measures = union_all(
        of_stored("ended", stored.c.ended),
        of_stored("error", stored.c.errors),
        of_stored("first_token", stored.c.first_tokens),
        of_stored("wait", stored.c.waits),
        select(stored.c.minute, tokens, literal("", Text), stored.c.tokens),
        of_fresh("ended", fresh.c.status, fresh.c.jobs),
        of_fresh("error", fresh.c.error_code, fresh.c.jobs),
        of_fresh("first_token", fresh.c.first_token, fresh.c.jobs),
        of_fresh("wait", fresh.c.wait, fresh.c.jobs),
        select(fresh.c.minute, tokens, literal("", Text), cast(fresh.c.tokens, BigInteger)).where(
            fresh.c.tokens.is_not(None)
        ),
    ).subquery("measures")
    minute, measure, label, value = measures.c
    bucket = func.date_bin(width, minute, start)
    summed = (
        select(bucket.label("bucket"), measure.label("measure"), label.label("label"), func.sum(value).label("value"))
        .group_by(bucket, measure, label)
        .subquery("summed")
    )
    # One row for each measure of a bucket: Python would take longer for a row of each label than PostgreSQL.
    values = func.jsonb_object_agg(summed.c.label, summed.c.value, type_=JSONB).label("values")
    return select(summed.c.bucket, summed.c.measure, values).group_by(summed.c.bucket, summed.c.measure)


def _queues_statement() -> Any:
    """Count the queued jobs by model and priority, at most `COUNTED` each, without reading the others."""
    key = (JobRow.model, JobRow.priority)
    first = select(*key).where(IS_QUEUED).order_by(*key).limit(1)
    lists = select(first.subquery("first")).cte("lists", recursive=True)
    following = first.where(tuple_(*key) > tuple_(lists.c.model, lists.c.priority)).lateral("following")
    lists = lists.union_all(select(following.c.model, following.c.priority).join_from(lists, following, true()))
    waiting = (
        select(JobRow.created_at)
        .where(IS_QUEUED, JobRow.follows.is_(None), JobRow.model == lists.c.model, JobRow.priority == lists.c.priority)
        .order_by(JobRow.id)
        .limit(literal_column(str(COUNTED + 1)))
        .lateral("waiting")
    )
    age = func.extract("epoch", func.clock_timestamp() - func.min(waiting.c.created_at))
    return (
        select(lists.c.model, lists.c.priority, func.count().label("waiting"), age.label("oldest_s"))
        .join_from(lists, waiting, true())
        .group_by(lists.c.model, lists.c.priority)
    )


def _running_statement() -> Any:
    """Count the running jobs by model, interactive ones apart."""
    interactive = INTERACTIVE.label("interactive")
    return (
        select(JobRow.model, interactive, func.count().label("running"))
        .where(IS_RUNNING)
        .group_by(JobRow.model, interactive)
    )


def _rescues_statement() -> Any:
    """The attempts that lost their worker or their engine since then, and the attempts that followed them.

    Its parameters are the time `since` which, and the id of the `oldest` job that is looked at.
    """
    since = bindparam("since", type_=Timestamp)
    attempts = (
        func.jsonb_array_elements(JobRow.attempts)
        .table_valued("value", with_ordinality="position")
        .render_derived(name="attempts")
    )
    lost = cast(attempts.c.value, JSONB)
    lost_at = cast(lost["ended_at"].astext, Timestamp)
    following = JobRow.attempts[cast(attempts.c.position, Integer)]
    runs: ColumnElement[bool] = and_(JobRow.worker.is_not(None), JobRow.attempt_started_at > lost_at)
    worker = func.regexp_replace(JobRow.worker, f"{LOST}$", "")
    return (
        select(
            JobRow.id,
            JobRow.project_id,
            JobRow.model,
            JobRow.status,
            cast(lost["number"].astext, Integer).label("attempt"),
            lost["worker"].astext.label("worker"),
            lost["outcome"].astext.label("outcome"),
            lost_at.label("lost_at"),
            cast(lost["tokens"].astext, Integer).label("tokens"),
            func.coalesce(
                cast(following["started_at"].astext, Timestamp), case((runs, JobRow.attempt_started_at))
            ).label("continued_at"),
            func.coalesce(following["worker"].astext, case((runs, worker))).label("continued_by"),
        )
        .join_from(JobRow, attempts, true())
        .where(
            # As in the index, with literals. PostgreSQL knows how rare each is, but not how rare their sum would be.
            or_(JobRow.deaths > literal_column("0"), JobRow.exposures > literal_column("0")),
            JobRow.id >= bindparam("oldest", type_=Text),
            or_(*(lost["outcome"].astext == outcome for outcome in _LOSSES)),
            lost_at >= since,
        )
        .order_by(lost_at.desc())
        .limit(RESCUES)
    )


def _rescue(row: Any) -> Rescue:
    return Rescue(
        job_id=row.id,
        project_id=row.project_id,
        model=row.model,
        attempt=row.attempt,
        worker=row.worker,
        outcome=row.outcome,
        lost_at=row.lost_at,
        tokens=row.tokens,
        continued_at=row.continued_at,
        continued_by=row.continued_by,
        status=row.status,
    )


# Compiled once: the overview is read every few seconds.
_CHARTS = Prepared(_charts_statement(of_model=False))
_CHARTS_OF_MODEL = Prepared(_charts_statement(of_model=True))
_QUEUES = Prepared(_queues_statement())
_RUNNING = Prepared(_running_statement())
_PAUSES = Prepared(select(ModelPauseRow.model, ModelPauseRow.paused_at))
_WORKERS = Prepared(workers_statement())
_RESCUES = Prepared(_rescues_statement())
