"""What the page of usage says about savings."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from api.console.usage.savings import savings_lines
from api.savings.report import RouteSavings, Savings, Tokens
from api.savings.schemas import UNCACHED_BASELINE

NOTHING = Savings(Tokens(), Tokens(), (), {}, {}, {}, {}, {})


def test_each_way_in_which_something_was_saved_has_a_line() -> None:
    assert savings_lines(NOTHING) == []
    saved = Tokens(7, 300, 120, 110)
    models = {"large": Tokens(3, 200, 80, 90), "small": saved}
    routes = (
        RouteSavings("auto", models, "large", Tokens(10, 500), saved, Decimal(2), Decimal(5)),
        RouteSavings("plain", {"small": saved, "x": Tokens()}, "x", saved, saved),
        RouteSavings("uncached", {"small": Tokens(1, 10)}, "x", Tokens(1, 10), Tokens(1, 10)),
        RouteSavings("gone", {"small": saved}, None, None, None),
    )
    found = replace(
        NOTHING,
        generated=Tokens(10, 500, 150, 200),
        routes=routes,
        response_cache={"a": Tokens(1, 10, 5, 20), "b": Tokens(2, 30, 0, 40)},
        coalescing={"a": Tokens(4, 1, 0, 2)},
        response_cache_usd=Decimal("0.5"),
        prompt_cache_usd=Decimal("0.25"),
    )
    auto, plain, uncached, gone, cache, equal, prompt = savings_lines(found)
    assert (auto.name, auto.how, auto.tokens) == ("Route auto", "answers of other models than large", saved)
    assert (auto.hint, plain.hint, uncached.hint) == ("", "", UNCACHED_BASELINE)
    assert gone.tokens is None
    assert cache.tokens == Tokens(3, 40, 5, 60)
    assert equal.tokens == Tokens(4, 1, 0, 2)
    assert prompt.tokens == Tokens(10, 150)
    # The price of an answer that an equal request got is not known, which is not 0.
    assert [line.dollars for line in (auto, plain, gone, cache, equal, prompt)] == [
        Decimal(3), None, None, Decimal("0.5"), None, Decimal("0.25"),
    ]  # fmt: skip
