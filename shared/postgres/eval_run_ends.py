"""SQL that ends runs over sets of items."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Select, Update, case, cast, false, func, select, update

from shared.domain.judgements import JudgementState
from shared.postgres.quality_tables import EvalRunRow, JudgementRow


def lock_sets(run_ids: Any) -> Select[Any]:
    """Lock runs over sets, in order: of two transactions that end the last judgements of a run, the second sees the
    first one's. `run_ids`: a subquery, or ids."""
    locked = select(EvalRunRow.id).where(EvalRunRow.id.in_(run_ids), EvalRunRow.options.has_key("expected"))
    return locked.order_by(EvalRunRow.id).with_for_update()


def end_if_complete(run_id: str) -> Update:
    """End a run over a set if all of its judgements have ended."""
    expected = cast(EvalRunRow.options["expected"].astext, BigInteger)
    of_run = JudgementRow.run_id == run_id
    done = select(func.count()).where(of_run).scalar_subquery()
    is_open = select(JudgementRow.id).where(of_run, JudgementRow.state == JudgementState.PENDING.value).exists()
    # They are counted only if none is open: each time, a run of n judgements would read n * n rows.
    has_all = case((is_open, false()), else_=expected <= done)
    return (
        update(EvalRunRow)
        .where(EvalRunRow.id == run_id, EvalRunRow.ended_at.is_(None), has_all)
        .values(ended_at=func.now())
    )
