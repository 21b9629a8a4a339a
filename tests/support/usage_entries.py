"""Entries of the ledger, written as the statement that ends a job writes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.postgres.usage_tables import TOKEN_COUNTS, UsageEventRow

NOON = datetime(2025, 11, 20, 12, tzinfo=UTC)
_numbers = count()


def entry(**columns: Any) -> dict[str, Any]:
    """An entry with 100 input and 10 output tokens that cost a dollar, as far as the columns do not say otherwise."""
    counts = {"input_fresh": 100, "output_text": 10} | {
        name: columns.pop(name) for name in TOKEN_COUNTS if name in columns
    }
    return {
        "job_id": f"job_{next(_numbers):04d}", "attempt": 1, "correction": 0, "ended_at": NOON, "kind": "generate",
        "project_id": 1, "key_id": 2, "end_user": None, "requested_model": "m", "model": "m", "engine": None,
        "service_tier": "default", "batch_id": None, "outcome": "completed", "final": True, "source": "engine",
        "cost": Decimal(1), "charge": Decimal(1), "saved": None,
        **dict.fromkeys(TOKEN_COUNTS, 0), **counts, "total_tokens": sum(counts.values()), **columns,
    }  # fmt: skip


def correction(of: dict[str, Any], number: int = 1, **amounts: Any) -> dict[str, Any]:
    """A correction of an entry: it has no tokens."""
    none = dict.fromkeys((*TOKEN_COUNTS, "total_tokens"), 0)
    return {**of, **none, "correction": number, "cost": None, "charge": None, "saved": None, **amounts}


async def write(target: AsyncEngine | AsyncConnection, entries: Sequence[dict[str, Any]]) -> None:
    """Write entries in one transaction: one of their own, or the one of a connection."""
    statement = insert(UsageEventRow)
    if isinstance(target, AsyncConnection):
        await target.execute(statement, list(entries))
        return
    async with target.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.execute(statement, list(entries))
