"""The forms and the list of keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.console.actions import Form
from api.console.keys.view import (
    FormInvalid,
    form_of,
    key_line,
    key_to_change,
    key_to_create,
    level_to_change,
    project_to_create,
    rotation,
)
from api.keys.changes import NEVER
from api.keys.principal import Scope
from api.keys.store import ApiKey
from shared.domain.answer_options import CacheOptions, ContextOptions, KeyOptions, TokenLimits
from shared.domain.log_level import LogLevel
from shared.domain.project_options import ProjectOptions

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def form(scopes: tuple[str, ...] = ("inference",), **values: str) -> Form:
    return Form({name.replace("__", "."): value for name, value in values.items()}, {"scopes": scopes})


def test_a_plain_key() -> None:
    body = key_to_create(form(name="web"))
    assert (body.name, body.project, body.scopes, body.expires_in_s) == ("web", None, [Scope.INFERENCE], None)
    assert body.priority_floor == 3
    assert body.options is not None
    options = body.options.options()
    assert (options.cache, options.no_cache, options.context, options.token_limits) == (None, False, None, None)


def test_a_key_with_everything() -> None:
    body = key_to_create(
        form(
            ("inference", "admin"),
            name="web",
            project="shop",
            expires_in_s="90d",
            priority_floor="0",
            options__allowed_models="small, auto",
            options__token_limits__max_output="512",
            options__token_limits__max_input="8000",
            options__token_limits__default_output="100",
            options__token_limits__on_exceed="clamp",
            cache="on",
            options__cache__ttl="2h",
            options__cache__scope="user",
            options__context__strategy="summarize",
            options__context__model="small",
            options__context__trigger="0.7",
            options__context__target=".3",
            options__context__trigger_tokens="4000",
            options__log_level="redacted",
        )
    )
    assert (body.project, body.expires_in_s, body.priority_floor) == ("shop", 90 * 86400, 0)
    assert body.scopes == [Scope.INFERENCE, Scope.ADMIN]
    assert body.options is not None
    assert body.options.token_limits == TokenLimits(
        max_output=512, max_input=8000, default_output=100, on_exceed="clamp"
    )
    assert body.options.options().allowed_models == ("small", "auto")
    assert body.options.log_level is LogLevel.REDACTED
    assert body.options.cache == CacheOptions(ttl=7200, scope="user")
    assert body.options.context == ContextOptions(
        strategy="summarize", model="small", trigger=0.7, target=0.3, trigger_tokens=4000
    )


KEY = ApiKey(
    id="key_7", name="web", prefix="hr_1a2b", project="shop", scopes=(Scope.INFERENCE,), priority_floor=5,
    created_at=NOW, expires_at=None, revoked_at=None, last_used_at=None, options=None, tier=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        KeyOptions(),
        KeyOptions(no_cache=True, token_limits=TokenLimits(max_input=5)),
        KeyOptions(cache=CacheOptions(), context=ContextOptions()),
        KeyOptions(
            cache=CacheOptions(ttl=5400, scope="key"),
            context=ContextOptions(strategy="summarize", model="small", trigger=0.7, trigger_tokens=9),
            token_limits=TokenLimits(max_output=9, default_output=3, on_exceed="clamp"),
            allowed_models=("small", "team/a:1"),
            log_level=LogLevel.NONE,
        ),
    ],
)
def test_a_form_that_is_saved_unchanged_changes_nothing(options: KeyOptions) -> None:
    body = key_to_change(form_of(KEY, options), is_own=False)
    changes = body.changes()
    assert (changes.name, changes.scopes, changes.priority_floor) == ("web", [Scope.INFERENCE], 5)
    assert changes.expires_in_s is None
    assert changes.options is not None
    assert changes.options(options) == options


def test_a_form_removes_what_was_cleared() -> None:
    options = KeyOptions(cache=CacheOptions(ttl=60), token_limits=TokenLimits(max_output=9))
    cleared = form_of(KEY, options)
    cleared = Form({**cleared.values, "options.token_limits.max_output": "", "cache": ""}, cleared.lists)
    changes = key_to_change(cleared, is_own=False).changes()
    assert changes.options is not None
    assert changes.options(options) == KeyOptions()


def test_a_level_is_removed_only_by_its_field() -> None:
    """A page that was opened before an upgrade has none: saving it must not let the log keep more."""
    options = KeyOptions(log_level=LogLevel.NONE)
    filled = form_of(KEY, options)
    removed = Form({**filled.values, "options.log_level": ""}, filled.lists)
    without = {name: value for name, value in filled.values.items() if name != "options.log_level"}
    for sent, level in ((removed, None), (Form(without, filled.lists), LogLevel.NONE)):
        changes = key_to_change(sent, is_own=False).changes()
        assert changes.options is not None
        assert changes.options(options).log_level is level


def test_a_key_that_never_expires_again() -> None:
    filled = form_of(KEY, KeyOptions())
    changes = key_to_change(Form({**filled.values, "expires_in_s": "never"}, filled.lists), is_own=False).changes()
    assert changes.expires_in_s == NEVER


def test_the_key_of_the_session_keeps_its_rights() -> None:
    with pytest.raises(FormInvalid) as raised:
        key_to_change(form_of(KEY, KeyOptions()), is_own=True)
    assert set(raised.value.errors) == {"scopes"}


def test_fields_of_what_is_off_are_ignored() -> None:
    """A browser sends all fields of a form, also those beside a choice that makes them moot."""
    body = key_to_create(
        form(name="web", cache="off", options__cache__ttl="1h", options__context__model="small",
             options__token_limits__on_exceed="clamp")
    )  # fmt: skip
    assert body.options is not None
    assert (body.options.cache, body.options.no_cache) == (None, True)
    assert (body.options.context, body.options.token_limits) == (None, None)


@pytest.mark.parametrize("text", ["90", "1.5d", "-1d", "d", "∞d", "1w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(FormInvalid) as raised:
        key_to_create(form(name="web", expires_in_s=text))
    assert raised.value.errors == {"expires_in_s": "Must be a duration such as 90d, 24h, 30m or 45s."}


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "²", "9999999999"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(FormInvalid) as raised:
        key_to_create(form(name="web", options__token_limits__max_input=text))
    assert list(raised.value.errors) == ["options.token_limits.max_input"]


def test_a_rotation() -> None:
    assert rotation(form(overlap_s="1h", expires_in_s=""), is_own=True).overlap_s == 3600
    assert rotation(form(overlap_s="0s"), is_own=False).overlap_s == 0
    assert rotation(form(), is_own=True).overlap_s == 24 * 3600
    with pytest.raises(FormInvalid) as raised:
        rotation(form(overlap_s="now", expires_in_s="0s"), is_own=False)
    assert set(raised.value.errors) == {"overlap_s", "expires_in_s"}


def test_the_key_of_the_session_lasts_until_the_new_one_was_shown() -> None:
    with pytest.raises(FormInvalid) as raised:
        rotation(form(overlap_s="59s"), is_own=True)
    assert set(raised.value.errors) == {"overlap_s"}
    assert rotation(form(overlap_s="1m"), is_own=True).overlap_s == 60


def test_a_project() -> None:
    assert project_to_create(form(name="shop", tier="")).tier is None
    with pytest.raises(FormInvalid) as raised:
        project_to_create(form(name="", tier="two words"))
    assert set(raised.value.errors) == {"name", "tier"}


@pytest.mark.parametrize("level", [None, *LogLevel])
def test_the_level_of_a_project(level: LogLevel | None) -> None:
    sent = form(name="shop", options__log_level=level or "")
    assert project_to_create(sent).project_options().log_level is level
    rules = {"phone_regions": ["DE"]}
    stored = ProjectOptions(log_level=LogLevel.METADATA, redaction=rules)
    changes = level_to_change(sent).changes()
    assert changes.options is not None
    assert changes.options(stored) == ProjectOptions(log_level=level, redaction=rules), "its rules remain"
    assert changes.names() == ["options"], "its tier does"


def test_an_unknown_level_is_an_error_of_its_field() -> None:
    for build in (project_to_create, level_to_change):
        with pytest.raises(FormInvalid) as raised:
            build(form(name="shop", options__log_level="some"))
        assert raised.value.errors == {"options.log_level": "Must be one of none, metadata, redacted, full."}


def key(**values: Any) -> ApiKey:
    defaults: dict[str, Any] = {
        "id": "key_1",
        "name": "web",
        "prefix": "hr_1",
        "project": "shop",
        "scopes": (Scope.INFERENCE,),
        "priority_floor": 3,
        "created_at": NOW,
        "expires_at": None,
        "revoked_at": None,
        "last_used_at": None,
        "options": None,
        "tier": None,
    }
    return ApiKey(**{**defaults, **values})


@pytest.mark.parametrize(
    ("values", "state", "valid"),
    [
        ({}, "valid", True),
        ({"expires_at": NOW + timedelta(days=8)}, "valid", True),
        ({"expires_at": NOW + timedelta(days=6)}, "expires soon", True),
        ({"expires_at": NOW}, "expired", False),
        ({"revoked_at": NOW}, "revoked", False),
        ({"expires_at": NOW, "revoked_at": NOW}, "revoked", False),
    ],
)
def test_the_state_of_a_key(values: dict[str, Any], state: str, valid: bool) -> None:
    line = key_line(key(**values), NOW, "key_2")
    assert (line.state.text, line.is_valid, line.is_own) == (state, valid, False)


def test_the_key_of_the_session_is_marked() -> None:
    assert key_line(key(), NOW, "key_1").is_own
    assert key_line(key(options=None), NOW, "key_1").options == "of another version"
