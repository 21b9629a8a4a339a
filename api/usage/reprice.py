"""`python -m api.usage reprice`: price the ledger's entries again, with the prices that are in the database now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from shared.postgres.repricing import PORTION, Position, Repriced, Repricing


async def reprice(
    store: Repricing, since: datetime, *, model: str | None = None, dry_run: bool = False, portion: int = PORTION
) -> Repriced:
    """Append corrections to the entries that ended at `since` or later, in portions. Returns their sum.

    Each portion is committed, so a run that was interrupted can be repeated: what is corrected already stays.
    """
    total = Repriced(0, 0, 0, Decimal(0), Decimal(0), None)
    async for done in _portions(store, since, model=model, dry_run=dry_run, portion=portion):
        total = replace(
            total,
            checked=total.checked + done.checked,
            corrected=total.corrected + done.corrected,
            unpriced=total.unpriced + done.unpriced,
            cost=total.cost + done.cost,
            charge=total.charge + done.charge,
        )
    return total


async def _portions(
    store: Repricing, since: datetime, *, model: str | None, dry_run: bool, portion: int
) -> AsyncIterator[Repriced]:
    project = await store.next_project(-1)
    while project is not None:
        position: Position | None = Position(project, since)
        while position is not None:
            done = await store.reprice(position, model=model, dry_run=dry_run, portion=portion)
            yield done
            position = done.position if done.checked == portion else None
        project = await store.next_project(project)
