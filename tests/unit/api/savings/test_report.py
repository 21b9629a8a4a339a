"""The savings report: what it counts as saved, and what it compares with."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from api.savings.report import MIN_REQUESTS, Tokens, compute
from api.savings.schemas import EXAMPLE, SavingsView
from api.savings.store import UsageRow

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
) -> UsageRow:
    return UsageRow(day, model, route, outcome, requests, prompt, cached, completion, kind)


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
    usage = [
        row("large", 300, 200_000, 80_000, 90_000, day=day),
        row("small", 700, 300_000, 70_000, 110_000, day=day),
        row("small", 150, 90_000, 30_000, 30_000, outcome="HIT", day=day),
        row("large", 50, 20_000, 10_000, 10_000, outcome="COALESCED", day=day),
        row("small", 20, 60_000, 0, 8_000, route=None, kind="summary", day=day),
    ]
    view = SavingsView.of(
        7,
        datetime(2026, 11, 22, 9, tzinfo=UTC),
        datetime(2026, 11, 29, 9, tzinfo=UTC),
        compute(usage, BASELINES),
    )
    assert view.model_dump(mode="json") == EXAMPLE
