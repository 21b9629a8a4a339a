"""Computes savings from usage, in tokens, and in dollars as far as all prices are known.

What a route has saved is compared with one model that answers everything and has a prompt cache of its own. Compared
with the most expensive model and no cache, savings would look larger than they are: a conversation that changes its
model loses the first model's cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Self

from api.context.summaries import KIND as SUMMARY
from api.http.money import total_of
from api.savings.store import ANSWERED, UsageRow
from shared.domain.decisions import CacheOutcome

# Fewer requests say little about the share of their prompts that a cache can hold.
MIN_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class Tokens:
    """Requests, and their tokens. `cached_tokens` are a part of `prompt_tokens`."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, rows: Iterable[UsageRow]) -> Self:
        """The sum of rows."""
        found = list(rows)
        return cls(
            sum(row.requests for row in found),
            sum(row.prompt_tokens for row in found),
            sum(row.cached_tokens for row in found),
            sum(row.completion_tokens for row in found),
        )

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.cached_tokens - other.cached_tokens,
            self.completion_tokens - other.completion_tokens,
        )

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class RouteSavings:
    """A route: what its models answered, and what `baseline` would have had if it had answered everything.

    `expected` is that estimate, and `saved` the part that other models answered. All are None without a baseline. In
    dollars, `charge` is what the requests were charged, and `expected_usd` what they would have been; None if a part
    has no price.
    """

    route: str
    models: Mapping[str, Tokens]
    baseline: str | None
    expected: Tokens | None
    saved: Tokens | None
    charge: Decimal | None = None
    expected_usd: Decimal | None = None

    @property
    def saved_usd(self) -> Decimal | None:
        """What the route has saved; negative if the baseline would have cost less."""
        return None if self.charge is None or self.expected_usd is None else self.expected_usd - self.charge


@dataclass(frozen=True, slots=True)
class Savings:
    """The report. By model, in alphabetical order; `prompt_cache` also by day. No other member includes `summaries`.

    The members that end in `_usd` are dollars, and None if a part has no price.
    """

    answered: Tokens
    generated: Tokens
    routes: Sequence[RouteSavings]
    response_cache: Mapping[str, Tokens]
    coalescing: Mapping[str, Tokens]
    summaries: Mapping[str, Tokens]
    prompt_cache: Mapping[str, Tokens]
    prompt_cache_by_day: Mapping[str, Mapping[date, Tokens]]
    response_cache_usd: Decimal | None = None
    coalescing_usd: Decimal | None = None
    prompt_cache_usd: Decimal | None = None


def compute(usage: Sequence[UsageRow], baselines: Mapping[str, str]) -> Savings:
    """Compute the report. `baselines`: by route, the model to compare with."""
    summaries = [row for row in usage if row.kind == SUMMARY]
    usage = [row for row in usage if row.kind is None]
    hits = [row for row in usage if row.outcome == CacheOutcome.HIT]
    coalesced = [row for row in usage if row.outcome == CacheOutcome.COALESCED]
    generated = [row for row in usage if row.outcome not in ANSWERED]
    routed: defaultdict[str, list[UsageRow]] = defaultdict(list)
    for row in generated:
        if row.route is not None:
            routed[row.route].append(row)
    return Savings(
        answered=Tokens.of(usage),
        generated=Tokens.of(generated),
        routes=[_route(name, rows, baselines.get(name)) for name, rows in sorted(routed.items())],
        response_cache=_by_model(hits),
        coalescing=_by_model(coalesced),
        summaries=_by_model(summaries),
        prompt_cache=_by_model(generated),
        prompt_cache_by_day=_by_day(generated),
        response_cache_usd=total_of(row.amounts.saved for row in hits),
        coalescing_usd=total_of(row.amounts.saved for row in coalesced),
        prompt_cache_usd=total_of(row.amounts.prompt_cache for row in generated),
    )


def _route(name: str, rows: Sequence[UsageRow], baseline: str | None) -> RouteSavings:
    models, charge = _by_model(rows), total_of(row.amounts.charge for row in rows)
    if baseline is None:
        return RouteSavings(name, models, None, None, None, charge)
    total = Tokens.of(rows)
    # One model that answers everything finds at least as much in its cache as the best of several: none of its
    # conversations began elsewhere.
    shares = [found.cached_share for found in models.values() if found.requests >= MIN_REQUESTS]
    share = max(total.cached_share, *shares) if shares else total.cached_share
    expected = Tokens(total.requests, total.prompt_tokens, round(total.prompt_tokens * share), total.completion_tokens)
    saved = expected - models.get(baseline, Tokens())
    return RouteSavings(name, models, baseline, expected, saved, charge, _expected_usd(rows, expected))


def _expected_usd(rows: Sequence[UsageRow], expected: Tokens) -> Decimal | None:
    """What the baseline would have cost, with the share of its input in its prompt cache that is expected."""
    fresh = total_of(row.amounts.baseline_input for row in rows)
    output = total_of(row.amounts.baseline_output for row in rows)
    # A baseline from whose cache nothing is expected needs no price for that.
    cached = total_of(row.amounts.baseline_cached_input for row in rows) if expected.cached_tokens else Decimal(0)
    if fresh is None or cached is None or output is None:
        return None
    share = Decimal(expected.cached_tokens) / expected.prompt_tokens if expected.cached_tokens else Decimal(0)
    return fresh * (1 - share) + cached * share + output


def _by_model(rows: Iterable[UsageRow]) -> dict[str, Tokens]:
    grouped: defaultdict[str, list[UsageRow]] = defaultdict(list)
    for row in rows:
        grouped[row.model].append(row)
    return {model: Tokens.of(found) for model, found in sorted(grouped.items())}


def _by_day(rows: Iterable[UsageRow]) -> dict[str, dict[date, Tokens]]:
    grouped: defaultdict[str, defaultdict[date, list[UsageRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grouped[row.model][row.day].append(row)
    return {
        model: {day: Tokens.of(found) for day, found in sorted(days.items())} for model, days in sorted(grouped.items())
    }
