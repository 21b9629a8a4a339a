"""SQL that lists prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, select

from shared.postgres.price_store import is_in_force
from shared.postgres.store import Store
from shared.postgres.usage_tables import TOKEN_COUNTS, PriceRow


@dataclass(frozen=True, slots=True)
class Price:
    """What the tokens of a model cost from a time on.

    `rates`: dollars per million tokens, by `TOKEN_COUNTS`; None: not priced. `in_force`: requests that end now have
    this price.
    """

    id: int
    model: str
    tier: str
    from_input_tokens: int
    valid_from: datetime
    rates: Mapping[str, Decimal | None]
    source: str
    in_force: bool


class PriceListStore(Store):
    """Lists the prices."""

    async def page(
        self, *, limit: int, after: int | None = None, model: str | None = None, history: bool = False
    ) -> list[Price]:
        """Return one page of prices, newest first: those in force, and with `history` all others too."""
        in_force = is_in_force()
        statement = select(*PriceRow.__table__.columns, in_force.label("in_force")).order_by(PriceRow.id.desc())
        if not history:
            statement = statement.where(in_force)
        if model is not None:
            statement = statement.where(PriceRow.model == model)
        if after is not None:
            statement = statement.where(PriceRow.id < after)
        return await self._all(statement.limit(limit), _price)


def _price(row: Row[Any]) -> Price:
    return Price(
        id=row.id,
        model=row.model,
        tier=row.tier,
        from_input_tokens=row.from_input_tokens,
        valid_from=row.valid_from,
        rates={name: getattr(row, name) for name in TOKEN_COUNTS},
        source=row.source,
        in_force=row.in_force,
    )
