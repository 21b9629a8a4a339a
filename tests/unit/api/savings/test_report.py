"""The savings report: what it counts as saved, and what it compares with."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from api.savings.report import MIN_REQUESTS, Tokens, compute
from api.savings.schemas import EXAMPLE, SavingsView
from api.savings.store import Amounts, UsageRow

DAY, NEXT = date(2026, 11, 28), date(2026, 11, 29)
BASELINES = {"auto": "large"}


def row(
    model: str,
    requests: int,
    prompt: int,
    cached: int,
    completion: int,
    *,
    route: str | None = "auto",
    outcome: str | None = None,
    day: date = DAY,
    kind: str | None = None,
    **amounts: Any,
) -> UsageRow:
    dollars = {name: None if amount is None else Decimal(amount) for name, amount in amounts.items()}
    return UsageRow(day, model, route, outcome, requests, prompt, cached, completion, kind, Amounts(**dollars))


def test_a_route_is_compared_with_one_cached_model() -> None:
    usage = [row("small", 70, 300, 60, 110), row("large", 30, 200, 80, 90)]
    (route,) = compute(usage, BASELINES).routes
    assert route.models == {"large": Tokens(30, 200, 80, 90), "small": Tokens(70, 300, 60, 110)}
    # The larger share that a model had cached, 40 %, for all prompts.
    assert route.expected == Tokens(100, 500, 200, 200)
    assert route.saved == Tokens(70, 300, 120, 110)


def test_a_model_with_few_requests_says_nothing_about_caching() -> None:
    usage = [row("small", 70, 300, 30, 110), row("large", MIN_REQUESTS - 1, 100, 90, 90)]
    (route,) = compute(usage, BASELINES).routes
    assert route.expected == Tokens(89, 400, 120, 200)
    assert route.saved == Tokens(70, 300, 30, 110)


def test_a_baseline_that_answered_nothing_or_everything() -> None:
    (route,) = compute([row("small", 5, 50, 10, 20)], BASELINES).routes
    assert route.expected == route.saved == Tokens(5, 50, 10, 20)
    (route,) = compute([row("large", 5, 50, 10, 20)], BASELINES).routes
    assert route.saved == Tokens()
    (route,) = compute([row("large", 5, 0, 0, 0)], BASELINES).routes
    assert route.saved == Tokens()


def test_a_route_that_is_not_declared_any_more() -> None:
    (route,) = compute([row("small", 5, 50, 10, 20, route="old")], BASELINES).routes
    assert (route.route, route.baseline, route.expected, route.saved) == ("old", None, None, None)
    assert route.models == {"small": Tokens(5, 50, 10, 20)}


def baseline(input_: str | None = "5", cached: str | None = "1", output: str | None = "3") -> dict[str, Any]:
    return {"baseline_input": input_, "baseline_cached_input": cached, "baseline_output": output}


def test_a_route_saves_what_its_baseline_would_have_been_charged_more() -> None:
    usage = [
        row("small", 70, 300, 60, 110, charge="1", **baseline("3", "0.6", "11")),
        row("large", 30, 200, 80, 90, charge="9.25", **baseline("2", "0.4", "9")),
    ]
    (route,) = compute(usage, BASELINES).routes
    # 40 % of the input in its cache.
    assert (route.charge, route.expected_usd) == (Decimal("10.25"), Decimal("3") + Decimal("0.4") + 20)
    assert route.saved_usd == Decimal("13.15")


def test_a_baseline_that_would_have_cost_less() -> None:
    (route,) = compute([row("small", 5, 50, 10, 20, charge="10", **baseline())], BASELINES).routes
    assert route.saved_usd == Decimal("4") + Decimal("0.2") + 3 - 10 < 0


@pytest.mark.parametrize("unknown", ["charge", "baseline_input", "baseline_cached_input", "baseline_output"])
def test_a_part_without_a_price_leaves_what_a_route_has_saved_unknown(unknown: str) -> None:
    known: dict[str, Any] = {"charge": "1", **baseline()}
    usage = [row("small", 5, 50, 10, 20, **known), row("small", 1, 5, 1, 2, day=NEXT, **{**known, unknown: None})]
    (route,) = compute(usage, BASELINES).routes
    assert route.saved_usd is None
    assert route.saved == Tokens(6, 55, 11, 22), "the tokens are known"


def test_a_baseline_without_cached_input_needs_no_price_for_it() -> None:
    (route,) = compute([row("small", 5, 50, 0, 20, charge="2", **baseline(cached=None))], BASELINES).routes
    assert (route.expected_usd, route.saved_usd) == (Decimal(8), Decimal(6))


def test_what_caches_have_saved_in_dollars() -> None:
    usage = [
        row("small", 3, 30, 12, 15, outcome="HIT", saved="0.5"),
        row("large", 3, 30, 12, 15, outcome="HIT", saved="0.25"),
        row("large", 2, 20, 8, 10, outcome="COALESCED", saved=None),
        row("large", 4, 40, 8, 20, outcome="BYPASS", prompt_cache="0.125"),
        row("small", 4, 40, 8, 20, kind="summary", prompt_cache=None),
    ]
    savings = compute(usage, {})
    assert savings.response_cache_usd == Decimal("0.75")
    assert savings.coalescing_usd is None
    assert savings.prompt_cache_usd == Decimal("0.125"), "a summary is none of the requests of clients"
    nothing = compute([], {})
    assert {nothing.response_cache_usd, nothing.coalescing_usd, nothing.prompt_cache_usd} == {Decimal(0)}


def test_hits_and_coalesced_requests_are_saved_once() -> None:
    usage = [
        row("small", 10, 100, 40, 50, outcome="MISS"),
        row("small", 3, 30, 12, 15, outcome="HIT"),
        row("large", 2, 20, 8, 10, outcome="COALESCED"),
        row("large", 4, 40, 0, 20, outcome="BYPASS", route=None),
        row("small", 1, 10, 0, 5, route=None, day=NEXT),
    ]
    savings = compute(usage, BASELINES)
    assert savings.response_cache == {"small": Tokens(3, 30, 12, 15)}
    assert savings.coalescing == {"large": Tokens(2, 20, 8, 10)}
    assert savings.answered == Tokens(20, 200, 60, 100)
    assert savings.generated == Tokens(15, 150, 40, 75)
    (route,) = savings.routes
    assert route.models == {"small": Tokens(10, 100, 40, 50)}
    assert savings.prompt_cache == {"large": Tokens(4, 40, 0, 20), "small": Tokens(11, 110, 40, 55)}
    assert savings.prompt_cache_by_day["small"] == {DAY: Tokens(10, 100, 40, 50), NEXT: Tokens(1, 10, 0, 5)}


def test_only_requests_of_clients_are_answered() -> None:
    usage = [
        row("small", 10, 100, 40, 50, route=None),
        row("small", 2, 500, 0, 30, route=None, kind="summary"),
        row("large", 7, 70, 0, 0, route=None, kind="count_tokens"),
    ]
    savings = compute(usage, BASELINES)
    assert savings.answered == savings.generated == Tokens(10, 100, 40, 50)
    assert savings.prompt_cache == {"small": Tokens(10, 100, 40, 50)}
    assert savings.summaries == {"small": Tokens(2, 500, 0, 30)}


@pytest.mark.parametrize(("cached", "said"), [(0, True), (1, False)])
def test_the_report_says_if_no_model_reports_cached_tokens(cached: int, said: bool) -> None:
    now = datetime.now(UTC)
    usage = [row("small", 70, 300, 0, 110), row("large", 30, 200, cached, 90), row("other", 1, 9, 9, 9, outcome="HIT")]
    view = SavingsView.of(7, now, now, compute(usage, BASELINES))
    (route,) = view.routes
    assert [note is not None for note in (route.note, view.prompt_cache.note)] == [said, said]


def test_nothing() -> None:
    savings = compute([], BASELINES)
    now = datetime.now(UTC)
    view = SavingsView.of(7, now, now, savings)
    assert view.answered.requests == view.response_cache.requests == view.prompt_cache.cached_tokens == 0
    assert not view.routes
    assert not view.prompt_cache.models
    assert view.prompt_cache.note is None


def test_the_example_is_a_report() -> None:
    """Its numbers are what the code computes, so that readers can follow them."""
    day = DAY
    # Of a million tokens: $5 for input of `large`, $0.50 if it is cached, $15 for output; `small` costs a tenth.
    usage = [
        row(
            "large", 300, 200_000, 80_000, 90_000, day=day, charge="1.99", prompt_cache="0.36",
            **baseline("1", "0.1", "1.35"),
        ),
        row(
            "small", 700, 300_000, 70_000, 110_000, day=day, charge="0.2835", prompt_cache="0.0315",
            **baseline("1.5", "0.15", "1.65"),
        ),
        row("small", 150, 90_000, 30_000, 30_000, outcome="HIT", day=day, saved="0.0765"),
        row("large", 50, 20_000, 10_000, 10_000, outcome="COALESCED", day=day, saved="0.205"),
        row("small", 20, 60_000, 0, 8_000, route=None, kind="summary", day=day),
    ]  # fmt: skip
    view = SavingsView.of(
        7,
        datetime(2026, 11, 22, 9, tzinfo=UTC),
        datetime(2026, 11, 29, 9, tzinfo=UTC),
        compute(usage, BASELINES),
    )
    assert view.model_dump(mode="json") == EXAMPLE
