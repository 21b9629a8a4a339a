"""Partial updates of a key's options."""

from __future__ import annotations

from typing import Any

import pytest

from api.admin.keys.schemas import ApiKeyUpdate
from api.http.members import Shape
from api.keys.changes import NEVER, changed_options
from shared.domain.answer_options import NO_KEY_OPTIONS, CacheOptions, ContextOptions, KeyOptions, TokenLimits
from shared.domain.errors import InvalidRequest
from tests.support.members import member_reader

FULL = KeyOptions(
    cache=CacheOptions(ttl=60, scope="user"),
    context=ContextOptions(strategy="summarize", model="small", trigger=0.9),
    token_limits=TokenLimits(max_output=100, max_input=10, on_exceed="clamp"),
)


def test_what_is_absent_remains() -> None:
    assert changed_options(FULL, {}) == FULL
    changed = changed_options(FULL, {"cache": {"ttl": 5}, "token_limits": {"max_input": 20}})
    assert changed.cache == CacheOptions(ttl=5, scope="user")
    assert changed.token_limits == TokenLimits(max_output=100, max_input=20, on_exceed="clamp")
    assert changed.context == FULL.context


def test_null_removes() -> None:
    changed = changed_options(FULL, {"cache": {"ttl": None}, "context": None, "token_limits": {"max_output": None}})
    assert changed.cache == CacheOptions(scope="user"), "a member has its default then"
    assert changed.context is None
    assert changed.token_limits == TokenLimits(max_input=10), "nothing can exceed a limit that is not there"
    assert changed_options(changed, {"token_limits": {"max_input": None}}).token_limits is None
    limited = changed_options(FULL, {"allowed_models": ["a"]})
    assert (limited.allowed_models, limited.cache) == (("a",), FULL.cache)
    assert changed_options(limited, {"allowed_models": None}) == FULL
    nothing = {"cache": None, "context": None, "token_limits": None, "no_cache": None}
    assert changed_options(FULL, nothing) == NO_KEY_OPTIONS


def test_using_the_cache_and_not_using_it_replace_each_other() -> None:
    off = changed_options(FULL, {"no_cache": True})
    assert (off.cache, off.no_cache) == (None, True)
    on = changed_options(off, {"cache": {}})
    assert (on.cache, on.no_cache) == (CacheOptions(), False)
    with pytest.raises(InvalidRequest) as raised:
        changed_options(FULL, {"no_cache": True, "cache": {"ttl": 1}})
    assert raised.value.param == "options.no_cache"


def test_a_model_belongs_to_the_strategy_that_it_was_set_with() -> None:
    assert changed_options(FULL, {"context": {"strategy": "sliding_window"}}).context == ContextOptions(
        strategy="sliding_window", trigger=0.9
    )


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({"token_limits": {"default_output": 101}}, "options.token_limits.default_output"),
        ({"token_limits": {"max_output": None, "on_exceed": "clamp"}}, "options.token_limits.on_exceed"),
        ({"context": {"target": 0.95}}, "options.context.target"),
        ({"context": {"strategy": "sliding_window", "model": "small"}}, "options.context.model"),
    ],
)
def test_an_error_names_the_field(patch: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        changed_options(FULL, patch)
    assert raised.value.param == param


def test_a_body_without_a_field_does_not_change_it() -> None:
    assert ApiKeyUpdate().changes().names() == []
    changes = ApiKeyUpdate.model_validate({"expires_in_s": None, "name": "web"}).changes()
    assert (changes.names(), changes.expires_in_s) == (["name", "expires_in_s"], NEVER)
    assert ApiKeyUpdate(expires_in_s=60).changes().expires_in_s == 60
    options = ApiKeyUpdate.model_validate({"options": None}).changes().options
    assert options is not None
    assert options(FULL) == NO_KEY_OPTIONS


@pytest.mark.parametrize("body", [{"name": None}, {"scopes": None}, {"scopes": []}, {"priority_floor": None}])
def test_what_a_key_must_have_cannot_be_removed(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(body))):
        ApiKeyUpdate.model_validate(body)


def test_a_patch_is_not_normalized_like_other_bodies() -> None:
    """Null and `{}` have a meaning, and a member that is misspelled would otherwise change nothing, silently."""
    patch: dict[str, Any] = {"expires_in_s": None, "options": {"cache": {}, "context": None}, "prioritty": 1}
    assert member_reader().read(Shape(ApiKeyUpdate), patch).body == patch
    with pytest.raises(ValueError, match="prioritty"):
        ApiKeyUpdate.model_validate(patch)
