"""What the page of models and workers shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.admin.fleet.store import WorkerInfo
from api.console.data.histogram import Percentiles
from api.console.data.overview import Live, QueueState, Rescue
from api.console.filters import compact, duration, number, percent, plural
from api.console.fleet.engine_view import engine_line
from api.console.fleet.store import RunningJobs
from api.console.overview.view import KV_NEAR, Badge
from shared.config.models.loader import Registry
from shared.domain.engine_info import EngineInfo
from shared.domain.job import WorkerState

NONE_RUNNING = RunningJobs()
# Options of an engine that are shown in a worker's line; its model's page has all of them.
SHOWN_OPTIONS = 3
_STATES = {
    WorkerState.READY: "good",
    WorkerState.LOADING: "info",
    WorkerState.WARMING: "info",
    WorkerState.RESTARTING: "near",
    WorkerState.DRAINING: "near",
}
_WORDS = {WorkerState.WARMING: "warming up"}


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker that is alive.

    `doing`: for how long it has been in a state other than ready. `options`: the most telling ones, and `engine_info`
    what its engine runs with; only for operators.
    """

    id: str
    state: Badge
    doing: str
    problem: str | None
    interactive: int
    batch: int
    slots: int
    waiting: int
    kv_cache: float | None
    tokens_per_s: float | None
    version: str | None
    started_at: datetime
    options: str
    engine_info: EngineInfo | None
    is_outdated: bool
    can_drain: bool


@dataclass(frozen=True, slots=True)
class EndedWorker:
    """A worker that ended within the last hour."""

    id: str
    model: str
    state: Badge
    at: datetime
    why: str


@dataclass(frozen=True, slots=True)
class AdapterLine:
    """An adapter of a model. `first_token`: of its jobs."""

    name: str
    description: str
    first_token: Percentiles | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model, its queue, and its workers.

    The queue and the workers of an adapter are those of its base, whose name `queue` is.
    """

    name: str
    queue: str
    engine: str
    description: str
    notes: Sequence[Badge]
    waiting: int
    waiting_capped: bool
    waiting_batch: int
    oldest_s: float | None
    busy: int
    slots: int
    tokens_per_s: float | None
    first_token: Percentiles | None
    paused_at: datetime | None
    can_pause: bool
    adapters: Sequence[AdapterLine]
    workers: Sequence[WorkerLine]


@dataclass(frozen=True, slots=True)
class FleetView:
    """The page. `is_operator`: the viewers see how models are run, and may change what runs."""

    summary: str
    models: Sequence[ModelCard]
    ended: Sequence[EndedWorker]
    is_operator: bool


def build_view(
    live: Live,
    running: Mapping[str, RunningJobs],
    first_tokens: Mapping[str, Percentiles],
    registry: Registry,
    *,
    is_operator: bool,
) -> FleetView:
    """The view of operators, or of the members of projects."""
    names = dict.fromkeys([*(queue.model for queue in live.queues), *(w.model for w in live.workers if w.alive)])
    cards = [model_card(name, live, running, first_tokens, registry, is_operator=is_operator) for name in names]
    return FleetView(_summary(cards), cards, _ended(live, is_operator=is_operator), is_operator)


def model_card(
    name: str,
    live: Live,
    running: Mapping[str, RunningJobs],
    first_tokens: Mapping[str, Percentiles],
    registry: Registry,
    *,
    is_operator: bool,
) -> ModelCard:
    """One model."""
    spec, queue_name = registry.models.get(name), registry.queue_of(name)
    alive = [worker for worker in live.workers if worker.alive and worker.model == queue_name]
    states = {queue.interactive: queue for queue in live.queues if queue.model == queue_name}
    interactive = states.get(True) or QueueState(queue_name, True)
    batch = states.get(False) or QueueState(queue_name, False)
    rates = [worker.tokens_per_s for worker in alive if worker.tokens_per_s is not None]
    entry = _entry(registry, queue_name)
    adapters = () if spec is None else spec.adapters
    lines = [_line(worker, running.get(worker.id, NONE_RUNNING), entry, live.at, is_operator) for worker in alive]
    return ModelCard(
        name=name,
        queue=queue_name,
        engine=spec.engine if spec is not None else "not in models.yaml",
        description=spec.description if spec is not None else "",
        notes=_notes(alive, interactive, batch),
        waiting=interactive.waiting,
        waiting_capped=interactive.capped or batch.capped,
        waiting_batch=batch.waiting,
        oldest_s=interactive.oldest_s if interactive.oldest_s is not None else batch.oldest_s,
        busy=sum(line.interactive + line.batch for line in lines),
        slots=sum(worker.slots for worker in alive),
        tokens_per_s=sum(rates) if rates else None,
        first_token=first_tokens.get(name),
        paused_at=interactive.paused_at,
        can_pause=is_operator and name == queue_name and (spec is not None or interactive.paused_at is not None),
        adapters=[AdapterLine(one.name, one.description, first_tokens.get(one.name)) for one in adapters],
        workers=lines,
    )


def entry_text(registry: Registry, name: str) -> str | None:
    """A model's entry in models.yaml, without defaults and secrets; None if there is none."""
    entry = _entry(registry, name)
    return None if entry is None else json.dumps(entry, indent=2, ensure_ascii=False)


