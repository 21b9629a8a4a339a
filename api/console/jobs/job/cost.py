"""What the page of a job shows of its entries in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from api.console.filters import money
from api.console.jobs.ledger_store import LedgerEntry


@dataclass(frozen=True, slots=True)
class Costs:
    """The entries, by attempt. Only operators see what they cost the installation; all see what was charged."""

    summary: str
    lines: Sequence[LedgerEntry]
    is_operator: bool


def costs_of(entries: Sequence[LedgerEntry], *, is_operator: bool) -> Costs:
    """The view of a job's entries."""
    charge = _total([entry.charge for entry in entries])
    parts = [f"{money(charge)} charged" if is_operator else money(charge)]
    if is_operator:
        parts.insert(0, f"{money(_total([entry.cost for entry in entries]))} spent")
    if saved := sum(entry.saved or 0 for entry in entries):
        parts.append(f"{money(saved)} saved by the answer of another job")
    if charge is None:
        parts.append("a price is missing")
    return Costs(" · ".join(parts) if entries else "", entries, is_operator)


def _total(amounts: Sequence[Decimal | None]) -> Decimal | None:
    """The sum; None if one of the amounts is not known."""
    return None if None in amounts else sum((amount for amount in amounts if amount is not None), Decimal(0))
