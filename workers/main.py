"""One worker process for one model: `python -m workers MODEL`.

vLLM spawns its engine processes, and a spawned process imports this module under the name `__mp_main__`. There it
is set up to die with its parent, so that the engine of a killed worker does not survive.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
from contextlib import ExitStack

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux)."""
    if sys.platform == "linux":
        parent = multiprocessing.parent_process()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent.pid:
            os._exit(1)  # the parent died before the call


def configure_engine_logging() -> None:
    """Configure logging in vLLM's processes as in the worker, without the requests of a crashing engine.

    On a crash, vLLM logs the scheduler's output, with stop strings, schemas and other parts of the requests.
    """
    from shared.telemetry.logs import configure_logging

    configure_logging(os.environ.get("HEADRACE_LOG_LEVEL", "INFO"), os.environ.get("HEADRACE_LOG_FORMAT", "text"))
    # A filter instead of a level, because vLLM's own configuration (VLLM_CONFIGURE_LOGGING=1) resets levels.
    logging.getLogger("vllm.logging_utils.dump_input").addFilter(lambda _: False)


def main() -> int:
    from shared.runtime.reload_signal import ReloadSignal

    reload_signal = ReloadSignal()
    reload_signal.install()  # before the other imports, which take a second

    parser = argparse.ArgumentParser(prog="python -m workers", description="Run jobs of one model.")
    parser.add_argument("model", help="the name of a model in models.yaml")
    arguments = parser.parse_args()

    from shared.config.models.loader import load_registry
    from shared.config.models.vllm import VllmModel
    from shared.config.settings import settings_or_exit
    from shared.domain.errors import HeadraceError
    from shared.postgres.schema_version import database_or_exit
    from shared.redis.job_queue import queue_name, use_broker
    from shared.runtime.core_dumps import forbid_core_dumps
    from shared.telemetry.instruments import Exporter
    from shared.telemetry.logs import configure_logging
    from shared.telemetry.metrics import Metrics
    from shared.telemetry.tracing_setup import configured_exporter
    from workers.app import app
    from workers.consumer.loop_thread import LoopThread
    from workers.consumer.message_filter import MessageFilter
    from workers.consumer.monitoring import bound_event_buffer
    from workers.consumer.pool import EnginePool
    from workers.consumer.signals import HeadraceWorker
    from workers.consumer.transport import use_transport
    from workers.execution.warm_check import check_warm_prompts
    from workers.metrics_server import serve_metrics
    from workers.runtime import WorkerRuntime
    from workers.settings import WorkerSettings
    from workers.supervision.consumer_control import ConsumerControl

    forbid_core_dumps()
    settings = settings_or_exit(WorkerSettings)
    configure_logging(settings.log_level, settings.log_format)
    try:
        configured_exporter()
        registry = load_registry(settings.models)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.model not in registry:
        known = ", ".join(registry.models)
        print(f"{settings.models} declares no model {arguments.model!r}; it has: {known}", file=sys.stderr)
        return 2
    model = registry[arguments.model]
    if model.adapter is not None:
        print(
            f"{model.name!r} is an adapter of {model.queue!r}, whose workers run its jobs:"
            f" python -m workers {model.queue}",
            file=sys.stderr,
        )
        return 2
    if isinstance(model, VllmModel):
        try:
            check_warm_prompts(settings.models, model)
        except HeadraceError as error:
            print(error, file=sys.stderr)
            return 2
    database_or_exit(settings.database_url)

    worker = f"{arguments.model}-{os.getpid()}-{secrets.token_hex(3)}@{socket.gethostname()}"
    use_broker(app, settings.redis_url)
    metrics = Metrics(Exporter.WORKER, model.served_names)
    metrics.loaded(model.served_names)
    exported = metrics.registry()
    runtime = WorkerRuntime(app, settings, registry, model, worker, metrics, exported, reload_signal)
    app.loop_thread = LoopThread(runtime)
    bound_event_buffer(app)
    message_filter = MessageFilter(app, model.served_names, metrics)
    use_transport(app, lambda: runtime.slot_pool.batch_room, runtime.holding, message_filter)
    celery_worker = HeadraceWorker(
        app=app,
        hostname=worker,
        pool_cls=EnginePool,
        concurrency=settings.look_ahead,
        queues=[queue_name(arguments.model)],
        task_events=False,  # Flower enables them while it runs
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        loglevel=settings.log_level,
    )
    runtime.consumer = ConsumerControl(celery_worker, queue_name(arguments.model))
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_metrics(exported, settings))
        except OSError as error:
            print(f"HEADRACE_METRICS_PORT={settings.metrics_port}: /metrics cannot be served: {error}", file=sys.stderr)
            return 2
        celery_worker.start()
    return int(celery_worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    os.setsid()  # signals to the process group are for the worker: they would end vLLM's engine at once
    die_with_parent()
    configure_engine_logging()
