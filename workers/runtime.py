"""The parts of a worker process: built in order, run, and closed in reverse."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import cast

from celery import Celery
from prometheus_client import CollectorRegistry

from shared.config.models.loader import ModelSpec, Registry
from shared.config.models.reload import ModelsReload, ReloadResult
from shared.config.models.vllm import VllmModel
from shared.domain.job import JobStatus, WorkerReport, WorkerState
from shared.domain.result import CANCELLED
from shared.domain.version import VERSION
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.prefix_store import PrefixStore
from shared.postgres.warm_up_store import WarmUpStore
from shared.recovery.recovery import build_recovery
from shared.recovery.terminator import JobTerminator
from shared.redis.carried_requests import CarriedRequests
from shared.redis.connection import connect_redis
from shared.redis.context_lengths import ContextLengths
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender
from shared.runtime.aio import cancel_and_wait
from shared.runtime.gc_tuning import freeze_gc
from shared.runtime.outages import is_outage
from shared.runtime.periodic import run_periodically
from shared.runtime.reload_signal import ReloadSignal
from shared.runtime.supervisor import Supervisor
from shared.telemetry.logs import redact_errors
from shared.telemetry.loop_lag import measure_loop_lag
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing_setup import open_traces
from workers.engines.base import PrefixEngine
from workers.engines.factory import make_engine
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.attempts.early_start import EarlyStarts
from workers.execution.current_engine import CurrentEngine
from workers.execution.log_writer import LogWriter
from workers.execution.model_context import with_model
from workers.execution.runner import PauseReason, Runner
from workers.execution.slots import SlotPool
from workers.execution.warm_up import WarmUp
from workers.execution.worker_metrics import WorkerMetrics
from workers.settings import WorkerSettings
from workers.supervision.cancel_listener import CancelListener
from workers.supervision.consumer_control import ConsumerControl
from workers.supervision.context_report import ContextReport
from workers.supervision.deferral_limit import DeferralLimit
from workers.supervision.engine_supervisor import EngineSupervisor, start_failure
from workers.supervision.heartbeat import Heartbeat
from workers.supervision.lease_keeper import LeaseKeeper
from workers.supervision.model_reload import ModelReload
from workers.supervision.operator_orders import OperatorOrders
from workers.supervision.process_shutdown import ProcessShutdown
from workers.supervision.redelivery import Redelivery
from workers.supervision.upstream_cancellations import UpstreamCancellations
from workers.supervision.watchdog import Watchdog

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
ABANDON_S = 2.0


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts that are used after the start."""

    jobs: JobStore
    claims: ClaimStore
    terminator: JobTerminator
    log_writer: LogWriter
    runner: Runner
    heartbeat: Heartbeat


