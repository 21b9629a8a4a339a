"""What each API process and each worker has to recover jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.settings import Settings
from shared.domain.ledger import EngineOf
from shared.domain.priorities import Hint
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.carried_requests import CarriedRequests
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing import Traces


@dataclass(frozen=True, slots=True)
class Recovery:
    """The parts of a process that recover jobs."""

    store: RecoveryStore
    fallbacks: Fallbacks
    terminator: JobTerminator
    sweeper: Sweeper


def build_recovery(
    settings: Settings,
    database: AsyncEngine,
    redis: Redis,
    logs: EventLog,
    send: Callable[[Hint], None],
    metrics: Metrics,
    traces: Traces,
    engine_of: EngineOf,
) -> Recovery:
    """Build the parts. `send` sends the messages of jobs that are queued again."""
    store = RecoveryStore(database)
    fallbacks = Fallbacks(store, logs, ConversationModels(redis), send, metrics)
    terminator = JobTerminator(store, logs, settings.log_ttl_s, metrics, traces, send, fallbacks, engine_of)
    sweeper = Sweeper(
        store,
        terminator,
        send,
        metrics,
        interval_s=settings.heartbeat_s,
        lease_s=settings.lease_s,
        max_attempts=settings.max_attempts,
        fallbacks=fallbacks,
        requests=CarriedRequests(redis),
    )
    return Recovery(store, fallbacks, terminator, sweeper)
