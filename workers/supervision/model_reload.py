"""Applies a new version of a model's entry in models.yaml to its running worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from shared.config.models.loader import ModelSpec
from shared.config.models.reload import ReloadResult, needs_restart
from shared.config.models.vllm import VllmModel
from shared.postgres.recovery_store import RecoveryStore
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics
from workers.engines.factory import make_engine
from workers.execution.current_engine import CurrentEngine
from workers.execution.model_context import with_model
from workers.execution.runner import Runner
from workers.execution.warm_up import WarmUp
from workers.supervision.consumer_control import ConsumerControl

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0


class ModelReload:
    """The entry of one worker's model.

    Running requests keep the engine that they began with. New requests use a new one, unless that would have to load
    the model again. A worker whose model was removed runs the jobs that are left, and ends.
    """

    def __init__(
        self,
        model: ModelSpec,
        engine: CurrentEngine,
        runner: Runner,
        store: RecoveryStore,
        consumer: ConsumerControl,
        metrics: Metrics,
        on_removed: Callable[[], None],
        warm_up: WarmUp | None = None,
        *,
        grace_s: float,
    ) -> None:
        """`on_removed` is called once no job of a removed model is left; it must stop the process.

        `grace_s`: for this long after the removal, API processes that have not reloaded yet may submit more jobs.
        """
        self.model = model
        self._engine = engine
        self._runner = runner
        self._store = store
        self._consumer = consumer
        self._metrics = metrics
        self._on_removed = on_removed
        self._warm_up = warm_up
        self._grace_s = grace_s
        self._removed_at: float | None = None

    async def apply(self, models: Mapping[str, ModelSpec]) -> ReloadResult:
        """Use the model's entry in `models` from now on.

        Raises:
            HeadraceError: its engine cannot be started; the worker continues with the one that it has.
        """
        old, new = self.model, models.get(self.model.name)
        if new is None or new.adapter is not None:
            if self._removed_at is None:
                self._removed_at = time.monotonic()
                logger.warning("model=%s was removed; this worker ends when no job of it is left", old.name)
            return ReloadResult.APPLIED
        self._removed_at = None
        if new == old:
            logger.info("model=%s reloaded; unchanged", new.name)
            self._metrics.loaded(new.served_names)
            return ReloadResult.APPLIED
        if needs_restart(old, new):
            logger.warning(
                "model=%s changed in a way that needs a new process; until this worker is restarted, it runs the model"
                " as before",
                old.name,
            )
            return ReloadResult.RESTART_NEEDED
        if not new.loads_model:
            await self._engine.replace(make_engine(new, self._metrics))
        context = replace(self._runner.context, engine=self._engine.engine)
        self._runner.use(with_model(context, new, earlier=old))
        self._runner.slot_pool.resize(new.slots)
        self.model = new
        if self._warm_up is not None and isinstance(new, VllmModel):
            self._warm_up.model = new  # from the engine's next start on
        self._consumer.poll()
        self._metrics.loaded(new.served_names)
        logger.info("model=%s reloaded; new requests use the new entry", new.name)
        return ReloadResult.APPLIED

    async def run(self) -> None:
        """Stop engines that are not used any more, and the worker of a removed model, until cancelled."""
        await run_periodically(self._check, "reload check", interval_s=INTERVAL_S)

    async def _check(self) -> None:
        await self._engine.stop_unused(self._runner.uses)
        removed_at = self._removed_at
        if removed_at is None or time.monotonic() - removed_at < self._grace_s:
            return
        # Jobs that run on other workers may be requeued, and these may have ended by then.
        if not self._runner.idle or await self._has_unfinished():
            return
        if self._runner.idle and self._removed_at == removed_at:  # no message and no reload has arrived meanwhile
            logger.warning("model=%s was removed and has no jobs left; this worker ends", self.model.name)
            self._on_removed()
            self._removed_at = None

    async def _has_unfinished(self) -> bool:
        return any([await self._store.has_unfinished(name) for name in self.model.served_names])
