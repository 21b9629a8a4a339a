"""SQL that prices requests which have not run."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Integer, Text, and_, bindparam, case, func, literal_column, select, true

from shared.domain.ledger import DEFAULT_TIER
from shared.postgres.ledger import amount, price_at
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store

# The kinds of tokens that an input token can count as, with the most expensive ones: it is in a cache only if it was
# written there.
_INPUT = ("input_fresh", "input_cache_write_5m", "input_cache_write_1h")
_OUTPUT = ("output_text", "output_reasoning")


@dataclass(frozen=True, slots=True)
class MostCost:
    """What the input and the output of a request cost at most, in dollars. None: there is no price."""

    input: Decimal | None
    output: Decimal | None


def _most(names: tuple[str, ...], count: Any, price: Any) -> ColumnElement[Any]:
    """The highest amount of tokens that may be of any of these kinds; NULL if the first one has no price."""
    amounts = [amount({name: count}, price) for name in names]
    return case((amounts[0].is_not(None), func.greatest(*amounts)))


def _statement() -> Any:
    counts = {name: bindparam(name, type_=Integer) for name in ("input_tokens", "output_tokens")}
    tier: ColumnElement[str] = literal_column(f"'{DEFAULT_TIER}'::text", Text)
    price = price_at(bindparam("model", type_=Text), tier, func.now(), counts["input_tokens"])
    one_row = select(literal_column("1").label("one")).subquery("one_row")
    return (
        select(
            _most(_INPUT, counts["input_tokens"], price.c).label("input"),
            _most(_OUTPUT, counts["output_tokens"], price.c).label("output"),
        )
        .select_from(one_row)
        .outerjoin(price, and_(true()))
    )


_MOST = Prepared(_statement())


class CostStore(Store):
    """Prices requests."""

    async def most(self, model: str, input_tokens: int, output_tokens: int) -> MostCost:
        """What so many tokens cost at most, with the price of the default service tier that is in force now."""
        values = {"model": model, "input_tokens": input_tokens, "output_tokens": output_tokens}
        (row,) = await _MOST.run(self._engine, values)
        return MostCost(row.input, row.output)
