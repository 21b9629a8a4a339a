"""Reads models.yaml again while the process runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.config.models.loader import ModelSpec, Registry, load_registry
from shared.domain.errors import HeadraceError

logger = logging.getLogger(__name__)


class ReloadResult(StrEnum):
    """The result of reading models.yaml again."""

    # The process serves what the file declares.
    APPLIED = "applied"
    # The file is invalid, or names a variable that is not set. Nothing has changed.
    FAILED = "failed"
    # The process has to be restarted for the change of its model.
    RESTART_NEEDED = "restart_needed"


def needs_restart(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether the worker of an entry has to be restarted to run a later version of it, or other adapters of it."""
    return (
        new.engine != old.engine
        or (old.loads_model and new.fingerprint != old.fingerprint)
        or _adapters(old) != _adapters(new)
    )


def _adapters(model: ModelSpec) -> dict[str, str]:
    return {adapter.name: adapter.fingerprint for adapter in model.adapters}


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """The names of the models that differ between two versions of models.yaml."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @classmethod
    def between(cls, old: Mapping[str, ModelSpec], new: Mapping[str, ModelSpec]) -> ModelChanges:
        return cls(
            tuple(name for name in new if name not in old),
            tuple(name for name, model in new.items() if name in old and old[name] != model),
            tuple(name for name in old if name not in new),
        )

    def __str__(self) -> str:
        kinds = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names) or "no changes"


class ModelsReload:
    """Reads models.yaml again on request. An invalid file changes nothing, and the log says why."""

    def __init__(
        self,
        path: Path,
        apply: Callable[[Registry], Awaitable[ReloadResult]],
        on_result: Callable[[ReloadResult], None],
    ) -> None:
        """`apply` puts the models and routes into effect, all or nothing; a `HeadraceError` of it is a failure."""
        self._path = path
        self._apply = apply
        self._on_result = on_result
        self._requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def request(self) -> None:
        """Read the file soon. Requests that arrive before it is read count as one. Callable from any thread."""
        self._loop.call_soon_threadsafe(self._requested.set)

    async def run(self) -> None:
        """Reload at each request until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await self.reload()

    async def reload(self) -> ReloadResult:
        """Read the file now."""
        try:
            registry = await asyncio.to_thread(load_registry, self._path)
            result = await self._apply(registry)
        except HeadraceError as error:
            result = ReloadResult.FAILED
            logger.error(
                "models.yaml was not reloaded; the models stay as they are: %s", "; ".join(str(error).split("\n"))
            )
        except Exception:
            result = ReloadResult.FAILED
            logger.exception("models.yaml was not reloaded; the models stay as they are")
        self._on_result(result)
        return result
