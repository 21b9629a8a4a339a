"""Amounts of money in responses. They are exact in the database; JSON has them as numbers of dollars."""

from __future__ import annotations

from decimal import Decimal

COST_HEADER = "x-headrace-cost"


def dollars(amount: Decimal | None) -> float | None:
    """An amount as a number for JSON, exact to 15 digits."""
    return None if amount is None else float(amount)


def decimal_text(amount: Decimal | None) -> str:
    """An amount as an exact decimal, without an exponent and zeros at its end; empty if it is not known."""
    if amount is None:
        return ""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
