"""What the attempts of a worker share, and why one is stopped from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shared.domain.ledger import EngineOf, unknown_engine
from shared.domain.priorities import Hint
from shared.postgres.claim_store import ClaimStore
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing import NO_TRACES, Traces
from workers.engines.base import Engine
from workers.execution.compilations import Compilations
from workers.execution.log_writer import LogWriter


class InterruptReason(StrEnum):
    """Why a running attempt was stopped from outside."""

    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline exceeded"
    # The worker drains, or restarts its engine.
    REQUEUED = "requeued"
    # A batch job makes room for an urgent one.
    PREEMPTED = "preempted"
    CLAIM_LOST = "claim lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptContext:
    """What the attempts of one worker share.

    `on_engine_death` is called from the event loop, once for each job that finds the engine dead. Without
    `compilations`, structured outputs are not compiled here. Of the opaque parts of a request, the engine gets those of
    `provider`, and of a job that has moved here, at most `max_output` tokens are generated: admission has applied the
    limits of its first model. `conversations` get to know which model takes over a job, and its answer. `revision` is
    that of the model's entry (`Spec.revision`), and `adapter_revisions` has those of its adapters by name.
    `starts_early`: see `Spec.starts_early`. `engine_of` knows the models of earlier attempts too, which may be others.
    """

    worker: str
    engine: Engine
    store: ClaimStore
    logs: EventLog
    log_writer: LogWriter
    log_ttl_s: int
    max_attempts: int
    send: Callable[[Hint], None]
    on_engine_death: Callable[[], None]
    metrics: Metrics
    traces: Traces = NO_TRACES
    compilations: Compilations | None = None
    provider: str | None = None
    max_output: int | None = None
    conversations: ConversationModels | None = None
    revision: str | None = None
    starts_early: bool = False
    adapter_revisions: Mapping[str, str] = field(default_factory=dict)
    engine_of: EngineOf = unknown_engine
