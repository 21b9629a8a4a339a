"""What the page of usage shows. Pure functions.

Operators see what usage cost the installation and what projects are charged for it, members of projects only the
latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from api.console.filters import Quantity, money, number, percent, plural
from api.console.overview.view import Badge
from api.console.usage.periods import Buckets
from api.usage.report import input_tokens, known, output_tokens

# Models that have a shade of their own in the chart; the others share the last one.
SHADES = 5
OTHERS = "other models"


@dataclass(frozen=True, slots=True)
class Stat:
    """A card with one number."""

    title: str
    quantity: Quantity
    context: str
    trend: Sequence[float] = ()
    kind: str = "info"
    badge: Badge | None = None


class Part(NamedTuple):
    """A model's part of a bar: where it begins and how high it is, as shares of the chart."""

    below: float
    height: float
    shade: int


class Bar(NamedTuple):
    """A bar of the chart, with its text."""

    parts: Sequence[Part]
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: sums of one project, model, end user or key. `value` selects it; empty: nothing does."""

    name: str
    value: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_share: float | None
    cost: Decimal | None
    charge: Decimal | None
    saved: Decimal | None
    unpriced: int


@dataclass(frozen=True, slots=True)
class Table:
    """The sums by what `title` says. `condition`: the parameter of the page that selects a line."""

    title: str
    noun: str
    lines: Sequence[Line]
    condition: str | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class UsageView:
    """The page, apart from its conditions."""

    stats: Sequence[Stat]
    bars: Sequence[Bar]
    legend: Sequence[tuple[str, int]]
    peak: str
    summary: str
    tables: Sequence[Table]
    unpriced: int
    is_empty: bool
    ends: tuple[str, str]


def line_of(row: Any, name: str = "", value: str = "") -> Line:
    """A row of a report as a line."""
    tokens = input_tokens(row)
    return Line(
        name=name,
        value=value,
        requests=row.requests,
        input_tokens=tokens,
        output_tokens=output_tokens(row),
        cached_share=row.input_cache_read / tokens if tokens else None,
        cost=known(row, "cost"),
        charge=known(row, "charge"),
        saved=row.saved,
        unpriced=row.unpriced,
    )


def build_view(
    rows: Sequence[Any], total: Any, buckets: Buckets, tables: Sequence[Table], *, is_operator: bool
) -> UsageView:
    """The view. `rows`: the sums by bucket and model; `total`: the sum of all rows."""
    name = "cost" if is_operator else "charge"
    count = len(buckets.labels)

    def by_bucket(value: Callable[[Any], float]) -> list[float]:
        values = [0.0] * count
        for row in rows:
            values[row.period] += value(row)
        return values

    def trend(column: str) -> list[float]:
        return by_bucket(lambda row: float(getattr(row, column) or 0))

    spent = trend(name)
    largest = max(range(count), key=spent.__getitem__)
    peak = f"at most {_short(spent[largest])}, on {buckets.labels[largest]}" if spent[largest] else "nothing"
    bars, legend = _bars(rows, buckets, name, spent[largest])
    return UsageView(
        stats=_stats(total, trend, is_operator=is_operator),
        bars=bars,
        legend=legend,
        peak=peak,
        summary=f"{money(getattr(total, name))} from {buckets.labels[0]} to {buckets.labels[-1]}; {peak}",
        tables=tables,
        unpriced=total.unpriced,
        is_empty=not rows,
        ends=(buckets.labels[0], buckets.labels[-1]),
    )


def _stats(total: Any, trend: Callable[[str], list[float]], *, is_operator: bool) -> list[Stat]:
    line = line_of(total)
    requests = plural(total.requests, "request")
    found = []
    if is_operator:
        found.append(Stat("Cost", _dollars(line.cost), f"of {plural(total.attempts, 'attempt')}", trend("cost")))
        charged = f"to projects, for {requests}"
        found.append(Stat("Charged", _dollars(line.charge), charged, trend("charge"), "batch"))
    else:
        found.append(Stat("Cost", _dollars(line.charge), f"for {requests}", trend("charge")))
        tokens = f"{number(line.input_tokens)} input and {number(line.output_tokens)} output tokens"
        found.append(Stat("Requests", Quantity(number(total.requests), ""), tokens, trend("requests"), "batch"))
    cached = Quantity(percent(line.cached_share).removesuffix(" %"), "%" if line.cached_share is not None else "")
    of_input = f"of {plural(line.input_tokens, 'input token')} were in a prefix cache"
    found.append(Stat("Prefix cache", cached, of_input, trend("input_cache_read"), "batch"))
    share = percent(total.cached_requests / total.requests if total.requests else None)
    answered = f"{plural(total.cached_requests, 'request')} ({share}) answered by the response cache or an equal one"
    found.append(Stat("Saved", _dollars(total.saved), answered, trend("saved"), "route"))
    return found


def _bars(rows: Sequence[Any], buckets: Buckets, name: str, largest: float) -> tuple[list[Bar], list[tuple[str, int]]]:
    """The bars of the chart, stacked by model, and the models by their shade."""
    by_model: dict[str, float] = {}
    by_bucket: list[dict[str, float]] = [{} for _ in buckets.labels]
    for row in rows:
        if largest > 0 and (amount := float(getattr(row, name))) > 0:
            by_model[row.model] = by_model.get(row.model, 0.0) + amount
            by_bucket[row.period][row.model] = amount
    models = sorted(by_model, key=lambda model: (-by_model[model], model))
    own = models if len(models) <= SHADES else models[: SHADES - 1]
    shades = {model: index for index, model in enumerate(own)}
    bars = []
    for label, amounts in zip(buckets.labels, by_bucket, strict=True):
        heights: dict[int, float] = {}
        for model, amount in amounts.items():
            shade = shades.get(model, SHADES - 1)
            heights[shade] = heights.get(shade, 0.0) + amount / largest
        parts, below = [], 0.0
        for shade, height in sorted(heights.items()):
            parts.append(Part(below, height, shade))
            below += height
        listed = sorted(amounts.items(), key=lambda item: -item[1])[:SHADES]
        details = "".join(f"\n{model}: {_short(amount)}" for model, amount in listed)
        bars.append(Bar(parts, f"{label}: {_short(sum(amounts.values()))}{details}"))
    return bars, [*shades.items(), *([(OTHERS, SHADES - 1)] if len(own) < len(models) else [])]


def _short(amount: float) -> str:
    return money(Decimal(repr(round(amount, 12))))


def _dollars(amount: Decimal | None) -> Quantity:
    return Quantity(money(amount), "")
