"""Amounts of money in responses. They are exact in the database; JSON has them as numbers of dollars."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

COST_HEADER = "x-headrace-cost"


def total_of(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """The sum of amounts; None if one of them is not known."""
    total = Decimal(0)
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total


def cost_header(amount: Decimal | None) -> dict[str, str]:
    """The response header with an amount, if it is known."""
    return {} if amount is None else {COST_HEADER: decimal_text(amount)}


def dollars(amount: Decimal | None) -> float | None:
    """An amount as a number for JSON, exact to 15 digits."""
    return None if amount is None else float(amount)


def decimal_text(amount: Decimal | None) -> str:
    """An amount as an exact decimal, without an exponent and zeros at its end; empty if it is not known."""
    if amount is None:
        return ""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
