"""Reads rubrics.yaml again while the process runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from api.evals.rubrics import RubricBook, RubricsError, load_rubrics
from shared.config.models.loader import Registry

logger = logging.getLogger(__name__)


class RubricsReload:
    """Reads the rubrics again on request. An invalid file changes nothing, and the log says why."""

    def __init__(self, path: Path | None, book: RubricBook, registry: Registry) -> None:
        self._path = path
        self._book = book
        self._registry = registry
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Read the file soon. To be called on the event loop, once the models are up to date."""
        self._requested.set()

    async def run(self) -> None:
        """Reload at each request until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await self.reload()

    async def reload(self) -> bool:
        """Read the file now. False: the rubrics stay as they are."""
        try:
            rubrics = await asyncio.to_thread(load_rubrics, self._path, self._registry.models)
        except RubricsError as error:
            logger.error(
                "rubrics.yaml was not reloaded; the rubrics stay as they are: %s", "; ".join(str(error).split("\n"))
            )
            return False
        if rubrics != self._book.rubrics:
            self._book.replace(rubrics)
            logger.info("rubrics.yaml reloaded; rubrics: %s", ", ".join(rubrics) or "none")
        return True