def _entry(registry: Registry, name: str) -> Mapping[str, Any] | None:
    spec = registry.models.get(name)
    return None if spec is None else spec.summary


def _line(
    worker: WorkerInfo, running: RunningJobs, entry: Mapping[str, Any] | None, now: datetime, is_operator: bool
) -> WorkerLine:
    state = worker.state
    if worker.drain_requested_at is not None:
        state = WorkerState.DRAINING
    since = worker.drain_requested_at or worker.state_since or worker.started_at
    doing = "" if state == WorkerState.READY else f"for {duration(max((now - since).total_seconds(), 0))}"
    badge = Badge(_WORDS.get(state, state), _STATES.get(state, "plain"))  # type: ignore[call-overload]
    problem = None
    if worker.breaker_since is not None:
        badge = Badge("circuit open", "bad")
        doing = f"for {duration(max((now - worker.breaker_since).total_seconds(), 0))}"
        problem = worker.breaker_reason or "its upstream fails"
    elif state in (WorkerState.RESTARTING, WorkerState.LOADING) and worker.last_error:
        problem = worker.last_error
    return WorkerLine(
        id=worker.id,
        state=badge,
        doing=doing,
        problem=problem if is_operator else None,
        interactive=running.interactive,
        batch=running.batch,
        slots=worker.slots,
        waiting=worker.waiting,
        kv_cache=worker.kv_cache_usage,
        tokens_per_s=worker.tokens_per_s,
        version=worker.version,
        started_at=worker.started_at,
        options=(engine_line(worker.engine_info) or _options(worker.options)) if is_operator else "",
        engine_info=worker.engine_info if is_operator else None,
        is_outdated=is_operator and bool(worker.options) and entry is not None and dict(worker.options) != entry,
        can_drain=is_operator and worker.drain_requested_at is None,
    )


def _options(entry: Mapping[str, Any]) -> str:
    """The most telling options of an entry, in one line."""
    options = entry.get("options")
    flat = {**({} if not isinstance(options, Mapping) else options)}
    flat |= {name: value for name, value in entry.items() if name not in ("options", "engine", "capabilities")}
    texts = [
        f"{name} {value}" for name, value in flat.items() if isinstance(value, str | int | float) and str(value) != ""
    ]
    return " · ".join(texts[:SHOWN_OPTIONS]) + (" · …" if len(texts) > SHOWN_OPTIONS else "")


def _notes(alive: Sequence[WorkerInfo], interactive: QueueState, batch: QueueState) -> list[Badge]:
    notes = []
    if interactive.paused_at is not None:
        notes.append(Badge("paused", "near"))
    if not alive:
        notes.append(Badge("no worker", "bad" if interactive.waiting + batch.waiting else "plain"))
    if any(worker.breaker_since is not None for worker in alive):
        notes.append(Badge("upstream fails", "bad"))
    fullest = max((worker.kv_cache_usage for worker in alive if worker.kv_cache_usage is not None), default=0.0)
    if fullest >= KV_NEAR:
        notes.append(Badge(f"KV {percent(fullest)}", "near"))
    return notes


def _ended(live: Live, *, is_operator: bool) -> list[EndedWorker]:
    rescues: dict[str, list[Rescue]] = {}
    for rescue in live.rescues:
        rescues.setdefault(rescue.worker, []).append(rescue)
    ended = []
    for worker in live.workers:
        if worker.alive:
            continue
        if worker.state == WorkerState.DRAINED:
            at = worker.state_since or worker.lease_expires_at
            ended.append(EndedWorker(worker.id, worker.model, Badge("drained", "plain"), at, "finished its jobs"))
            continue
        parts = []
        if worker.last_error and is_operator:
            parts.append(worker.last_error)
        parts.append(f"no heartbeat while {worker.state}")
        if (lost := rescues.get(worker.id)) is not None and is_operator:
            continued = sum(rescue.continued_at is not None for rescue in lost)
            parts.append(f"{number(continued)} of {plural(len(lost), 'job')} continued elsewhere")
        state = Badge("lost", "bad")
        ended.append(EndedWorker(worker.id, worker.model, state, worker.lease_expires_at, "; ".join(parts)))
    return sorted(ended, key=lambda worker: worker.at, reverse=True)


def _summary(cards: Sequence[ModelCard]) -> str:
    workers = [line for card in cards for line in card.workers]
    slots, busy = sum(card.slots for card in cards), sum(card.busy for card in cards)
    parts = [plural(len(cards), "model"), plural(len(workers), "worker")]
    if slots:
        parts.append(f"{number(busy)} of {compact(slots)} slots busy")
    return " · ".join(parts)
