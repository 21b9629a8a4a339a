"""What the overview's templates show, from a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from api.admin.fleet.store import WorkerInfo
from api.console.data.histogram import Percentiles
from api.console.data.overview import Bucket, Charts, QueueState
from api.console.filters import Quantity, compact, duration, milliseconds, number, percent, plural, quantity
from api.console.overview.events import Event, events
from api.console.overview.snapshot import RangeName, Snapshot
from shared.config.models.loader import Registry
from shared.domain.job import WorkerState

# Milliseconds until the first token: readers notice a wait above the first, and Headrace promises the second.
NOTICED_MS, TARGET_MS = 200, 500
# From this share on, a KV cache is nearly full: the engine will preempt requests.
KV_NEAR = 0.8
RANGE_NAMES = {"1h": "last hour", "6h": "last 6 hours", "24h": "last day"}


@dataclass(frozen=True, slots=True)
class Badge:
    """A word with a meaning."""

    text: str
    kind: str
    degrades: bool = False  # part of the answer to whether all is well


@dataclass(frozen=True, slots=True)
class Stat:
    """A card with one number."""

    title: str
    quantity: Quantity
    context: str
    badge: Badge | None
    kind: str
    trend: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A line of the table of models."""

    name: str
    engine: str
    workers: int
    slots: int
    interactive: int
    batch: int
    waiting: int
    waiting_batch: int
    oldest_s: float | None
    tokens_per_s: float | None
    first_token: Percentiles | None
    kv_cache: float | None
    notes: Sequence[Badge]


@dataclass(frozen=True, slots=True)
class OverviewView:
    """Everything on the page."""

    range: str
    health: Badge
    reasons: Sequence[str]
    stats: Sequence[Stat]
    chart: Mapping[str, object]
    chart_summary: str
    events: Sequence[Event]
    models: Sequence[ModelRow]


def build_view(snapshot: Snapshot, registry: Registry, project_id: int | None) -> OverviewView:
    """The view of the members of a project, or of operators (None)."""
    rows = _model_rows(snapshot, registry)
    happened = events(snapshot.live, snapshot.charts.start, project_id)
    health, reasons = _health(rows, snapshot)
    total = snapshot.charts.total
    return OverviewView(
        range=snapshot.range,
        health=health,
        reasons=reasons,
        stats=(
            first_token_stat(snapshot.charts, snapshot.range),
            _output(snapshot, rows),
            _waiting(snapshot),
            _failures(snapshot),
        ),
        chart=chart_data(snapshot.charts.buckets, happened),
        chart_summary=chart_summary(total.first_token, snapshot.range),
        events=happened,
        models=rows,
    )


def first_token_stat(charts: Charts, range_name: RangeName) -> Stat:
    """The card of the time to the first token."""
    times = charts.total.first_token
    trend = [bucket.first_token.p95 if bucket.first_token else None for bucket in charts.complete]
    name = RANGE_NAMES[range_name]
    if times is None:
        return Stat("First token, p95", Quantity("–", ""), f"no interactive jobs in the {name}", None, "info", trend)
    badge = Badge("within target", "good") if times.p95 <= TARGET_MS else Badge("above target", "tail")
    context = f"p50 {milliseconds(times.p50)} · p99 {milliseconds(times.p99)}"
    return Stat("First token, p95", quantity(times.p95 / 1000), context, badge, "info", trend)


def _output(snapshot: Snapshot, rows: Sequence[ModelRow]) -> Stat:
    alive = [worker for worker in snapshot.live.workers if worker.alive]
    slots = sum(row.slots for row in rows)
    busy = sum(row.interactive + row.batch for row in rows)
    context = f"{percent(busy / slots)} of {plural(slots, 'slot')} busy" if slots else "no worker is running"
    trend = [bucket.tokens_per_s for bucket in snapshot.charts.complete]
    badge = Badge(plural(len(alive), "worker"), "plain" if alive else "bad")
    rate = snapshot.live.tokens_per_s
    return Stat("Output", Quantity(number(round(rate)), "tokens/s"), context, badge, "batch", trend)


def _waiting(snapshot: Snapshot) -> Stat:
    interactive = [queue for queue in snapshot.live.queues if queue.interactive]
    batch = [queue for queue in snapshot.live.queues if not queue.interactive]
    count = sum(queue.waiting for queue in interactive)
    oldest = max((queue.oldest_s for queue in interactive if queue.oldest_s is not None), default=None)
    behind = sum(queue.waiting for queue in batch)
    shown = number(count) + ("+" if any(queue.capped for queue in interactive) else "")
    parts = [f"oldest {duration(oldest)}" if oldest is not None else "no interactive job waits"]
    if behind:
        parts.append(f"batch {compact(behind)}{'+' if any(queue.capped for queue in batch) else ''} behind")
    trend = [bucket.wait.p95 if bucket.wait else None for bucket in snapshot.charts.complete]
    badge = Badge("slow", "tail") if oldest is not None and oldest * 1000 > TARGET_MS else Badge("moving", "good")
    unit = "job" if count == 1 else "jobs"
    return Stat("Waiting", Quantity(shown, unit), " · ".join(parts), badge if count else None, "tail", trend)


