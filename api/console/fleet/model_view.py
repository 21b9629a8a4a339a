"""What the page of one model shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.console.data.overview import Charts
from api.console.filters import Quantity, compact, duration, number, percent, plural
from api.console.fleet.engine_view import EngineCard, engine_cards
from api.console.fleet.view import ModelCard
from api.console.overview.snapshot import RangeName
from api.console.overview.view import RANGE_NAMES, Badge, Stat, chart_data, chart_summary, first_token_stat


@dataclass(frozen=True, slots=True)
class ModelView:
    """The parts of the page that change."""

    card: ModelCard
    stats: Sequence[Stat]
    chart: Mapping[str, object]
    chart_summary: str
    engines: Sequence[EngineCard]
    is_operator: bool


def build_model_view(card: ModelCard, charts: Charts, range_name: RangeName, *, is_operator: bool) -> ModelView:
    """The view of a model in a time range."""
    name = RANGE_NAMES[range_name]
    stats = (
        first_token_stat(charts, range_name),
        _output(card, charts),
        _waiting(card, charts),
        _failures(charts, name),
    )
    summary = chart_summary(charts.total.first_token, range_name)
    engines = engine_cards([(worker.id, worker.engine_info) for worker in card.workers])
    return ModelView(card, stats, chart_data(charts.buckets), summary, engines, is_operator)


def _output(card: ModelCard, charts: Charts) -> Stat:
    context = f"{percent(card.busy / card.slots)} of {plural(card.slots, 'slot')} busy" if card.slots else "no worker"
    trend = [bucket.tokens_per_s for bucket in charts.complete]
    rate = None if card.tokens_per_s is None else round(card.tokens_per_s)
    badge = Badge(plural(len(card.workers), "worker"), "plain")
    return Stat("Output", Quantity(number(rate), "tokens/s"), context, badge, "batch", trend)


def _waiting(card: ModelCard, charts: Charts) -> Stat:
    trend = [bucket.wait.p95 if bucket.wait else None for bucket in charts.complete]
    parts = ["no job waits" if card.oldest_s is None else f"oldest {duration(card.oldest_s)}"]
    if card.waiting_batch:
        parts.append(f"{compact(card.waiting_batch)} of batches behind")
    shown = number(card.waiting) + ("+" if card.waiting_capped else "")
    unit = "job" if card.waiting == 1 else "jobs"
    badge = Badge("paused", "near") if card.paused_at is not None else None
    return Stat("Waiting", Quantity(shown, unit), " · ".join(parts), badge, "tail", trend)


def _failures(charts: Charts, name: str) -> Stat:
    total = charts.total
    failed = total.failed
    trend = [float(bucket.failed) for bucket in charts.complete]
    codes = list(total.causes.items())[:2]
    context = " · ".join(f"{code} {compact(count)}" for code, count in codes)
    context = context or (f"of {plural(total.jobs, 'job')}" if total.jobs else f"no job ended in the {name}")
    badge = None
    if total.jobs:
        badge = Badge(percent(failed / total.jobs), "near") if failed else Badge("none", "good")
    return Stat("Failed", Quantity(number(failed), "job" if failed == 1 else "jobs"), context, badge, "bad", trend)
