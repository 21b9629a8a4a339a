"""Which limits apply to a request."""

from __future__ import annotations

from typing import Any

import pytest

from api.limits.rules import Allowance, Limit, LimitBook, LimitScope, Measure
from shared.domain.owner import Owner

RPM, TPM = Measure.REQUESTS, Measure.TOKENS
BOTH = (RPM, TPM)


def limit(number: int, *, project: int | None = 1, soft: bool = False, **fields: Any) -> Limit:
    values = {Measure(name): fields.pop(name) for name in list(fields) if name in set(Measure)}
    scope = {"key_id": None, "end_user": None, "model": None} | fields
    return Limit(project, allowances={name: Allowance(value, soft, number) for name, value in values.items()}, **scope)


def found(book: LimitBook, owner: Owner, model: str = "m") -> set[tuple[int, str, int]]:
    return {(rule.limit_id, rule.measure.value, rule.value) for rule in book.rules(owner, model, BOTH)}


def test_without_limits_nothing_applies() -> None:
    assert LimitBook().rules(Owner(1, 1), "m", BOTH) == ()


def test_limits_of_all_scopes_apply() -> None:
    book = LimitBook(
        [
            limit(1, requests_per_minute=100),
            limit(2, key_id=5, requests_per_minute=50),
            limit(3, end_user="ann", tokens_per_minute=9),
            limit(4, model="large", requests_per_minute=3),
            limit(5, key_id=5, model="large", requests_per_minute=2),
            limit(6, project=2, requests_per_minute=1),
        ]
    )
    of_project = (1, RPM.value, 100)
    assert found(book, Owner(1, 1)) == {of_project}
    assert found(book, Owner(1, 5)) == {of_project, (2, RPM.value, 50)}
    assert found(book, Owner(1, 1, "ann")) == {of_project, (3, TPM.value, 9)}
    assert found(book, Owner(1, 5), "large") == {
        of_project,
        (2, RPM.value, 50),
        (4, RPM.value, 3),
        (5, RPM.value, 2),
    }
    assert found(book, Owner(3, 1)) == set()


def test_a_projects_values_replace_the_defaults() -> None:
    book = LimitBook(
        [
            limit(1, project=None, requests_per_minute=10, tokens_per_minute=1000),
            limit(2, project=1, requests_per_minute=500),
            limit(3, project=None, model="large", requests_per_minute=1),
        ]
    )
    assert found(book, Owner(1, 1)) == {(2, RPM.value, 500), (1, TPM.value, 1000)}
    assert found(book, Owner(2, 1), "large") == {(1, RPM.value, 10), (1, TPM.value, 1000), (3, RPM.value, 1)}
    book.replace([])
    assert found(book, Owner(1, 1)) == set()


def test_a_named_end_user_replaces_each() -> None:
    book = LimitBook(
        [
            limit(1, end_user="*", requests_per_minute=10, tokens_per_minute=100),
            limit(2, end_user="ann", requests_per_minute=99),
            limit(3, end_user="bob", model="large", requests_per_minute=1),
        ]
    )
    assert found(book, Owner(1, 1, "ann")) == {(2, RPM.value, 99), (1, TPM.value, 100)}
    assert found(book, Owner(1, 1, "eve")) == {(1, RPM.value, 10), (1, TPM.value, 100)}
    assert found(book, Owner(1, 1, "bob"), "large") == {(1, RPM.value, 10), (1, TPM.value, 100), (3, RPM.value, 1)}
    windows = {
        user: {rule.scope.window_key(RPM) for rule in book.rules(Owner(1, 1, user), "m", (RPM,))}
        for user in ("ann", "eve", None)
    }
    assert len(set.union(*windows.values())) == 3, "each has a window, and one is of all requests without end user"


@pytest.mark.parametrize(
    "scope",
    [
        LimitScope(12),
        LimitScope(12, key_id=3),
        LimitScope(12, per_user=True, end_user="x" * 512),
        LimitScope(12, per_user=True, end_user="a:b} {\ud800"),
        LimitScope(12, model="m"),
    ],
)
def test_keys_of_windows_are_short_and_in_one_slot(scope: LimitScope) -> None:
    names = {scope.window_key(measure) for measure in BOTH}
    assert len(names) == 2
    for name in names:
        assert name.startswith("hr:rate:{12}")
        assert len(name) < 80
        assert name.count("}") == 1


def test_soft_is_kept_by_value() -> None:
    book = LimitBook(
        [limit(1, project=None, tokens_per_minute=5), limit(2, project=1, soft=True, requests_per_minute=9)]
    )
    rules = {rule.measure: rule.soft for rule in book.rules(Owner(1, 1), "m", BOTH)}
    assert rules == {RPM: True, TPM: False}