def _failures(snapshot: Snapshot) -> Stat:
    total = snapshot.charts.total
    failed = total.failed
    trend = [float(bucket.failed) for bucket in snapshot.charts.complete]
    if not total.jobs:
        return Stat(
            "Failed", Quantity("0", "jobs"), f"no job ended in the {RANGE_NAMES[snapshot.range]}", None, "bad", trend
        )
    codes = list(total.causes.items())[:2]
    context = " · ".join(f"{code} {compact(count)}" for code, count in codes) or f"of {plural(total.jobs, 'job')}"
    badge = (
        Badge(percent(failed / total.jobs), "bad" if failed / total.jobs >= 0.01 else "near")
        if failed
        else Badge("none", "good")
    )
    return Stat("Failed", Quantity(number(failed), "job" if failed == 1 else "jobs"), context, badge, "bad", trend)


def chart_data(buckets: Sequence[Bucket], happened: Sequence[Event] = ()) -> Mapping[str, object]:
    """The data of the chart, as `static/chart.js` reads it: times in Unix seconds, percentiles in milliseconds, and
    what happened."""
    times = [bucket.first_token for bucket in buckets]
    return {
        "x": [int(bucket.start.timestamp()) for bucket in buckets],
        "series": [
            {"name": name, "kind": kind, "values": [getattr(found, name) if found else None for found in times]}
            for name, kind in (("p50", "info"), ("p95", "batch"), ("p99", "tail"))
        ],
        "targets": [
            {"value": NOTICED_MS, "text": f"{NOTICED_MS} ms noticed", "kind": "good"},
            {"value": TARGET_MS, "text": f"{TARGET_MS} ms target", "kind": "near"},
        ],
        "marks": [
            {"x": int(event.at.timestamp()), "text": event.text, "kind": event.kind} for event in happened if event.mark
        ],
        "unit": "ms",
    }


def chart_summary(times: Percentiles | None, range_name: RangeName) -> str:
    """The chart in words."""
    if times is None:
        return f"No interactive jobs in the {RANGE_NAMES[range_name]}."
    return (
        f"Time to the first token in the {RANGE_NAMES[range_name]}: p50 {milliseconds(times.p50)},"
        f" p95 {milliseconds(times.p95)}, p99 {milliseconds(times.p99)}, {plural(times.count, 'job')}."
    )


def _model_rows(snapshot: Snapshot, registry: Registry) -> list[ModelRow]:
    queues: dict[str, dict[bool, QueueState]] = {}
    for queue in snapshot.live.queues:
        queues.setdefault(queue.model, {})[queue.interactive] = queue
    rows = []
    for name, states in queues.items():
        alive = [worker for worker in snapshot.live.workers if worker.alive and worker.model == name]
        spec = registry.models.get(name)
        interactive, batch = states[True], states[False]
        usages = [worker.kv_cache_usage for worker in alive if worker.kv_cache_usage is not None]
        rates = [worker.tokens_per_s for worker in alive if worker.tokens_per_s is not None]
        row = ModelRow(
            name=name,
            engine=spec.engine if spec is not None else "not in models.yaml",
            workers=len(alive),
            slots=sum(worker.slots for worker in alive),
            interactive=interactive.running,
            batch=batch.running,
            waiting=interactive.waiting,
            waiting_batch=batch.waiting,
            oldest_s=interactive.oldest_s if interactive.oldest_s is not None else batch.oldest_s,
            tokens_per_s=sum(rates) if rates else None,
            first_token=snapshot.first_tokens.get(name),
            kv_cache=max(usages, default=None),
            notes=(),
        )
        rows.append(_with_notes(row, alive, interactive))
    return rows


def _with_notes(row: ModelRow, alive: Sequence[WorkerInfo], queue: QueueState) -> ModelRow:
    notes = []
    ready = [worker for worker in alive if worker.state == WorkerState.READY]
    if not alive:
        # A model without workers may be one that is scaled to zero.
        notes.append(Badge("no worker", "bad" if _waits(row) else "plain"))
    elif not ready:
        notes.append(Badge(alive[0].state, "near", degrades=True))
    if queue.paused_at is not None:
        notes.append(Badge("paused", "near"))
    if any(worker.breaker_since is not None for worker in alive):
        notes.append(Badge("upstream fails", "bad", degrades=True))
    if row.kv_cache is not None and row.kv_cache >= KV_NEAR:
        notes.append(Badge(f"KV {percent(row.kv_cache)}", "near"))
    if not notes and not row.interactive + row.batch and not _waits(row):
        notes.append(Badge("idle", "plain"))
    return replace(row, notes=tuple(notes))


def _health(rows: Sequence[ModelRow], snapshot: Snapshot) -> tuple[Badge, Sequence[str]]:
    """Whether all is well, and if not, why. What an operator has decided, such as a pause, is well."""
    bad = [f"{row.name} has waiting jobs and no worker" for row in rows if not row.workers and _waits(row)]
    near = [f"{row.name}: {note.text}" for row in rows if row.workers for note in row.notes if note.degrades]
    times = snapshot.charts.total.first_token
    if times is not None and times.p95 > TARGET_MS:
        near.append(_slowness(times, snapshot.charts.total.wait, snapshot.range))
    if bad:
        return Badge("Needs attention", "bad"), (*bad, *near)
    return (Badge("Degraded", "near"), near) if near else (Badge("Healthy", "good"), ())


def _slowness(first_token: Percentiles, wait: Percentiles | None, range_name: RangeName) -> str:
    """That first tokens were slow, and whether the queue made them so, as while no worker was ready."""
    text = f"first tokens are above the target in the {RANGE_NAMES[range_name]}"
    if wait is not None and wait.p95 > first_token.p95 / 2:
        text += f": jobs waited {milliseconds(wait.p95)} for a worker"
    return text


def _waits(row: ModelRow) -> bool:
    return bool(row.waiting + row.waiting_batch)
