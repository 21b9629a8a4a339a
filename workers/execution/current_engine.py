"""The engine of a worker, which may be replaced while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from workers.engines.base import Engine, EngineStats


class CurrentEngine:
    """The engine that new requests use, and earlier ones whose requests still run."""

    def __init__(self, engine: Engine) -> None:
        """`engine` has not been started yet."""
        self.engine = engine
        self._earlier: list[Engine] = []
        self._started = False
        self._starting = False
        # The supervisor of a dead engine must not stop or start one that is being replaced.
        self._lock = asyncio.Lock()

    @property
    def dead(self) -> bool:
        """Whether the engine for new requests has died."""
        return self.engine.dead

    @property
    def starting(self) -> bool:
        """Whether an engine is being started, which may block the event loop for minutes. Readable from any thread."""
        return self._starting

    def stats(self) -> EngineStats:
        """The requests in all engines, and the cache of the current one."""
        stats = self.engine.stats()
        earlier = [engine.stats() for engine in self._earlier]
        return replace(
            stats,
            requests=stats.requests + sum(one.requests for one in earlier),
            waiting=stats.waiting + sum(one.waiting for one in earlier),
        )

    async def start(self) -> None:
        """Start the engine, unless it has been replaced by a started one."""
        async with self._lock:
            if not self._started:
                await self._start(self.engine)
                self._started = True

    async def stop(self) -> None:
        """Stop all engines. The current one can be started again."""
        async with self._lock:
            self._started = False
            await self.engine.stop()
            while self._earlier:
                await self._earlier.pop().stop()

    async def replace(self, engine: Engine) -> None:
        """Start another engine for new requests; nothing changes if that fails."""
        async with self._lock:
            await self._start(engine)
            engine.take_over(self.engine)
            self._earlier.append(self.engine)
            self.engine, self._started = engine, True

    async def _start(self, engine: Engine) -> None:
        self._starting = True
        try:
            await engine.start()
        finally:
            self._starting = False

    async def stop_unused(self, used: Callable[[Engine], bool]) -> None:
        """Stop the earlier engines that have no requests any more."""
        if not self._earlier:
            return
        async with self._lock:
            for engine in [engine for engine in self._earlier if not used(engine)]:
                self._earlier.remove(engine)
                await engine.stop()
