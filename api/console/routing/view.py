"""What the page of routing and the cache shows, from a sample of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from api.console.filters import Quantity, compact, duration, number, percent, plural, size
from api.console.overview.view import Badge, Stat
from api.console.routing.store import COUNTED_ANSWERS, SAMPLED, Answers, Decided
from shared.config.models.conditions import Conditions
from shared.config.models.loader import Registry
from shared.config.models.routes import COMPLEXITY, CONVERSATION, OTHERWISE, Route
from shared.domain.decisions import BypassReason, CacheOutcome

# Shades of the colour of decisions, for the models of a route.
SHADES = 5
_WHY = {
    COMPLEXITY: "the complexity of the request",
    OTHERWISE: "no rule applies",
    CONVERSATION: "the conversation keeps its model",
}
_REASONS = {
    BypassReason.NO_STORE: "the request does not want its answer to be stored",
    BypassReason.NOT_REPEATABLE: "another run could give another answer: temperature above 0 and no seed",
    BypassReason.PROMPT_ONLY: "it generates nothing",
    BypassReason.NO_END_USER: "answers are those of end users, and it names none",
    BypassReason.UNAVAILABLE: "the cache was unavailable",
}


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole. `shade` is that of its bar."""

    name: str
    requests: int
    share: float
    shade: int = 0


@dataclass(frozen=True, slots=True)
class RuleLine:
    """A rule: what it says, and the models that requests went to by it."""

    name: str
    why: str
    requests: int
    share: float
    models: str


@dataclass(frozen=True, slots=True)
class RouteCard:
    """A route. `columns`: for each part of the time, the heights (of 1) and shades of its models, from below."""

    name: str
    description: str
    requests: int
    models: Sequence[Share]
    rules: Sequence[RuleLine]
    columns: Sequence[Sequence[tuple[float, float, int]]]
    kept: int
    skipped: int
    moved: int
    modes: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class CacheCard:
    """The response cache."""

    stats: Sequence[Stat]
    bypasses: Sequence[Share]
    answers: Sequence[Answers]
    size: str
    outcomes: int


@dataclass(frozen=True, slots=True)
class RoutingView:
    """The page."""

    sample: str
    routes: Sequence[RouteCard]
    direct: int
    cache: CacheCard


def build_view(
    decided: Sequence[Decided],
    answers: Sequence[Answers],
    registry: Registry,
    parts: int,
    width: timedelta,
    *,
    is_operator: bool,
) -> RoutingView:
    """The view of a sample of `parts` parts of the time. Operators also see what the rules say."""
    routed: dict[str, list[Decided]] = {route.name: [] for route in registry.routes}
    direct = 0
    for one in decided:
        if one.route is None:
            direct += one.requests
        else:
            routed.setdefault(one.route, []).append(one)
    known = {route.name: route for route in registry.routes}
    cards = [_route(name, known.get(name), found, parts, is_operator) for name, found in routed.items()]
    return RoutingView(_sample(decided, width), cards, direct, _cache(decided, answers, parts))


def why(rule: str, route: Route | None, *, is_operator: bool = True) -> str:
    """Why a rule chooses a model."""
    if rule in _WHY:
        return _WHY[rule]
    found = next((one for one in route.rules if one.name == rule), None) if route is not None else None
    if found is None:
        return "a rule that models.yaml no longer has"
    return conditions_text(found.conditions) if is_operator else "a rule of the route"


def conditions_text(conditions: Conditions) -> str:
    """Conditions in words."""
    texts = []
    for name in conditions.names:
        value = getattr(conditions, name)
        match name:
            case "input_tokens_over":
                texts.append(f"more than {number(value)} tokens")
            case "input_tokens_under":
                texts.append(f"fewer than {number(value)} tokens")
            case "predicted_wait_over_s":
                of = f" for {conditions.of}" if conditions.of else ""
                texts.append(f"would wait more than {duration(value)}{of}")
            case "keywords" | "tier":
                shown = ", ".join(value[:5]) + (", …" if len(value) > 5 else "")
                texts.append(f"{'says' if name == 'keywords' else 'tier'} {shown}")
            case _:
                what = name.replace("_", " ")
                texts.append(f"has {what}" if value else f"has no {what}")
    return " and ".join(texts) or "every request"


def _sample(decided: Sequence[Decided], width: timedelta) -> str:
    by_part: Counter[int] = Counter()
    for one in decided:
        by_part[one.part] += one.requests
    total = sum(by_part.values())
    if not total:
        return "no requests"
    if max(by_part.values()) < SAMPLED:
        return f"all {plural(total, 'request')}" if total > 1 else "1 request"
    return f"a sample of {plural(total, 'request')}: the last {SAMPLED} of every {duration(width.total_seconds())}"


def _route(name: str, route: Route | None, found: Sequence[Decided], parts: int, is_operator: bool) -> RouteCard:
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.model] += one.requests
    total = sum(counts.values())
    candidates = route.candidates if route is not None else ()
    order = [*candidates, *sorted(model for model in counts if model not in candidates)]
    shades = {model: position % SHADES for position, model in enumerate(order)}
    models = [Share(model, counts[model], counts[model] / total if total else 0, shades[model]) for model in order]
    return RouteCard(
        name=name,
        description=route.description if route is not None else "models.yaml no longer has this route",
        requests=total,
        models=models,
        rules=_rules(route, found, total, is_operator),
        columns=_columns(found, order, shades, parts),
        kept=sum(one.requests for one in found if one.rule == CONVERSATION),
        skipped=sum(one.requests for one in found if one.skipped),
        moved=sum(one.requests for one in found if one.moved),
        modes=_modes(found),
    )


