"""What the page of one model shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.console.data.overview import Charts
from api.console.filters import Quantity, compact, duration, milliseconds, number, percent, plural, quantity
from api.console.fleet.view import ModelCard
from api.console.overview.snapshot import RangeName
from api.console.overview.view import NOTICED_MS, RANGE_NAMES, TARGET_MS, Badge, Stat


@dataclass(frozen=True, slots=True)
class ModelView:
    """The parts of the page that change."""

    card: ModelCard
    stats: Sequence[Stat]
    chart: Mapping[str, object]
    chart_summary: str
    is_operator: bool


def build_model_view(card: ModelCard, charts: Charts, range_name: RangeName, *, is_operator: bool) -> ModelView:
    """The view of a model in a time range."""
    times = charts.total.first_token
    name = RANGE_NAMES[range_name]
    summary = f"No interactive jobs in the {name}."
    if times is not None:
        summary = (
            f"Time to the first token in the {name}: p50 {milliseconds(times.p50)}, p95 {milliseconds(times.p95)},"
            f" p99 {milliseconds(times.p99)}, {plural(times.count, 'job')}."
        )
    stats = (_first_token(charts, name), _output(card, charts), _waiting(card, charts), _failures(charts, name))
    return ModelView(card, stats, _chart(charts), summary, is_operator)


def _first_token(charts: Charts, name: str) -> Stat:
    times = charts.total.first_token
    trend = [bucket.first_token.p95 if bucket.first_token else None for bucket in charts.buckets]
    if times is None:
        return Stat("First token, p95", Quantity("–", ""), f"no interactive jobs in the {name}", None, "info", trend)
    badge = Badge("within target", "good") if times.p95 <= TARGET_MS else Badge("above target", "tail")
    context = f"p50 {milliseconds(times.p50)} · p99 {milliseconds(times.p99)}"
    return Stat("First token, p95", quantity(times.p95 / 1000), context, badge, "info", trend)


def _output(card: ModelCard, charts: Charts) -> Stat:
    context = f"{percent(card.busy / card.slots)} of {plural(card.slots, 'slot')} busy" if card.slots else "no worker"
    trend = [bucket.tokens_per_s for bucket in charts.buckets]
    rate = None if card.tokens_per_s is None else round(card.tokens_per_s)
    badge = Badge(plural(len(card.workers), "worker"), "plain")
    return Stat("Output", Quantity(number(rate), "tokens/s"), context, badge, "batch", trend)


def _waiting(card: ModelCard, charts: Charts) -> Stat:
    trend = [bucket.wait.p95 if bucket.wait else None for bucket in charts.buckets]
    parts = ["no job waits" if card.oldest_s is None else f"oldest {duration(card.oldest_s)}"]
    if card.waiting_batch:
        parts.append(f"{compact(card.waiting_batch)} of batches behind")
    shown = number(card.waiting) + ("+" if card.waiting_capped else "")
    unit = "job" if card.waiting == 1 else "jobs"
    badge = Badge("paused", "near") if card.paused_at is not None else None
    return Stat("Waiting", Quantity(shown, unit), " · ".join(parts), badge, "tail", trend)


def _failures(charts: Charts, name: str) -> Stat:
    total = charts.total
    failed = sum(count for status, count in total.ended.items() if status in ("failed", "expired"))
    trend = [float(sum(bucket.errors.values())) for bucket in charts.buckets]
    codes = sorted(total.errors.items(), key=lambda item: -item[1])[:2]
    context = " · ".join(f"{code} {compact(count)}" for code, count in codes)
    context = context or (f"of {plural(total.jobs, 'job')}" if total.jobs else f"no job ended in the {name}")
    badge = None
    if total.jobs:
        badge = Badge(percent(failed / total.jobs), "near") if failed else Badge("none", "good")
    return Stat("Failed", Quantity(number(failed), "job" if failed == 1 else "jobs"), context, badge, "bad", trend)


def _chart(charts: Charts) -> Mapping[str, object]:
    """As `static/chart.js` reads it."""
    times = [bucket.first_token for bucket in charts.buckets]
    return {
        "x": [int(bucket.start.timestamp()) for bucket in charts.buckets],
        "series": [
            {"name": name, "kind": kind, "values": [getattr(found, name) if found else None for found in times]}
            for name, kind in (("p50", "info"), ("p95", "batch"), ("p99", "tail"))
        ],
        "targets": [
            {"value": NOTICED_MS, "text": f"{NOTICED_MS} ms noticed", "kind": "good"},
            {"value": TARGET_MS, "text": f"{TARGET_MS} ms target", "kind": "near"},
        ],
        "marks": [],
        "unit": "ms",
    }
