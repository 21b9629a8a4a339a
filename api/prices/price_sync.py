"""Writes the prices of the models of models.yaml to the database: when the process starts, and when it is reloaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from api.prices.default_prices import NoDefaultPrice, default_prices
from shared.config.models.loader import ModelSpec, Registry
from shared.config.models.prices import price_lists
from shared.postgres.price_store import DeclaredPrices, PriceStore
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

# Between two attempts while the database is unavailable.
RETRY_S = 5.0


def declared_prices(models: Mapping[str, ModelSpec]) -> tuple[dict[str, DeclaredPrices], dict[str, str]]:
    """The prices of models, by their names: of the file, or else the published ones of a provider's model.

    A model without a price has no lists. The second value is why no price of a provider's model is known.
    """
    found, problems = {}, {}
    for name, spec in models.items():
        if spec.price is not None:
            found[name] = DeclaredPrices("models.yaml", price_lists(spec.price))
            continue
        try:
            found[name] = DeclaredPrices("genai-prices", default_prices(spec))
        except NoDefaultPrice as problem:
            found[name] = DeclaredPrices("genai-prices", [])
            problems[name] = str(problem)
    return found, problems


class PriceSync:
    """Brings the table of prices up to date with the models of this process.

    It runs only if they may have changed. Processes that have read different versions of the file would otherwise take
    turns in changing the prices.
    """

    def __init__(self, registry: Registry, store: PriceStore) -> None:
        self._registry = registry
        self._store = store
        self._is_due = True
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Sync soon: the models have changed."""
        self._is_due = True
        self._requested.set()

    async def run(self) -> None:
        """Sync at the start and at each request, until cancelled."""
        await run_periodically(
            self._step, "sync of prices", interval_s=RETRY_S, immediately=True, hurry=self._requested
        )

    async def _step(self) -> None:
        if self._is_due:
            models = self._registry.models
            await self.sync()
            self._is_due = self._registry.models is not models

    async def sync(self) -> None:
        """Sync once."""
        declared, problems = await asyncio.to_thread(declared_prices, self._registry.models)
        for name, problem in problems.items():
            logger.warning("model=%s has no price: %s; set `price` in models.yaml", name, problem)
        for price in await self._store.sync(declared):
            logger.info(
                "model=%s tier=%s has a new price from %s, valid from %s",
                price.model, price.price_list.tier, price.source, price.valid_from.isoformat(),
            )  # fmt: skip
