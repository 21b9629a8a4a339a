"""`python -m api.usage prices|reprice`: the prices of models, and the ledger's entries priced again."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy.exc import SQLAlchemyError

from api.settings import DatabaseCommandSettings
from api.usage.reprice import reprice
from shared.config.settings import settings_or_exit
from shared.domain.prices import RATES
from shared.postgres.engine import connect
from shared.postgres.price_store import PriceStore, StoredPrice
from shared.postgres.repricing import Repricing

# The columns of `prices`: the rates, under the names that models.yaml has for them.
_HEADINGS = (
    "model", "tier", "from", "input", "cache read", "write 5m", "write 1h", "output", "reasoning", "valid from",
    "source",
)  # fmt: skip


def moment(text: str) -> datetime:
    """A date, or a time, in UTC if it has no zone.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z, got {text!r}"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    engine = connect(settings_or_exit(DatabaseCommandSettings).database_url, pool_size=1)
    try:
        if arguments.action == "prices":
            prices = await PriceStore(engine).prices(model=arguments.model, history=arguments.history)
            print("\n".join(_table(prices)))
            return 0
        done = await reprice(Repricing(engine), arguments.since, model=arguments.model, dry_run=arguments.dry_run)
    finally:
        await engine.dispose()
    would = "would correct" if arguments.dry_run else "corrected"
    print(
        f"checked {done.checked} entries, {would} {done.corrected}: cost {_signed(done.cost)},"
        f" charge {_signed(done.charge)} dollars"
    )
    if done.unpriced:
        print(f"{done.unpriced} entries have no price, or a part without one; set it, and run this again")
    return 0


def _table(prices: Sequence[StoredPrice]) -> list[str]:
    """The lines of a table of prices, in dollars per million tokens."""
    rows: list[Sequence[str]] = [_HEADINGS]
    for price in prices:
        for start, rates in price.price_list.steps:
            amounts = [_plain(getattr(rates, name)) for name in RATES]
            valid_from = price.valid_from.astimezone(UTC).isoformat(timespec="seconds")
            rows.append((price.model, price.price_list.tier, str(start), *amounts, valid_from, price.source))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(amount: Decimal | None) -> str:
    """An amount without trailing zeros or an exponent; `-` if there is none."""
    return "-" if amount is None else f"{amount.normalize():f}"


def _signed(amount: Decimal) -> str:
    return f"{amount.normalize():+f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.usage", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    prices = actions.add_parser("prices", help="list the prices in force, in dollars per million tokens")
    prices.add_argument("--history", action="store_true", help="also earlier and later prices")
    again = actions.add_parser("reprice", help="append corrections to entries of the ledger, with today's prices")
    again.add_argument(
        "--since", required=True, type=moment, metavar="DATE", help="the entries that ended then or later"
    )
    again.add_argument("--dry-run", action="store_true", help="show the differences, and append nothing")
    for action in (prices, again):
        action.add_argument("--model", metavar="NAME", help="only this model")
    parsed = parser.parse_args(arguments)
    try:
        return asyncio.run(run(parsed))
    except (SQLAlchemyError, OSError) as error:
        print(f"DATABASE_URL: the database cannot be used: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
