"""The parts of statements that reserve in the windows of budgets and release what was reserved.

A job reserves in the statement that inserts it, and what it has reserved is released in the one that ends it. So
nothing is reserved without a job, and no open job is without its reservations.

Deadlock freedom: a statement locks all windows that it changes in the order of their ids, and before it locks anything
else that others wait for (rows of jobs, keys of the response cache). Only an idempotency key and a batch's row are
locked before, and no statement waits for those while it has locked a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Double,
    Integer,
    Numeric,
    Select,
    Text,
    case,
    delete,
    false,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy import cast as sql_cast

from shared.domain.budgets import BudgetScope, OnExceed, WindowReservation, dollars
from shared.domain.errors import BudgetExceeded
from shared.postgres.store import Records
from shared.postgres.usage_tables import BudgetReservationRow, BudgetRow, BudgetWindowRow

# What new jobs reserve. `place`: the order in which the jobs of a statement are admitted.
RESERVATIONS = Records("reservation", job_id=Text, window_id=BigInteger, amount=Numeric, place=Integer)
_ZERO = literal_column("0", Numeric)
# The columns of rows about jobs that were not admitted.
_REFUSAL = ("budget_id", "scope", "period", "limit_usd", "used", "amount", "on_exceed", "ends_in_s")


@dataclass(frozen=True, slots=True)
class Refused:
    """A job was not inserted, because a hard budget has no room for it.

    `error` is None if it only had none beside the other jobs of the statement, some of which were not inserted either.
    """

    error: BudgetExceeded | None


def reservation_records(job_id: str, reservations: Iterable[WindowReservation], place: int) -> list[dict[str, Any]]:
    """The records of a job for `RESERVATIONS`."""
    return [
        {"job_id": job_id, "window_id": one.window_id, "amount": one.amount, "place": place} for one in reservations
    ]


class Reserving:
    """The parts of a statement that inserts jobs while there is room for them in the windows of budgets.

    A statement admits jobs by running sums: each job counts in its windows, with those before it, whether these are
    admitted or not. So it never admits too much. A job that would be admitted without those that are not is reported
    as `Refused` without an error, and can be inserted by another statement.
    """

    def __init__(self) -> None:
        windows = (
            select(
                BudgetWindowRow.id,
                (BudgetWindowRow.spent + BudgetWindowRow.reserved).label("used"),
                BudgetWindowRow.ends_at,
                BudgetRow.id.label("budget_id"),
                _scope().label("scope"),
                BudgetRow.period,
                BudgetRow.limit_usd,
                BudgetRow.hard,
                BudgetRow.on_exceed,
            )
            .join(BudgetRow, BudgetRow.id == BudgetWindowRow.budget_id)
            .where(BudgetWindowRow.id.in_(select(RESERVATIONS.window_id)))
            .order_by(BudgetWindowRow.id)
            .with_for_update(key_share=True, of=BudgetWindowRow)
            .cte("windows")
        )
        running = func.sum(RESERVATIONS.amount).over(partition_by=RESERVATIONS.window_id, order_by=RESERVATIONS.place)
        # A window that was deleted with its budget limits nothing.
        self._asked = (
            select(
                RESERVATIONS.job_id.label("job_id"),
                RESERVATIONS.window_id.label("window_id"),
                RESERVATIONS.amount.label("amount"),
                *(windows.c[name] for name in ("hard", "used", "ends_at", *_REFUSAL[:4], "on_exceed")),
                (windows.c.used + running).label("running"),
            )
            .where(windows.c.id == RESERVATIONS.window_id)
            .cte("asked")
        )
        asked = self._asked
        self._refused = (
            select(asked.c.job_id).where(asked.c.hard, asked.c.running > asked.c.limit_usd).distinct().cte("refused")
        )

    def admitted(self, job_id: Any) -> ColumnElement[bool]:
        """Condition: the budgets of a new job have room for it. The windows are locked before this is known."""
        condition: ColumnElement[bool] = job_id.not_in(select(self._refused.c.job_id))
        return condition

    def with_reservations(self, inserted: CTE) -> Select[Any]:
        """Let a statement also reserve for the jobs that it inserts, and return the jobs that were refused.

        Its rows have the columns of `inserted`, of which the first is the job's id, and those of `_REFUSAL`; and
        `refused`. A refused job has several rows if several budgets have no room for it.
        """
        asked, refused = self._asked, self._refused
        reserved = (
            insert(BudgetReservationRow)
            .from_select(
                ["job_id", "window_id", "amount"],
                select(inserted.c.id, asked.c.window_id, asked.c.amount).where(asked.c.job_id == inserted.c.id),
            )
            .returning(BudgetReservationRow.window_id, BudgetReservationRow.amount)
            .cte("reserved")
        )
        sums = _sums(reserved, amount=reserved.c.amount).subquery("sums")
        windows = (
            update(BudgetWindowRow)
            .where(BudgetWindowRow.id == sums.c.window_id)
            .values({BudgetWindowRow.reserved: BudgetWindowRow.reserved + sums.c.amount})
            .cte("windows_reserved")
        )
        not_refused = asked.c.job_id.not_in(select(refused.c.job_id))
        admitted = _sums(asked, amount=asked.c.amount).where(not_refused).subquery("admitted")
        used = (asked.c.used + func.coalesce(admitted.c.amount, _ZERO)).label("used")
        blocking = (
            select(*(column for column in asked.c if column.key != "used"), used)
            .join_from(asked, refused, refused.c.job_id == asked.c.job_id)
            .outerjoin(admitted, admitted.c.window_id == asked.c.window_id)
            .where(asked.c.hard, used + asked.c.amount > asked.c.limit_usd)
            .subquery("blocking")
        )
        ends_in_s = sql_cast(func.extract("epoch", blocking.c.ends_at - func.now()), Double)
        reasons = {name: blocking.c[name] for name in _REFUSAL[:-1]} | {"ends_in_s": ends_in_s}
        first, *others = inserted.c
        rows = select(
            *inserted.c,
            false().label("refused"),
            *(null().cast(column.type).label(name) for name, column in reasons.items()),
        ).union_all(
            select(
                refused.c.job_id.label(first.key),
                *(null().cast(column.type) for column in others),
                true(),
                *reasons.values(),
            ).join_from(refused, blocking, blocking.c.job_id == refused.c.job_id, isouter=True)
        )
        return select(rows.subquery("outcomes")).add_cte(windows)


def _scope() -> ColumnElement[str]:
    return case(
        (BudgetRow.end_user.is_not(None), literal_column(f"'{BudgetScope.END_USER.value}'", Text)),
        (BudgetRow.key_id.is_not(None), literal_column(f"'{BudgetScope.KEY.value}'", Text)),
        else_=literal_column(f"'{BudgetScope.PROJECT.value}'", Text),
    )


def _sums(rows: CTE, **sums: Any) -> Select[Any]:
    """Sums over rows with a `window_id`, by window."""
    summed = (func.sum(value).label(name) for name, value in sums.items())
    return select(rows.c.window_id, *summed).group_by(rows.c.window_id)


def refusals(rows: Iterable[Any]) -> dict[str, Refused]:
    """The refused jobs among the rows of `Reserving.with_reservations`, by their ids."""
    found: dict[str, Refused] = {}
    for row in rows:
        if row.refused:
            found[row.id] = _latest(found.get(row.id), row)
    return found


def _latest(earlier: Refused | None, row: Any) -> Refused:
    """The refusal by the budget with the latest end: before that, there is no room for the job."""
    error = None if row.budget_id is None else _error(row)
    if error is None or earlier is None or earlier.error is None:
        return Refused(error)
    # A job is held, or gets a cheaper model, only if each of the budgets says so.
    holds = earlier.error.holds and error.holds
    downgrades = earlier.error.downgrades and error.downgrades
    room = min(earlier.error.room, error.room)
    later = max(earlier.error, error, key=lambda one: math.inf if one.retry_after_s is None else one.retry_after_s)
    later.holds, later.downgrades, later.room = holds, downgrades, room
    return Refused(later)


def _error(row: Any) -> BudgetExceeded:
    scope = BudgetScope(row.scope)
    owner = {BudgetScope.PROJECT: "project", BudgetScope.KEY: "API key", BudgetScope.END_USER: "end user"}[scope]
    period = "in total" if row.period == "total" else f"per {row.period}"
    # Waiting does not help a job that no window has room for.
    ends = row.ends_in_s is not None and row.amount <= row.limit_usd
    return BudgetExceeded(
        f"This {owner}'s budget of {dollars(row.limit_usd)} {period} (budget_{row.budget_id}) has no room for this"
        f" request: {dollars(row.used)} are spent or reserved, and it could cost up to {dollars(row.amount)}.",
        scope=scope,
        retry_after_s=max(1, -int(-row.ends_in_s // 1)) if ends else None,
        holds=ends and row.on_exceed == OnExceed.HOLD.value,
        downgrades=row.on_exceed == OnExceed.DOWNGRADE.value,
        amount=row.amount,
        room=row.limit_usd - row.used,
    )


def _any_of(values: Select[Any]) -> Any:
    return func.any(func.array(values.scalar_subquery()))


def lock_windows(jobs: Select[Any]) -> ColumnElement[bool]:
    """A condition that is always true, and locks the windows in which these jobs have reserved when it is evaluated.

    `jobs` selects their ids. The condition must be one of the query that finds the rows to lock, so that these are
    locked after the windows.
    """
    # By arrays, so that PostgreSQL looks up each id in an index, whatever it knows of the size of the tables.
    reserved = select(BudgetReservationRow.window_id).where(BudgetReservationRow.job_id == _any_of(jobs))
    locked = (
        select(BudgetWindowRow.id)
        .where(BudgetWindowRow.id == _any_of(reserved))
        .order_by(BudgetWindowRow.id)
        .with_for_update(key_share=True)
        .cte("windows_locked")
    )
    # An aggregate reads all of them, so that all are locked.
    condition: ColumnElement[bool] = select(func.count(locked.c.id)).scalar_subquery() >= literal_column("0", Integer)
    return condition


def release_reservations(ended: CTE, charges: CTE) -> CTE:
    """Release what jobs that end have reserved, and count what they are charged as spent.

    The windows must have been locked by `lock_windows`. `charges` have the `job_id` of each of the jobs and its
    `charge`. If the charge is not known, because a part of it has no price, what was reserved counts as spent.
    """
    released = (
        delete(BudgetReservationRow)
        .where(BudgetReservationRow.job_id == _any_of(select(ended.c.id)))
        .returning(BudgetReservationRow.job_id, BudgetReservationRow.window_id, BudgetReservationRow.amount)
        .cte("released")
    )
    settled = select(
        released.c.window_id, released.c.amount, func.coalesce(charges.c.charge, released.c.amount).label("spent")
    ).join_from(released, charges, charges.c.job_id == released.c.job_id)
    return move_to_spent(settled.cte("settled"))


def move_to_spent(settled: CTE) -> CTE:
    """Subtract amounts from what is reserved in windows, and add what was spent: `window_id`, `amount`, `spent`."""
    sums = _sums(settled, amount=settled.c.amount, spent=settled.c.spent).subquery("sums")
    return (
        update(BudgetWindowRow)
        .where(BudgetWindowRow.id == sums.c.window_id, BudgetWindowRow.id == _any_of(select(settled.c.window_id)))
        .values(
            {
                BudgetWindowRow.reserved: BudgetWindowRow.reserved - sums.c.amount,
                BudgetWindowRow.spent: BudgetWindowRow.spent + sums.c.spent,
            }
        )
        .cte("windows_released")
    )
