"""What the page of usage says about savings: lines of a table. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from api.savings.report import RouteSavings, Savings, Tokens
from api.savings.schemas import UNCACHED_BASELINE


@dataclass(frozen=True, slots=True)
class SavingsLine:
    """What was saved in one way. `tokens` and `dollars` are None if they are not known; `hint` explains the numbers."""

    name: str
    how: str
    tokens: Tokens | None
    dollars: Decimal | None
    hint: str = ""


def savings_lines(savings: Savings) -> Sequence[SavingsLine]:
    """The lines of a report; none about what is not in use."""
    lines = [_route(found) for found in savings.routes]
    by_cache = (
        ("Response cache", "answers that were kept", savings.response_cache, savings.response_cache_usd),
        (
            "Identical requests", "answers of equal requests that were running", savings.coalescing,
            savings.coalescing_usd,
        ),
    )  # fmt: skip
    for name, how, found, dollars in by_cache:
        if found:
            lines.append(SavingsLine(name, how, _sum(found), dollars))
    generated = savings.generated
    if generated.cached_tokens:
        read = Tokens(generated.requests, generated.cached_tokens)
        how = "input that models had not to compute again"
        lines.append(SavingsLine("Prompt caches", how, read, savings.prompt_cache_usd))
    return lines


def _route(found: RouteSavings) -> SavingsLine:
    name = f"Route {found.route}"
    if found.saved is None:
        return SavingsLine(name, "models.yaml has no model to compare it with", None, None)
    is_uncached = not any(tokens.cached_tokens for tokens in found.models.values())
    how = f"answers of other models than {found.baseline}"
    return SavingsLine(name, how, found.saved, found.saved_usd, UNCACHED_BASELINE if is_uncached else "")


def _sum(by_model: Mapping[str, Tokens]) -> Tokens:
    found = by_model.values()
    return Tokens(
        sum(tokens.requests for tokens in found),
        sum(tokens.prompt_tokens for tokens in found),
        sum(tokens.cached_tokens for tokens in found),
        sum(tokens.completion_tokens for tokens in found),
    )