class WorkerRuntime:
    """One worker. All coroutines and `end_grace` run on its event loop."""

    # Set before the start: Celery's worker is created after this, and controls its consumer.
    consumer: ConsumerControl

    def __init__(
        self,
        app: Celery,
        settings: WorkerSettings,
        models: Registry,
        model: ModelSpec,
        worker: str,
        metrics: Metrics,
        registry: CollectorRegistry,
        reload_signal: ReloadSignal,
    ) -> None:
        """`registry` is served at `/metrics`; the gauges of the worker and its engine are added to it.

        `models` are all of models.yaml, whose queues the worker sends messages to. At `reload_signal`, they and the
        model's entry are read again.
        """
        self.model_name = model.name
        self.slot_pool = SlotPool(model.slots, yields=model.yields)
        self._app = app
        self._settings = settings
        self._models = models
        self._model = model
        self._worker = worker
        self._metrics = metrics
        self._registry = registry
        self._reload_signal = reload_signal
        self._shutdown = ProcessShutdown(self._release)
        self._supervisor = Supervisor(on_failure=self._shutdown.begin)
        self._stack = AsyncExitStack()
        self._parts: _Parts | None = None
        # None until the engine's modules are imported.
        self._current: CurrentEngine | None = None
        self._lease_keeper = LeaseKeeper(
            settings, worker, starting=self._engine_starts, on_failure=self._shutdown.begin
        )
        self._drained = False

    async def start(self) -> None:
        """Connect to the servers, start the engine and run all parts; returns when the engine can run jobs."""
        settings, model, metrics = self._settings, self._model, self._metrics
        database = connect(settings.database_url)
        self._stack.push_async_callback(database.dispose)
        redis = connect_redis(settings.redis_url)
        self._stack.push_async_callback(redis.aclose)
        traces = open_traces("headrace-worker", self._worker)
        self._stack.push_async_callback(asyncio.to_thread, traces.close)
        adapters = [adapter.name for adapter in model.adapters]
        claims = ClaimStore(database, self._worker, model.name, adapters)
        current = await self._start_engine(claims)

        logs = EventLog(redis)
        hints = HintSender(self._app, redis, self._models.queue_of)
        self._stack.push_async_callback(hints.flush)
        recovery = build_recovery(settings, database, redis, logs, hints.put, metrics, traces, self._engine_of)

        log_writer = LogWriter(logs, claims.list_claims, late_s=settings.heartbeat_s)
        engine_death = asyncio.Event()
        context = AttemptContext(
            worker=self._worker,
            engine=current.engine,
            store=claims,
            logs=logs,
            log_writer=log_writer,
            log_ttl_s=settings.log_ttl_s,
            max_attempts=settings.max_attempts,
            send=hints.put,
            on_engine_death=engine_death.set,
            metrics=metrics,
            traces=traces,
            conversations=ConversationModels(redis),
            engine_of=self._engine_of,
        )
        runner = Runner(
            with_model(context, model),
            self.slot_pool,
            on_room=self.consumer.poll,
            early_starts=EarlyStarts(CarriedRequests(redis), model.name, adapters),
        )
        warm_up = None
        if isinstance(model, VllmModel):
            warm_up = WarmUp(
                model,
                lambda: cast(PrefixEngine, current.engine),
                PrefixStore(database),
                WarmUpStore(database),
                metrics,
            )
        warms_up = warm_up is not None and warm_up.needed
        state = WorkerState.WARMING if warms_up else WorkerState.READY
        tokens = [metrics.generated_tokens.labels(metrics.model_label(name)) for name in model.served_names]
        heartbeat = Heartbeat(
            runner,
            current,
            claims,
            model.name,
            settings,
            state,
            lambda: model_reload.model.summary,
            lambda: sum(counter.value for counter in tokens),
        )
        orders = OperatorOrders(runner, heartbeat, self._stop_drained)
        heartbeat.on_reply = orders.apply
        engine_supervisor = EngineSupervisor(
            current,
            engine_death,
            runner,
            log_writer,
            heartbeat,
            self.consumer,
            metrics,
            model.name,
            back_off_max_s=settings.engine_back_off_max_s,
            warm_up=warm_up,
        )
        model_reload = ModelReload(
            model,
            current,
            runner,
            recovery.store,
            self.consumer,
            metrics,
            lambda: self._shutdown.begin(0),
            warm_up,
            grace_s=settings.removed_grace_s,
        )

        async def use_models(loaded: Registry) -> ReloadResult:
            result = await model_reload.apply(loaded.models)
            self._models.replace(loaded.models, loaded.routes)
            return result

        models_reload = ModelsReload(settings.models, use_models, metrics.reloaded)
        redelivery = Redelivery(runner, recovery.store, redis, hints, metrics, model.name, adapters)
        watchdog = Watchdog(runner, redis, model.name, self._shutdown.begin)
        self._parts = _Parts(JobStore(database), claims, recovery.terminator, log_writer, runner, heartbeat)

        await heartbeat.renew()
        self._stack.push_async_callback(self._end_lease)
        self._stack.push_async_callback(self._lease_keeper.stop)
        self._lease_keeper.beat = heartbeat.beat
        self._registry.register(WorkerMetrics(metrics, model.name, runner, current, watchdog.stalled_s))
        run = self._supervisor.start
        run("log_writer", log_writer.run())
        run("hint_sender", hints.run())
        run("heartbeat", heartbeat.run())
        if warm_up is not None and warms_up:  # before anything supervises the engine or takes jobs
            runner.pause()
            await warm_up.run()
            runner.resume()
            await heartbeat.set_state(WorkerState.READY)
        run("operator_orders", orders.run())
        run("cancel_listener", CancelListener(redis, runner, self._worker, metrics, heartbeat.hurry).run())
        run("redelivery", redelivery.run())
        run("sweeper", recovery.sweeper.run())
        run("engine_supervisor", engine_supervisor.run())
        run("context_report", ContextReport(current, ContextLengths(redis)).run())
        run("upstream_cancellations", UpstreamCancellations(runner, claims, metrics, model.name).run())
        run("deferral_limit", DeferralLimit(runner, recovery.store, recovery.terminator, recovery.fallbacks).run())
        run("watchdog", watchdog.run())
        run("model_reload", model_reload.run())
        run("models_reload", models_reload.run())
        self._reload_signal.connect(models_reload.request)
        self._stack.callback(self._reload_signal.disconnect)
        run("loop_lag", measure_loop_lag(metrics.loop_lag))
        freeze_gc()
        redact_errors()

    def _engine_of(self, name: str) -> str | None:
        """The engine of a model. That of this worker's models is known even if models.yaml has them no more."""
        return self._model.engine if name in self._model.served_names else self._models.engine_of(name)

    async def run(self, job_id: str, priority: int) -> JobStatus | None:
        """Run a job; see `Runner.run`."""
        return await self._started.runner.run(job_id, priority)

    def holding(self) -> bool:
        """Whether the consumer should fetch no messages: see `Runner.holding`. May be called from any thread."""
        return self._parts is not None and self._parts.runner.holding

    async def cancel(self, job_id: str) -> None:
        """Cancel a job, as a client's request would."""
        parts = self._started
        job = await parts.jobs.get(job_id)
        if job is not None and job.status is JobStatus.QUEUED:
            await parts.terminator.end(job, JobStatus.CANCELLED, CANCELLED)
        else:
            await parts.jobs.mark_cancelling(job_id)
            parts.runner.stop(job_id, InterruptReason.CANCELLED)

    async def drain(self) -> None:
        """Finish or requeue all jobs. Does nothing before the start."""
        if self._parts is not None:
            self._parts.runner.pause(PauseReason.SHUTDOWN)
            await self._parts.heartbeat.set_state(WorkerState.DRAINING)
            await self._parts.runner.drain(self._settings.drain_s)

    def end_grace(self) -> None:
        """End the grace period of a drain now."""
        if self._parts is not None:
            self._parts.runner.end_grace()

    async def stop(self) -> None:
        """Write what is left of the logs, then stop and close all parts."""
        if self._parts is not None:
            await self._parts.log_writer.drain(FLUSH_S)
        await self._supervisor.stop()
        await self._stack.aclose()

    @property
    def _started(self) -> _Parts:
        assert self._parts is not None
        return self._parts

    async def abandon(self) -> None:
        """Remove the registration of a worker that is stopped while its engine starts.

        Runs on any event loop: the worker's own one may be blocked.
        """
        database = connect(self._settings.database_url, pool_size=1)
        try:
            async with asyncio.timeout(ABANDON_S):
                try:
                    await ClaimStore(database, self._worker).end_lease()
                finally:
                    await database.dispose()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot end the lease, it will expire: %s", error)

    async def _start_engine(self, claims: ClaimStore) -> CurrentEngine:
        """Register this worker as loading, and start its engine.

        vLLM's imports and its start block the event loop, so the registration is complete before they begin, and the
        lease is renewed by a thread.
        """
        model = self._model
        logger.info("model=%s engine=%s starting", model.name, model.engine)
        began = time.monotonic()
        await self._report_loading(claims)
        self._lease_keeper.start()
        again = run_periodically(
            lambda: self._report_loading(claims), "registration", interval_s=self._settings.heartbeat_s
        )
        registration = asyncio.create_task(again, name="registration")
        try:
            self._current = CurrentEngine(make_engine(model, self._metrics))
            await self._current.start()
        except Exception as error:
            await cancel_and_wait(registration)
            await self._lease_keeper.stop()
            await self._report_loading(claims, lease_s=0, error=start_failure(error))
            raise
        finally:
            await cancel_and_wait(registration)
        self._stack.push_async_callback(self._current.stop)
        logger.info("model=%s engine ready after %.1f s", model.name, time.monotonic() - began)
        return self._current

    def _engine_starts(self) -> bool:
        return self._current is None or self._current.starting

    def _stop_drained(self) -> None:
        """End this process: an operator has drained it."""
        self._drained = True
        self._shutdown.begin(0)

    async def _report_loading(
        self, claims: ClaimStore, *, lease_s: float | None = None, error: str | None = None
    ) -> None:
        """Show operators that the engine is starting; or, with a lease that has expired, why it did not."""
        try:
            await claims.heartbeat(
                self._model.name,
                slots=self._model.slots,
                running=0,
                lease_s=self._settings.lease_s if lease_s is None else lease_s,
                state=WorkerState.LOADING,
                report=WorkerReport(VERSION, self._model.summary, last_error=error),
            )
        except Exception as outage:
            if not is_outage(outage):
                raise
            logger.warning("cannot report the start of the engine: %s", outage)

    async def _release(self) -> None:
        """Give up all jobs and the lease."""
        await self.drain()
        await self._started.log_writer.drain(FLUSH_S)
        await self._end_lease()

    async def _end_lease(self) -> None:
        """End the lease now. If the database is unavailable, the lease expires instead."""
        try:
            await self._started.claims.end_lease(drained=self._drained)
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot end the lease, it will expire: %s", error)
