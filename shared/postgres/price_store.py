"""SQL of the table `prices`: rows are added to it, and never changed or deleted.

The rows of a model and a service tier with the same `valid_from` are one price list, by the number of input tokens. A
list with the latest `valid_from` is in force.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from shared.domain.prices import NOT_PRICED, RATES, PriceList, Rates, Tier
from shared.postgres.engine import transaction
from shared.postgres.store import Store
from shared.postgres.usage_tables import PriceRow

# Identifies the advisory lock of the process that adds prices.
_LOCK = 0x6872_0002
# The source of the prices that operators have set by the API. The declared ones neither know nor replace them.
ADMIN = "admin"
# `valid_from` of prices without a date before which a model had no price.
EVER = datetime(1970, 1, 1, tzinfo=UTC)
# A list that corrects another one comes into force so much later. Lists within `_SAME_TIME` are for the same time.
_NEXT = timedelta(microseconds=1)
_SAME_TIME = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class DeclaredPrices:
    """The price lists of a model, in the order of their times, and where they are from."""

    source: str
    lists: Sequence[PriceList]


@dataclass(frozen=True, slots=True)
class StoredPrice:
    """A price list in the table."""

    model: str
    price_list: PriceList
    source: str

    @property
    def valid_from(self) -> datetime:
        assert self.price_list.valid_from is not None
        return self.price_list.valid_from


class PriceStore(Store):
    """Adds the prices that are declared, and reads those in force."""

    async def sync(self, declared: Mapping[str, DeclaredPrices]) -> list[StoredPrice]:
        """Add rows, so that the models cost what is declared. Returns the price lists that were added.

        A list with a date is in force from that date; if there is another one for that time, it is corrected. A list
        without a date that differs from the one in force is valid from now on; the first one of a tier from ever. A
        tier that was declared and is not any more has no price from now on. What is declared replaces future prices.

        Any number of processes may do this at the same time. Prices that operators have set (`ADMIN`) stay in force
        until a declared price changes.
        """
        async with transaction(self._engine) as connection:
            # Taken after the lock: what another process has added meanwhile is in the past.
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
            stored = await _stored(connection, list(declared))
            added = [
                StoredPrice(model, price_list, prices.source)
                for model, prices in declared.items()
                for price_list in missing_lists(stored.get(model, {}), prices.lists, now)
            ]
            if added:
                await connection.execute(insert(PriceRow), [row for price in added for row in _rows(price)])
        return added

    async def prices(self, *, model: str | None = None, history: bool = False) -> list[StoredPrice]:
        """The price lists in force, or all of them, by model, tier and time."""
        rows = select(PriceRow)
        if model is not None:
            rows = rows.where(PriceRow.model == model)
        if not history:
            rows = rows.where(is_in_force())
        async with self._engine.connect() as connection:
            return await _price_lists(connection, rows)

    async def in_force(self, models: Collection[str]) -> list[StoredPrice]:
        """The price lists of these models that are in force now."""
        async with self._engine.connect() as connection:
            return await prices_in_force(connection, models)


def is_in_force() -> ColumnElement[bool]:
    """Whether a row of `prices` is of the list that is in force now for its model and tier."""
    other = aliased(PriceRow)
    latest = select(func.max(other.valid_from)).where(
        other.model == PriceRow.model, other.tier == PriceRow.tier, other.valid_from <= func.now()
    )
    return PriceRow.valid_from == latest.scalar_subquery()


async def prices_in_force(connection: AsyncConnection, models: Collection[str] | None = None) -> list[StoredPrice]:
    """The price lists that are in force now, of these models or of all."""
    rows = select(PriceRow).where(is_in_force())
    if models is not None:
        rows = rows.where(PriceRow.model.in_(models))
    return await _price_lists(connection, rows)


async def _stored(connection: AsyncConnection, models: Sequence[str]) -> dict[str, dict[Tier, list[StoredPrice]]]:
    """The price lists of models, by model and tier, in the order of their times."""
    found: dict[str, dict[Tier, list[StoredPrice]]] = {}
    for price in await _price_lists(connection, select(PriceRow).where(PriceRow.model.in_(models))):
        found.setdefault(price.model, {}).setdefault(price.price_list.tier, []).append(price)
    return found


async def _price_lists(connection: AsyncConnection, rows: Any) -> list[StoredPrice]:
    key = (PriceRow.model, PriceRow.tier, PriceRow.valid_from)
    result = (await connection.execute(rows.order_by(*key, PriceRow.from_input_tokens))).mappings().all()
    prices = []
    for (model, tier, valid_from), same in groupby(result, lambda row: (row["model"], row["tier"], row["valid_from"])):
        steps = list(same)
        rates = tuple((row["from_input_tokens"], Rates(**{name: row[name] for name in RATES})) for row in steps)
        prices.append(StoredPrice(model, PriceList(tier, rates, valid_from), steps[0]["source"]))
    return prices


def missing_lists(
    stored: Mapping[Tier, Sequence[StoredPrice]], declared: Sequence[PriceList], now: datetime
) -> Iterator[PriceList]:
    """The price lists of a model that have to be added."""
    lists: dict[Tier, list[PriceList]] = {tier: [] for tier in stored}
    for price_list in declared:
        lists.setdefault(price_list.tier, []).append(price_list)
    for tier, of_tier in lists.items():
        yield from _missing_of_tier(tier, stored.get(tier, ()), of_tier, now)


def _missing_of_tier(
    tier: Tier, stored: Sequence[StoredPrice], declared: Sequence[PriceList], now: datetime
) -> Iterator[PriceList]:
    taken = {price.valid_from for price in stored}
    known = [price.price_list for price in stored if price.source != ADMIN]
    declared = declared or [PriceList(tier, NOT_PRICED)]

    def added(price_list: PriceList, at: datetime) -> PriceList:
        while at in taken:
            at += _NEXT
        taken.add(at)
        known.append(PriceList(tier, price_list.steps, at))
        return known[-1]

    if not known and declared[0].valid_from is None and declared[0].steps != NOT_PRICED:
        yield added(declared[0], EVER)
    # When declared prices begin, now, and when future prices begin, which may not be declared any more.
    dates = {one.valid_from for one in declared if one.valid_from is not None}
    dates |= {one.valid_from for one in known if one.valid_from is not None and one.valid_from > now}
    for at in sorted({now, *dates}):
        wanted = [one for one in declared if one.valid_from is None or one.valid_from <= at]
        # A price that is in force until the first declared one stays.
        if wanted and _steps_at(known, at + _SAME_TIME) != wanted[-1].steps:
            yield added(wanted[-1], at)


def _steps_at(known: Sequence[PriceList], at: datetime) -> tuple[tuple[int, Rates], ...]:
    """The steps of the list that is in force at a time."""
    before = [one for one in known if one.valid_from is not None and one.valid_from <= at]
    return max(before, key=lambda one: one.valid_from or EVER).steps if before else NOT_PRICED


def _rows(price: StoredPrice) -> Iterator[dict[str, Any]]:
    for start, rates in price.price_list.steps:
        yield {
            "model": price.model,
            "tier": price.price_list.tier,
            "from_input_tokens": start,
            "valid_from": price.valid_from,
            "source": price.source,
            **{name: getattr(rates, name) for name in RATES},
        }
