"""Which price lists have to be added: for any history of declarations, what is declared is in force afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.prices import NOT_PRICED, PriceList, Rates
from shared.postgres.price_store import EVER, StoredPrice, missing_lists

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 6
# A declaration is the price of each day at which one begins; None is the price without a date.
DECLARATIONS = st.dictionaries(st.none() | st.integers(0, DAYS), st.integers(1, 3), max_size=3)


def steps_of(rate: int) -> tuple[tuple[int, Rates], ...]:
    return ((0, Rates(input_fresh=Decimal(rate), output_text=Decimal(rate))),)


def lists_of(declaration: dict[int | None, int]) -> list[PriceList]:
    days = sorted(declaration, key=lambda day: -1 if day is None else day)
    times = [None if day is None else BEGIN + timedelta(days=day) for day in days]
    return [PriceList("default", steps_of(declaration[day]), at) for day, at in zip(days, times, strict=True)]


def in_force(stored: Sequence[StoredPrice], at: datetime) -> tuple[tuple[int, Rates], ...]:
    before = [price for price in stored if price.valid_from <= at]
    return max(before, key=lambda price: price.valid_from).price_list.steps if before else NOT_PRICED


@given(st.lists(DECLARATIONS, max_size=6))
def test_what_is_declared_is_in_force(declarations: list[dict[int | None, int]]) -> None:
    """One declaration is made a day, at noon."""
    stored: list[StoredPrice] = []
    for day, declaration in enumerate(declarations):
        now = BEGIN + timedelta(days=day, hours=12)
        declared = lists_of(declaration)
        before = list(stored)
        stored += [StoredPrice("m", one, "models.yaml") for one in missing_lists({"default": stored}, declared, now)]
        assert list(missing_lists({"default": stored}, declared, now)) == []
        times = [price.valid_from for price in stored]
        assert len(times) == len(set(times)), "rows are not changed"
        assert all(one.valid_from <= now or one.valid_from - BEGIN <= timedelta(days=DAYS + 1) for one in stored)

        # Now, when each declared price begins, and on all days to come.
        days = [BEGIN + timedelta(days=later, hours=12) for later in range(day, DAYS + 2)]
        begins = [one.valid_from + timedelta(milliseconds=1) for one in declared if one.valid_from is not None]
        for at in (*days, *begins):
            valid = [one for one in declared if one.valid_from is None or one.valid_from <= at]
            if valid:
                assert in_force(stored, at) == valid[-1].steps
            elif declared:
                assert in_force(stored, at) == in_force(before, at), "a price stays until the next one"
            else:
                assert in_force(stored, at) == NOT_PRICED
        if not before and declared and declared[0].valid_from is None:
            assert in_force(stored, EVER) == declared[0].steps
