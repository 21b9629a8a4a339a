"""What the page of routing and the cache says about a sample of requests."""

from __future__ import annotations

from typing import Any

import pytest

from api.console.routing.store import COUNTED_ANSWERS, SAMPLED, Answers, Decided
from api.console.routing.view import RoutingView, build_view, conditions_text, why
from shared.config.models.conditions import Conditions
from shared.config.models.loader import Registry
from shared.config.models.routes import Route, Rule

ROUTE = Route(
    name="auto",
    models=("small", "large"),
    rules=(Rule.model_validate({"name": "law", "if": {"keywords": ["contract"]}, "model": "large"}),),
)


def decided(model: str = "small", requests: int = 1, part: int = 0, **values: Any) -> Decided:
    defaults: dict[str, Any] = {
        "route": "auto",
        "rule": "complexity",
        "mode": None,
        "skipped": False,
        "moved": False,
        "outcome": None,
        "reason": None,
    }
    return Decided(part=part, model=model, requests=requests, **{**defaults, **values})


def view(*found: Decided, answers: tuple[Answers, ...] = (), operator: bool = True) -> RoutingView:
    return build_view(found, answers, Registry({}, (ROUTE,)), 4, "half hour", is_operator=operator)


def test_the_shares_of_models() -> None:
    (route,) = view(decided("small", 3), decided("large", 1, rule="law"), decided("small", 5, route=None)).routes
    assert [(model.name, model.requests, model.share) for model in route.models] == [
        ("small", 3, 0.75),
        ("large", 1, 0.25),
    ]
    assert route.requests == 4
    assert [(rule.name, rule.requests, rule.models) for rule in route.rules] == [
        ("law", 1, "large"),
        ("complexity", 3, "small"),
    ]


def test_rules_that_never_decided_are_listed_too() -> None:
    (route,) = view().routes
    assert [(rule.name, rule.requests, rule.share) for rule in route.rules] == [("law", 0, 0)]


def test_a_route_and_models_that_the_file_has_no_more() -> None:
    first, second = view(decided("gone"), decided("x", route="old", rule="r")).routes
    assert [model.name for model in first.models] == ["small", "large", "gone"]
    assert (second.name, second.description) == ("old", "models.yaml no longer has this route")
    assert second.rules[0].why == "a rule that models.yaml no longer has"


def test_kept_skipped_and_moved() -> None:
    (route,) = view(
        decided(requests=2, rule="conversation"),
        decided(requests=3, skipped=True),
        decided(requests=4, moved=True, mode="cost"),
    ).routes
    assert (route.kept, route.skipped, route.moved, route.modes) == (2, 3, 4, [("cost", 4)])


def test_the_columns_stack_the_models() -> None:
    (route,) = view(decided("small", 3, part=1), decided("large", 1, part=1)).routes
    assert route.columns == [[], [(0.0, 0.75, 0), (0.75, 0.25, 1)], [], []]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((), "no requests"),
        ((1,), "1 request"),
        ((3, 4), "all 7 requests"),
        ((SAMPLED, 2), f"a sample of {SAMPLED + 2} requests: the last {SAMPLED} of each half hour"),
    ],
)
def test_the_sample_says_its_size(counts: tuple[int, ...], text: str) -> None:
    assert view(*(decided(requests=count, part=part) for part, count in enumerate(counts))).sample == text


def test_the_cache() -> None:
    found = view(
        decided(requests=2, outcome="HIT", prompt_tokens=10, completion_tokens=5, part=0),
        decided(requests=1, outcome="COALESCED", prompt_tokens=4, completion_tokens=1, part=1),
        decided(requests=3, outcome="MISS", prompt_tokens=50, cached_tokens=25, part=1),
        decided(requests=3, outcome="BYPASS", reason="no_store"),
        decided(requests=1, outcome="BYPASS"),
        answers=(Answers("small", 3, 2048, 7),),
    ).cache
    rate, hits, coalesced, saved = found.stats
    assert (rate.quantity, rate.context) == (("50", "%"), "of 6 requests that looked")
    assert list(rate.trend) == [1, 0.25, None, None]
    assert (hits.quantity, hits.context) == (("2", "requests"), "3 misses")
    assert coalesced.quantity == ("1", "request")
    assert (saved.quantity, saved.context) == (("20", "tokens"), "prompt caches held 50 % of other prompts")
    assert [(one.name, one.requests) for one in found.bypasses] == [
        ("the request does not want its answer to be stored", 3),
        ("not recorded", 1),
    ]
    assert found.size == "3 answers, 2.0 KiB"


def test_an_empty_cache() -> None:
    found = view().cache
    assert (found.stats[0].quantity, found.size, found.bypasses) == (("–", ""), "empty", [])


def test_a_large_cache_is_counted_up_to_a_limit() -> None:
    found = view(answers=(Answers("small", COUNTED_ANSWERS, 1024**3, 0),)).cache
    assert found.size == "more than 20,000 answers, 1.0 GiB"


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ({}, "every request"),
        ({"tools": True}, "has tools"),
        ({"structured_output": False}, "has no structured output"),
        ({"input_tokens_over": 6000}, "more than 6,000 tokens"),
        ({"input_tokens_under": 10, "tier": ["free"]}, "fewer than 10 tokens and tier free"),
        ({"keywords": ["a", "b", "c", "d", "e", "f"]}, "says a, b, c, d, e, …"),
        ({"predicted_wait_over_s": 2, "of": "large"}, "would wait more than 2.0 s for large"),
    ],
)
def test_conditions_in_words(conditions: dict[str, Any], text: str) -> None:
    assert conditions_text(Conditions.model_validate(conditions)) == text


def test_what_a_rule_says_is_for_operators() -> None:
    assert why("law", ROUTE) == "says contract"
    assert why("law", ROUTE, is_operator=False) == "a rule of the route"
    assert why("complexity", ROUTE, is_operator=False) == "the complexity of the request"
