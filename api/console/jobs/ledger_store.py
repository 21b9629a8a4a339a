"""SQL of what a job has cost: its entries in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import func, select

from shared.postgres.store import Store
from shared.postgres.usage_tables import UsageEventRow as Event


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The entry of an attempt, with its corrections. `cached_tokens` and `written_tokens` are input tokens too.

    `cost` and `charge` are None if a price is missing.
    """

    attempt: int
    model: str
    service_tier: str
    outcome: str
    source: str
    is_corrected: bool
    input_tokens: int
    cached_tokens: int
    written_tokens: int
    output_tokens: int
    cost: Decimal | None
    charge: Decimal | None
    saved: Decimal | None


_WRITTEN = func.sum(Event.input_cache_write_5m + Event.input_cache_write_1h)
_STATEMENT = (
    select(
        Event.attempt,
        func.min(Event.model).label("model"),
        func.min(Event.service_tier).label("service_tier"),
        func.min(Event.outcome).label("outcome"),
        func.min(Event.source).label("source"),
        (func.max(Event.correction) > 0).label("is_corrected"),
        (func.sum(Event.input_fresh + Event.input_cache_read) + _WRITTEN).label("input_tokens"),
        func.sum(Event.input_cache_read).label("cached_tokens"),
        _WRITTEN.label("written_tokens"),
        func.sum(Event.output_text + Event.output_reasoning).label("output_tokens"),
        func.sum(Event.cost).label("cost"),
        func.sum(Event.charge).label("charge"),
        func.sum(Event.saved).label("saved"),
    )
    .group_by(Event.attempt)
    .order_by(Event.attempt)
)


class LedgerEntriesStore(Store):
    """Reads the ledger of single jobs."""

    async def entries(self, job_id: str) -> Sequence[LedgerEntry]:
        """The entries of a job that has ended, by attempt. They remain if the job is deleted."""
        return await self._all(_STATEMENT.where(Event.job_id == job_id), lambda row: LedgerEntry(**row._asdict()))