def _modes(found: Iterable[Decided]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for one in found:
        if one.mode is not None:
            counts[one.mode] += one.requests
    return counts.most_common()


def _rules(route: Route | None, found: Sequence[Decided], total: int, is_operator: bool) -> list[RuleLine]:
    by_rule: dict[str, Counter[str]] = {}
    for one in found:
        by_rule.setdefault(one.rule or "unknown", Counter())[one.model] += one.requests
    configured = [rule.name for rule in route.rules] if route is not None else []
    names = [*configured, *sorted(by_rule.keys() - set(configured))]
    lines = []
    for name in names:
        models = by_rule.get(name, Counter())
        requests = sum(models.values())
        shown = ", ".join(
            model if len(models) == 1 else f"{model} {percent(count / requests)}"
            for model, count in models.most_common(4)
        )
        text = why(name, route, is_operator=is_operator)
        lines.append(RuleLine(name, text, requests, requests / total if total else 0, shown))
    return lines


def _columns(
    found: Sequence[Decided], order: Sequence[str], shades: Mapping[str, int], parts: int
) -> list[list[tuple[float, float, int]]]:
    by_part: list[Counter[str]] = [Counter() for _ in range(parts)]
    for one in found:
        by_part[one.part][one.model] += one.requests
    columns = []
    for counts in by_part:
        total, below, column = sum(counts.values()), 0.0, []
        for model in order:
            if counts[model]:
                height = counts[model] / total
                column.append((round(below, 4), round(height, 4), shades[model]))
                below += height
        columns.append(column)
    return columns


def _cache(decided: Sequence[Decided], answers: Sequence[Answers], parts: int) -> CacheCard:
    outcomes: Counter[str] = Counter()
    served, asked = [0] * parts, [0] * parts
    saved = 0
    reasons: Counter[str] = Counter()
    prompt = cached = 0
    for one in decided:
        if one.outcome in (CacheOutcome.HIT, CacheOutcome.COALESCED):
            served[one.part] += one.requests
            saved += one.prompt_tokens + one.completion_tokens
        else:
            prompt, cached = prompt + one.prompt_tokens, cached + one.cached_tokens
        if one.outcome in (CacheOutcome.HIT, CacheOutcome.COALESCED, CacheOutcome.MISS):
            asked[one.part] += one.requests
        if one.outcome is not None:
            outcomes[one.outcome] += one.requests
        if one.outcome == CacheOutcome.BYPASS:
            reasons[one.reason or ""] += one.requests
    entries, held = sum(one.entries for one in answers), sum(one.bytes for one in answers)
    more = entries >= COUNTED_ANSWERS
    rates = [hit / all_ if all_ else None for hit, all_ in zip(served, asked, strict=True)]
    hits, coalesced = outcomes[CacheOutcome.HIT], outcomes[CacheOutcome.COALESCED]
    return CacheCard(
        stats=_cache_stats(hits, coalesced, outcomes[CacheOutcome.MISS], saved, (prompt, cached), rates),
        bypasses=[
            Share(_REASONS.get(reason, "not recorded"), count, count / reasons.total())  # type: ignore[call-overload]
            for reason, count in reasons.most_common()
        ],
        answers=answers,
        size=f"{'more than ' if more else ''}{plural(entries, 'answer')}, {size(held)}" if entries else "empty",
        outcomes=outcomes.total(),
    )


def _cache_stats(
    hits: int,
    coalesced: int,
    misses: int,
    saved: int,
    prompt_cache: tuple[int, int],
    rates: Sequence[float | None],
) -> Sequence[Stat]:
    asked = hits + coalesced + misses
    rate = (hits + coalesced) / asked if asked else None
    shown = Quantity("–", "") if rate is None else Quantity(percent(rate).removesuffix(" %"), "%")
    context = f"of {plural(asked, 'request')} that looked" if asked else "no request looked for an answer"
    prompt, cached = prompt_cache
    share = Quantity(percent(cached / prompt).removesuffix(" %"), "%") if prompt else Quantity("–", "")
    badge = Badge(f"{compact(hits)} stored", "route") if hits else None
    running = Badge(f"{compact(coalesced)} coalesced", "route") if coalesced else None
    return (
        Stat("Answered from the cache", shown, context, badge, "route", rates),
        Stat("Hits", Quantity(number(hits), "requests"), f"{plural(misses, 'miss', 'misses')}", None, "route", ()),
        Stat(
            "Coalesced",
            Quantity(number(coalesced), "requests"),
            "got the answer of an identical one that was running",
            running,
            "route",
            (),
        ),
        Stat(
            "Not generated again",
            Quantity(compact(saved), "tokens"),
            f"prompt caches held {share.number} {share.unit} of the other prompts".replace("– ", "nothing "),
            None,
            "route",
            (),
        ),
    )
