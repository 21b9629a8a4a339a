"""Builds the statements of `api.requests.store`: of a page of the request log, and of one entry.

That of a page reads a number of rows in the order of an index, and returns those that match. So its time is bounded
whatever it looks for, and a page that could not be filled says where the next one continues. Each partition is read by
the same index: by project and time, by project, end user and time, or by time. Partitions beyond the limits of the time
and of the cursor are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from api.http.times import FIRST, LAST, within_limits
from api.requests.filters import SKEW, Cursor, RequestFilters, submitted_at
from shared.postgres.quality_tables import EvalRunRow, FeedbackRow, JudgementRow
from shared.postgres.request_log_tables import DataKeyRow, RequestLogRow
from shared.postgres.tables import ProjectRow, Timestamp

# The columns of a row of the log.
COLUMNS = tuple(column.key for column in RequestLogRow.__table__.columns)


class _Shape(NamedTuple):
    """What the statement depends on, apart from the values of its parameters."""

    has_project: bool
    lists: tuple[str, ...]
    texts: tuple[str, ...]
    refused: bool | None
    has_body: bool | None
    has_user: bool
    has_metric: bool
    has_values: bool
    has_rubric: bool
    is_sample: bool


# Conditions by name, which are also their parameters, and the columns that they are about.
_LISTS = {"models": "model", "requested_models": "requested_model", "statuses": "status"}
_TEXTS = ("conversation", "error_code", "batch_id", "request_id")
_PROJECT = bindparam("project", type_=BigInteger)
_USER = bindparam("user", type_=Text)
_START = bindparam("start", type_=Timestamp)
_BEYOND = bindparam("beyond", type_=Timestamp)
_BEYOND_ID = bindparam("beyond_id", type_=Text)
_LIMIT = bindparam("most", type_=Integer)
_SIZE = bindparam("size", type_=Integer)
_EMPTY = literal_column("''", Text)


def page_statement(
    filters: RequestFilters, after: Cursor | None, limit: int, size: int
) -> tuple[Select[Any], dict[str, Any]]:
    """Select at most `limit` requests of the next `size` ones, and the last of these even if it does not match.

    Returns the statement and its parameters.
    """
    feedback, score = filters.feedback, filters.score
    shape = _Shape(
        has_project=filters.project_id is not None,
        lists=tuple(name for name in _LISTS if getattr(filters, name)),
        texts=tuple(name for name in _TEXTS if getattr(filters, name) is not None),
        refused=filters.refused,
        has_body=filters.has_body,
        has_user=filters.end_user is not None,
        has_metric=feedback is not None,
        has_values=feedback is not None and bool(feedback.values),
        has_rubric=score is not None,
        is_sample=filters.below is not None,
    )
    beyond, beyond_id = within_limits(filters.end or LAST), ""
    if after is not None and after.ended_at < beyond:
        beyond, beyond_id = after.ended_at, after.job_id
    values: dict[str, Any] = {
        "project": filters.project_id,
        "user": filters.end_user,
        "start": within_limits(filters.start or FIRST),
        "beyond": beyond,
        "beyond_id": beyond_id,
        "most": limit,
        "size": size,
        **{name: sorted(str(value) for value in getattr(filters, name)) for name in shape.lists},
        **{name: getattr(filters, name) for name in shape.texts},
    }
    if feedback is not None:
        values |= {"metric": feedback.metric, "values": list(feedback.values)}
    if score is not None:
        values |= {"rubric": score.rubric, "least": score.least, "highest": score.most}
    if filters.below is not None:
        values |= {"seed": f"{filters.seed}:", "below": filters.below}
    return _statement(shape), values


def entry_statement(job_id: str, project_id: int | None) -> Select[Any]:
    """Select the row of a job, of one project or of any (None)."""
    row = RequestLogRow.__table__.alias("found")
    statement = _shown(row, [row.c[name] for name in COLUMNS]).where(
        row.c.job_id == job_id, row.c.ended_at >= submitted_at(job_id) - SKEW
    )
    return statement if project_id is None else statement.where(row.c.project_id == project_id)


@lru_cache(maxsize=200)
def _statement(shape: _Shape) -> Select[Any]:
    """The statement of all pages of one shape: to build it takes longer than to read a page."""
    row = RequestLogRow.__table__
    matches = and_(true(), *_conditions(shape, row)).label("matches")
    columns = [row.c[name] for name in COLUMNS]
    if shape.has_user and not shape.has_project:
        # Of each project, because the index begins with it.
        project = ProjectRow.__table__.alias("project")
        own = _slice(select(*columns, matches), row, project.c.id, by_user=True).lateral("own")
        keys = _keys(by_project=False, by_user=False)
        scanned = (
            select(*own.c, func.row_number().over(order_by=_newest(own, keys)).label("number"))
            .select_from(project.join(own, true()))
            .order_by(*_newest(own, keys))
            .limit(_SIZE)
            .subquery("scanned")
        )
    else:
        keys = _keys(by_project=shape.has_project, by_user=shape.has_user)
        number = func.row_number().over(order_by=_newest(row, keys)).label("number")
        statement = select(*columns, matches, number)
        scanned = _slice(statement, row, _PROJECT if shape.has_project else None, by_user=shape.has_user).subquery(
            "scanned"
        )
    found = (
        select(scanned)
        .where(or_(scanned.c.matches, scanned.c.number == _SIZE))
        .order_by(*_newest(scanned, keys))  # the order that they are in: nothing is sorted
        .limit(_LIMIT)
        .subquery("found")
    )
    return _shown(found, list(found.c)).order_by(found.c.number)


def _keys(*, by_project: bool, by_user: bool) -> list[str]:
    """The columns of an index."""
    return ["project_id"] * by_project + ["end_user"] * by_user + ["ended_at", "job_id"]


def _newest(rows: Any, keys: Sequence[str]) -> list[Any]:
    """The order of an index, from its end."""
    return [rows.c[name].desc() for name in keys]


def _slice(statement: Select[Any], row: Any, project: Any, *, by_user: bool) -> Select[Any]:
    """The next rows in the order of an index. `project`: None: of all projects.

    The conditions leave PostgreSQL only the index that begins with these columns: if it expected to find many rows of a
    project, it would read those of all others too. The last two let it leave out partitions, which it does not conclude
    from the others.
    """
    names = _keys(by_project=project is not None, by_user=by_user)
    values = [*([project] if project is not None else []), *([_USER] if by_user else [])]
    keys = tuple_(*(row.c[name] for name in names))
    statement = statement.where(
        keys < tuple_(*values, _BEYOND, _BEYOND_ID),
        keys >= tuple_(*values, _START, _EMPTY),
        row.c.ended_at <= _BEYOND,
        row.c.ended_at >= _START,
    )
    if by_user:
        statement = statement.where(row.c.end_user.is_not(None))  # as in the index
    return statement.order_by(*_newest(row, names)).limit(_SIZE)


def _conditions(shape: _Shape, row: Any) -> list[ColumnElement[bool]]:
    """Conditions: the row matches. Those that read other tables come last, because they take longest."""
    found: list[ColumnElement[bool]] = [
        row.c[_LISTS[name]] == func.any(bindparam(name, type_=ARRAY(Text))) for name in shape.lists
    ]
    found += [func.coalesce(row.c[name] == bindparam(name, type_=Text), False) for name in shape.texts]
    if shape.refused is not None:
        found.append(row.c.refused.is_(true()) if shape.refused else row.c.refused.is_(False))
    if shape.has_body is not None:
        is_kept = _state(row) == literal_column("'kept'")
        found.append(is_kept if shape.has_body else ~is_kept)
    if shape.is_sample:
        text = bindparam("seed", type_=Text).concat(row.c.job_id)
        found.append(
            func.sha256(func.convert_to(text, literal_column("'UTF8'"))) < bindparam("below", type_=LargeBinary)
        )
    if shape.has_metric:
        feedback = select(FeedbackRow.id).where(
            FeedbackRow.job_id == row.c.job_id, FeedbackRow.metric == bindparam("metric", type_=Text)
        )
        if shape.has_values:
            feedback = feedback.where(FeedbackRow.value == func.any(bindparam("values", type_=ARRAY(JSONB))))
        found.append(feedback.correlate(row).exists())
    if shape.has_rubric:
        least, highest = (bindparam(name, type_=Numeric) for name in ("least", "highest"))
        scores = select(JudgementRow.id).where(
            JudgementRow.item == row.c.job_id,
            *_IS_SCORE,
            EvalRunRow.rubric == bindparam("rubric", type_=Text),
            or_(cast(least, Numeric).is_(None), JudgementRow.score >= least),
            or_(cast(highest, Numeric).is_(None), JudgementRow.score <= highest),
        )
        found.append(scores.correlate(row).exists())
    return found


# When the first jobs ended whose bodies have not expired: the data keys of days before were deleted with them.
_UNEXPIRED_SINCE: ColumnElement[Any] = select(
    func.coalesce(
        func.timezone(literal_column("'UTC'", Text), cast(func.min(DataKeyRow.day), DateTime(timezone=False))),
        literal_column("'infinity'::timestamptz", Timestamp),
    )
).scalar_subquery()


def _state(row: Any) -> ColumnElement[str]:
    """What became of the body of a row. The row itself does not change when its body expires."""
    has_expired = and_(row.c.body == literal_column("'kept'"), row.c.ended_at < _UNEXPIRED_SINCE)
    state: ColumnElement[str] = case((has_expired, literal_column("'expired'::text", Text)), else_=row.c.body)
    return state


# A score of one answer on the scale of a rubric, and not the comparison of two.
_IS_SCORE = (
    JudgementRow.run_id == EvalRunRow.id,
    JudgementRow.state == literal_column("'scored'"),
    JudgementRow.position == literal_column("0"),
)


def _shown(found: Any, columns: Sequence[Any]) -> Select[Any]:
    """The rows of a page, with the names of their projects, their feedback and their scores."""
    feedback = (
        select(
            func.jsonb_agg(
                func.jsonb_build_array(
                    FeedbackRow.id, FeedbackRow.metric, FeedbackRow.value, func.to_jsonb(FeedbackRow.tags)
                )
            )
        )
        .where(FeedbackRow.job_id == found.c.job_id)
        .correlate(found)
        .scalar_subquery()
    )
    scores = (
        select(
            func.jsonb_agg(
                func.jsonb_build_array(JudgementRow.id, EvalRunRow.rubric, JudgementRow.score, EvalRunRow.judge_model)
            )
        )
        .where(JudgementRow.item == found.c.job_id, *_IS_SCORE)
        .correlate(found)
        .scalar_subquery()
    )
    return select(
        *(_state(found).label("body") if column.key == "body" else column for column in columns),
        ProjectRow.name.label("project"),
        cast(feedback, JSONB).label("feedback"),
        cast(scores, JSONB).label("scores"),
    ).select_from(found.outerjoin(ProjectRow, ProjectRow.id == found.c.project_id))
