"""One event-loop thread per worker: everything that a worker is made of starts, lives and ends on it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import uvloop
from celery import Celery
from celery.worker import state as celery_state
from prometheus_client import CollectorRegistry

from shared.config.models.loader import ModelSpec
from shared.domain.job import JobStatus, WorkerState
from shared.domain.result import CANCELLED
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.connection import connect_redis
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender
from shared.runtime.aio import cancel_and_wait
from shared.runtime.gc_tuning import freeze_gc
from shared.runtime.outages import is_outage
from shared.telemetry.logs import requests_come
from shared.telemetry.tracing_setup import open_traces
from workers.engines.factory import make_engine
from workers.execution.attempt import StopReason
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.execution.worker_metrics import WorkerMetrics
from workers.settings import WorkerSettings
from workers.supervision.cancel_listener import CancelListener
from workers.supervision.consumer_control import ConsumerControl
from workers.supervision.engine_supervisor import EngineSupervisor
from workers.supervision.heartbeat import Heartbeat
from workers.supervision.redelivery import Redelivery
from workers.supervision.watchdog import Watchdog

logger = logging.getLogger(__name__)
T = TypeVar("T")
EXIT_STUCK = 75  # EX_TEMPFAIL of sysexits.h
FORCE_AFTER_S = 10.0
# How long a thread that computes may keep the others waiting: Celery's threads and this loop take turns several times
# for each job, and at Python's 5 ms a busy loop delays its start by a tenth of a second.
SWITCH_S = 0.0005


class Lifecycle:
    """Starts and stops a worker's parts in order, and is the way in from Celery's threads."""

    intake: ConsumerControl
    _runner: Runner
    _log_writer: LogWriter
    _lease: Heartbeat
    _keeper: EngineSupervisor

    def __init__(
        self, app: Celery, settings: WorkerSettings, model: ModelSpec, worker: str, registry: CollectorRegistry
    ) -> None:
        """`registry`: what this process shows at `/metrics`; the worker's and its engine's load join it."""
        self._app = app
        self._settings = settings
        self._model = model
        self._worker = worker
        self.slot_pool = SlotPool(model.slots, yields=model.yields)
        self._registry = registry
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._of_thread = threading.local()

    # From Celery's threads

    def start(self) -> None:
        """Start everything; returns when the engine can run jobs.

        SIGTERM meanwhile ends the process at once: nothing has been taken yet, an engine that loads hears
        nobody, and its processes are tied to this one.
        """
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()
        starting = self._submit(self._start())
        while not starting.done():
            if celery_state.should_stop is not None or celery_state.should_terminate is not None:
                logger.info("model=%s stopped while its engine was starting", self._model.name)
                os._exit(0)
            time.sleep(0.1)
        starting.result()

    def begin(self, job_id: str) -> Future[JobStatus | None]:
        """Run a job; its end is the future's."""
        return self._submit(self._runner.run(job_id))

    def wait_for(self, job: Future[JobStatus | None]) -> None:
        """Say which job it is that the task of this thread waits for."""
        self._of_thread.job = job

    def end(self) -> JobStatus | None:
        """Wait for the end of this thread's job."""
        job: Future[JobStatus | None] = self._of_thread.job
        return job.result()

    def cancel(self, job_id: str) -> None:
        """Cancel a job, as its owner could."""
        self._submit(self._cancel(job_id))

    def drain(self) -> None:
        """Finish or hand back all jobs."""
        if hasattr(self, "_runner"):
            self._submit(self._drain()).result()

    def hurry(self) -> None:
        """End the grace of a drain: hand everything back now."""
        if hasattr(self, "_runner"):
            self._loop.call_soon_threadsafe(self._runner.hurry)

    def stop(self) -> None:
        """Stop everything and end the loop."""
        if self._thread.is_alive():
            self._submit(self._stop()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    # On the loop

    async def _start(self) -> None:
        settings, model = self._settings, self._model
        database = connect(settings.database_url)
        self._stack.push_async_callback(database.dispose)
        redis = connect_redis(settings.redis_url)
        self._stack.push_async_callback(redis.aclose)

        traces = open_traces("headrace-worker", self._worker)
        self._stack.push_async_callback(asyncio.to_thread, traces.close)

        logger.info("model=%s engine=%s starting", model.name, model.engine)
        began = time.monotonic()
        engine = make_engine(model)
        await engine.start()
        self._stack.push_async_callback(engine.stop)
        logger.info("model=%s engine ready after %.1f s", model.name, time.monotonic() - began)

        self._jobs, logs = JobStore(database), EventLog(redis)
        store = self._store = ClaimStore(database, self._worker)
        recovery_store = RecoveryStore(database)
        hints = HintSender(self._app, redis)
        self._stack.push_async_callback(hints.flush)
        self._log_writer = LogWriter(logs, store.list_claims, late_s=settings.heartbeat_s)
        self._runner = Runner(
            worker=self._worker,
            engine=engine,
            slot_pool=self.slot_pool,
            store=store,
            logs=logs,
            log_writer=self._log_writer,
            log_ttl_s=settings.log_ttl_s,
            max_attempts=settings.max_attempts,
            send=hints.put,
            on_engine_death=lambda: self._keeper.look(),
            traces=traces,
        )
        lease = self._lease = Heartbeat(self._runner, engine, store, model.name, settings)
        self._keeper = EngineSupervisor(
            engine,
            self._runner,
            self._log_writer,
            lease,
            self.intake,
            model.name,
            back_off_max_s=settings.engine_back_off_max_s,
        )
        await lease.renew()
        self._stack.push_async_callback(self._forget)
        self._terminator = JobTerminator(recovery_store, logs, settings.log_ttl_s, traces)
        sweeper = Sweeper(
            recovery_store,
            self._terminator,
            hints.put,
            interval_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
        )
        watchdog = Watchdog(self._runner, redis, model.name, self._end_worker)
        self._registry.register(WorkerMetrics(model.name, self._runner, engine, watchdog.stalled_s))
        for name, part in {
            "log_writer": self._log_writer.run(),
            "hints": hints.run(),
            "lease": lease.run(),
            "control": CancelListener(redis, self._runner, self._worker).run(),
            "healer": Redelivery(self._runner, recovery_store, redis, hints, model.name).run(),
            "sweeper": sweeper.run(),
            "keeper": self._keeper.run(),
            "watchdog": watchdog.run(),
        }.items():
            task = asyncio.create_task(part, name=name)
            task.add_done_callback(self._part_ended)
            self._tasks.append(task)
        freeze_gc()
        requests_come()

    async def _drain(self) -> None:
        self._runner.close()
        await self._lease.show(WorkerState.DRAINING)
        await self._runner.drain(self._settings.drain_s)

    async def _stop(self) -> None:
        if hasattr(self, "_log_writer"):
            await self._log_writer.drain(5)
        await cancel_and_wait(*self._tasks)
        await self._stack.aclose()

    async def _cancel(self, job_id: str) -> None:
        job = await self._jobs.get(job_id)
        if job is not None and job.status is JobStatus.QUEUED:
            await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED)
        else:
            await self._jobs.mark_cancelling(job_id)
            self._runner.stop(job_id, StopReason.CANCEL)

    async def _forget(self) -> None:
        """End the lease at once. Where the database is away, the lease runs out."""
        try:
            await self._store.end_lease()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot end the lease, it runs out by itself: %s", error)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        """A part runs as long as the worker; one that ends by itself is a fault that ends the worker."""
        if not task.cancelled():
            logger.critical("%s ended unexpectedly; the worker stops", task.get_name(), exc_info=task.exception())
            self._end_worker()

    def _end_worker(self) -> None:
        """End this process: jobs are handed back, and whoever runs it starts another.

        Celery is asked first; where its consumer is what is stuck, the process ends without it.
        """
        celery_state.should_stop = EXIT_STUCK
        self._ending = self._loop.create_task(self._end_by_force(), name="end-by-force")

    async def _end_by_force(self) -> None:
        await self._drain()
        await self._log_writer.drain(5)
        await self._forget()
        await asyncio.sleep(FORCE_AFTER_S)
        logger.critical("Celery does not stop; ending the process")
        os._exit(EXIT_STUCK)
