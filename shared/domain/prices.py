"""What the tokens of a model cost: the lists of rates that the table `prices` has.

Amounts are US dollars per million tokens, as Decimal. None: not priced, which is not free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Literal, get_args

# The service tiers that can have a price of their own. `default` is what is not another one.
Tier = Literal["default", "flex", "priority", "batch"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of the kinds of tokens that the ledger counts; the fields are columns of `prices`."""

    input_fresh: Decimal | None = None
    input_cache_read: Decimal | None = None
    input_cache_write_5m: Decimal | None = None
    input_cache_write_1h: Decimal | None = None
    output_text: Decimal | None = None
    output_reasoning: Decimal | None = None


RATES = tuple(field.name for field in fields(Rates))
# The steps of a model that has no price any more.
NOT_PRICED = ((0, Rates()),)


@dataclass(frozen=True, slots=True)
class PriceList:
    """The rates of a model in a service tier from a time on.

    `steps`: rates by the least number of input tokens for which they hold, in ascending order; the first holds from 0.
    `valid_from`: an aware time; None if the price holds since the model has been served, or from when it is first seen.
    """

    tier: Tier
    steps: tuple[tuple[int, Rates], ...]
    valid_from: datetime | None = None


def without_repetitions(lists: Iterable[PriceList]) -> list[PriceList]:
    """The lists of one tier, in the order of their times, without those that only repeat the one before."""
    found: list[PriceList] = []
    for price_list in lists:
        if not found or found[-1].steps != price_list.steps:
            found.append(price_list)
    return found
