"""Which regular expressions are accepted: those that take linear time."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.domain.linear_patterns import MAX_PATTERN, compile_linear
from shared.domain.redaction_rules import OwnRule, RedactionRules


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [
        (r"\bE-[0-9]{6}\b", (8, 8)),
        ("(?i)invoice [0-9]{4,10}", (12, 18)),
        ("(?:Dr|Prof)[.]? [A-Z][a-z]{1,30}", (5, 37)),
        (r"(?:[0-9]{3}-){2}[0-9]{4}", (12, 12)),
        (r"\w{1,20}\.internal", (10, 29)),
    ],
)
def test_linear_patterns_are_compiled(pattern: str, lengths: tuple[int, int]) -> None:
    linear = compile_linear(pattern)
    assert (linear.shortest, linear.longest) == lengths


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a+", "without an upper bound; write {1,64}"),
        ("[a-z]*b", "without an upper bound"),
        ("a{3,}", "without an upper bound"),
        ("(a{1,9}){1,9}", "nested quantifiers"),
        ("(a|ab){2,9}", "nested quantifiers"),
        ("(?:a?){9}", "nested quantifiers"),
        (r"(a)\1", "reference to a group"),
        ("(?P<x>a)(?P=x)", "reference to a group"),
        ("(?=a)a", "looks ahead"),
        ("(?<!a)a", "looks ahead or behind"),
        ("^a", "anywhere in a text"),
        ("a$", "anywhere in a text"),
        ("a{0,9}", "empty text"),
        ("a{0,99}b{0,99}c{0,99}d", "steps at each position"),
        ("a{4000}b{4000}", "more than 4096 characters"),
        ("(?s)a.b", "no flag but (?i)"),
        ("a(?i:b)", "no flags inside"),
        ("(?>a)b", "not supported"),
        ("a++", "not supported"),
        ("(", "not a valid regular expression"),
        ("a" * (MAX_PATTERN + 1), "at most"),
    ],
)
def test_others_are_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        compile_linear(pattern)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ({"own": [{"name": "a", "pattern": "(a{1,9}){1,9}"}]}, ("own", 0, "pattern")),
        ({"own": [{"name": "a"}]}, ("own", 0)),
        ({"own": [{"name": "a", "words": ["ab"], "pattern": "ab"}]}, ("own", 0)),
        ({"own": [{"name": "card", "words": ["ab"]}]}, ("own", 0, "name")),
        ({"own": [{"name": "A b", "words": ["ab"]}]}, ("own", 0, "name")),
        ({"own": [{"name": "a", "words": ["ab"]}, {"name": "a", "words": ["cd"]}]}, ()),
        ({"phone_regions": ["XX"]}, ("phone_regions", 0)),
        ({"kinds": ["cards"]}, ("kinds", 0)),
        ({"unknown": 1}, ("unknown",)),
    ],
)
def test_invalid_rules_are_refused(rules: dict[str, object], where: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        RedactionRules.model_validate(rules)
    assert caught.value.errors()[0]["loc"] == where


def test_rules_are_stored_as_json() -> None:
    rules = RedactionRules(own=(OwnRule(name="a", words=("ab",)),), phone_regions=("DE",))
    assert RedactionRules.model_validate(rules.model_dump(mode="json")) == rules
