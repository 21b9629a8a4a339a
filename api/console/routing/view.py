"""What the page of routing and the cache shows, from a sample of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from api.console.filters import Quantity, compact, duration, number, percent, plural, size
from api.console.overview.view import Stat
from api.console.routing.store import COUNTED_ANSWERS, SAMPLED, Answers, Decided
from shared.config.models.conditions import Conditions
from shared.config.models.loader import Registry
from shared.config.models.routes import BUDGET, COMPLEXITY, CONVERSATION, OTHERWISE, Route
from shared.domain.decisions import BypassReason, CacheOutcome

# Shades of the colour of decisions, for the models of a route.
SHADES = 5
_WHY = {
    COMPLEXITY: "the complexity of the request",
    OTHERWISE: "no rule applies",
    CONVERSATION: "the conversation keeps its model",
    BUDGET: "a budget has no room for the model that was chosen first",
}
_REASONS: Mapping[str, str] = {
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
    part_name: str,
    *,
    is_operator: bool,
) -> RoutingView:
    """The view of a sample of `parts` parts of the time, each a `part_name` long. Operators see what the rules say."""
    routed: dict[str, list[Decided]] = {route.name: [] for route in registry.routes}
    direct = 0
    for one in decided:
        if one.route is None:
            direct += one.requests
        else:
            routed.setdefault(one.route, []).append(one)
    known = {route.name: route for route in registry.routes}
    cards = [_route(name, known.get(name), found, parts, is_operator) for name, found in routed.items()]
    return RoutingView(_sample(decided, part_name), cards, direct, _cache(decided, answers, parts))


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


def _sample(decided: Sequence[Decided], part_name: str) -> str:
    by_part: Counter[int] = Counter()
    for one in decided:
        by_part[one.part] += one.requests
    total = sum(by_part.values())
    if not total:
        return "no requests"
    if max(by_part.values()) < SAMPLED:
        return f"all {plural(total, 'request')}" if total > 1 else "1 request"
    return f"a sample of {plural(total, 'request')}: the last {SAMPLED} of each {part_name}"


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
    counts = [Counter[str]() for _ in range(parts)]
    saved = [0] * parts
    reasons: Counter[str] = Counter()
    prompt = cached = 0
    for one in decided:
        if one.outcome is not None:
            counts[one.part][one.outcome] += one.requests
        if one.outcome in (CacheOutcome.HIT, CacheOutcome.COALESCED):
            saved[one.part] += one.prompt_tokens + one.completion_tokens
        else:
            prompt, cached = prompt + one.prompt_tokens, cached + one.cached_tokens
        if one.outcome == CacheOutcome.BYPASS:
            reasons[one.reason or ""] += one.requests
    entries, held = sum(one.entries for one in answers), sum(one.bytes for one in answers)
    more = "more than " if entries >= COUNTED_ANSWERS else ""
    return CacheCard(
        stats=_cache_stats(counts, saved, cached / prompt if prompt else None),
        bypasses=[
            Share(_REASONS.get(reason, "not recorded"), count, count / reasons.total())
            for reason, count in reasons.most_common()
        ],
        answers=answers,
        size=f"{more}{plural(entries, 'answer')}, {size(held)}" if entries else "empty",
    )


def _cache_stats(counts: Sequence[Counter[str]], saved: Sequence[int], prompt_cached: float | None) -> Sequence[Stat]:
    hits = [part[CacheOutcome.HIT] for part in counts]
    coalesced = [part[CacheOutcome.COALESCED] for part in counts]
    misses = sum(part[CacheOutcome.MISS] for part in counts)
    rates: list[float | None] = []
    for part, hit, joined in zip(counts, hits, coalesced, strict=True):
        looked = hit + joined + part[CacheOutcome.MISS]
        rates.append((hit + joined) / looked if looked else None)
    looked = sum(hits) + sum(coalesced) + misses
    rate = Quantity("–", "")
    if looked:
        rate = Quantity(percent((sum(hits) + sum(coalesced)) / looked).removesuffix(" %"), "%")
    others = "nothing else was generated"
    if prompt_cached is not None:
        others = f"prompt caches held {percent(prompt_cached)} of other prompts"
    context = f"of {plural(looked, 'request')} that looked" if looked else "no request looked for an answer"
    return (
        Stat("Hit rate", rate, context, None, "route", rates),
        Stat("Hits", _requests(sum(hits)), f"{plural(misses, 'miss', 'misses')}", None, "route", hits),
        Stat("Coalesced", _requests(sum(coalesced)), "joined an identical running request", None, "route", coalesced),
        Stat("Not generated again", Quantity(compact(sum(saved)), "tokens"), others, None, "route", saved),
    )


def _requests(count: int) -> Quantity:
    return Quantity(number(count), "request" if count == 1 else "requests")
