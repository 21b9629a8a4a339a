"""What the pages of keys and projects show, and how their forms are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.admin.keys.schemas import ApiKeyCreate, ApiKeyRotate, ApiKeyUpdate, ProjectCreate, ProjectUpdate
from api.console.actions import Form, errors_of
from api.console.overview.view import Badge
from api.keys.option_arguments import describe
from api.keys.principal import DEFAULT_PRIORITY_FLOOR, Scope
from api.keys.store import ApiKey
from shared.config.durations import seconds_of
from shared.domain.answer_options import KeyOptions
from shared.domain.errors import InvalidRequest
from shared.domain.log_level import LogLevel
from shared.domain.priorities import MAX_PRIORITY

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

# A key that expires sooner is marked.
SOON = timedelta(days=7)
_SIZES = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_UNITS = tuple(unit for unit, _ in _SIZES)
NEVER = "never"
_TOKENS = "Must be a number of tokens, at least 1."


@dataclass(frozen=True, slots=True)
class KeyLine:
    """A key in the list."""

    id: str
    name: str
    prefix: str
    project: str
    tier: str | None
    scopes: Sequence[str]
    priorities: str
    options: str
    state: Badge
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    is_valid: bool
    is_own: bool


def key_line(key: ApiKey, now: datetime, own_id: str) -> KeyLine:
    """A key as listed. `own_id`: the id of the key of the session."""
    is_valid = key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    return KeyLine(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        project=key.project,
        tier=key.tier,
        scopes=[scope.value for scope in key.scopes],
        priorities=f"{key.priority_floor}–{MAX_PRIORITY}",
        options=describe(key.options) if key.options is not None else "of another version",
        state=_state(key, now, is_valid),
        created_at=key.created_at,
        last_used_at=key.last_used_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        is_valid=is_valid,
        is_own=key.id == own_id,
    )


def _state(key: ApiKey, now: datetime, is_valid: bool) -> Badge:
    if key.revoked_at is not None:
        return Badge("revoked", "plain")
    if not is_valid:
        return Badge("expired", "plain")
    if key.expires_at is not None and key.expires_at - now < SOON:
        return Badge("expires soon", "near")
    return Badge("valid", "good")


# A session ends with its key: the least overlap with which its own key is replaced.
MIN_OWN_OVERLAP_S = 60


class FormInvalid(Exception):
    """What is wrong with the fields of a form."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(errors)
        self.errors = errors


FIELDS = (
    "name",
    "project",
    "scopes",
    "expires_in_s",
    "priority_floor",
    "options.allowed_models",
    "options.token_limits.max_output",
    "options.token_limits.max_input",
    "options.token_limits.default_output",
    "options.token_limits.on_exceed",
    "cache",
    "options.cache.ttl",
    "options.cache.scope",
    "options.context.strategy",
    "options.context.model",
    "options.context.trigger",
    "options.context.target",
    "options.context.trigger_tokens",
    "options.log_level",
)


def invalid_field(error: InvalidRequest) -> dict[str, str]:
    """What the API says is wrong with a field of a form, by its name."""
    param = error.param or "name"
    message = error.message.removeprefix(f"{param}: ")
    return {param: f"{message[:1].upper()}{message[1:]}."}


def key_to_create(form: Form) -> ApiKeyCreate:
    """The key that a form describes.

    Raises:
        FormInvalid: a field has no valid value.
    """
    reader = _Reader(form)
    options = _options(form, reader)
    for name in ("token_limits", "cache", "context"):
        given = {field: value for field, value in (options[name] or {}).items() if value is not None}
        options[name] = given or None
    values = {
        "name": form["name"],
        "project": form["project"] or None,
        "scopes": list(form.all("scopes")),
        "expires_in_s": reader.duration("expires_in_s"),
        "priority_floor": form["priority_floor"] or DEFAULT_PRIORITY_FLOOR,
        "options": options,
    }
    return reader.build(ApiKeyCreate, values, FIELDS)


def key_to_change(form: Form, *, is_own: bool) -> ApiKeyUpdate:
    """How a form changes a key. `is_own`: the session is of it, and has to keep the right to show this page.

    Raises:
        FormInvalid: a field has no valid value.
    """
    reader = _Reader(form)
    values: dict[str, Any] = {
        "name": form["name"],
        "scopes": list(form.all("scopes")),
        "priority_floor": form["priority_floor"],
        "options": _options(form, reader),
    }
    if form["expires_in_s"]:
        values["expires_in_s"] = None if form["expires_in_s"] == NEVER else reader.duration("expires_in_s")
    body = reader.build(ApiKeyUpdate, values, FIELDS)
    if is_own and Scope.ADMIN not in body.scopes:
        raise FormInvalid({"scopes": "This session is of the key, which has to keep the scope admin."})
    return body


def _options(form: Form, reader: _Reader) -> dict[str, Any]:
    """All options that a form has; None: it has none for this."""
    limits: dict[str, Any] = {
        name: reader.tokens(f"options.token_limits.{name}") for name in ("max_output", "max_input", "default_output")
    }
    if limits["max_output"] is not None:
        limits["on_exceed"] = form["options.token_limits.on_exceed"] or "reject"
    options: dict[str, Any] = {"token_limits": limits, "no_cache": form["cache"] == "off", "cache": None}
    if form["cache"] == "on":
        ttl = reader.duration("options.cache.ttl")
        scope = form["options.cache.scope"] or "project"
        options["cache"] = {"ttl": None if ttl is None else int(ttl), "scope": scope}
    options["context"] = None
    if form["options.context.strategy"]:
        options["context"] = {
            "strategy": form["options.context.strategy"],
            "model": form["options.context.model"] or None,
            "trigger": reader.share("options.context.trigger"),
            "target": reader.share("options.context.target"),
            "trigger_tokens": reader.tokens("options.context.trigger_tokens"),
        }
    names = form["options.allowed_models"].replace(",", " ").split()
    options["allowed_models"] = names or None
    # Without the field, as in a page of an earlier version, the level must not be lost: it remains.
    if "options.log_level" in form.values:
        options["log_level"] = form["options.log_level"] or None
    return options


def form_of(key: ApiKey, options: KeyOptions) -> Form:
    """The form that changes a key, with the values that the key has. Those that are the default are left empty."""
    values: dict[str, Any] = {"name": key.name, "priority_floor": key.priority_floor}
    groups: dict[str, BaseModel | None] = {
        "token_limits": options.token_limits,
        "cache": options.cache,
        "context": options.context,
    }
    for group, model in groups.items():
        if model is None:
            continue
        for name, value in model:
            is_default = value == type(model).model_fields[name].default and name != "strategy"
            values[f"options.{group}.{name}"] = "" if value is None or is_default else value
    values["options.allowed_models"] = ", ".join(options.allowed_models or ())
    values["options.log_level"] = options.log_level or ""
    if options.cache is not None:
        values["cache"] = "on"
        values["options.cache.ttl"] = _duration(options.cache.ttl)
    elif options.no_cache:
        values["cache"] = "off"
    return Form({name: str(value) for name, value in values.items()}, {"scopes": [scope.value for scope in key.scopes]})


def _duration(seconds: int) -> str:
    """Seconds as a form takes them: `1h`."""
    unit, size = next((unit, size) for unit, size in _SIZES if seconds % size == 0)
    return f"{seconds // size}{unit}"


def rotation(form: Form, *, is_own: bool) -> ApiKeyRotate:
    """How a form replaces a key. `is_own`: the session is of it, and has to last until the new key was shown.

    Raises:
        FormInvalid: a field has no valid value.
    """
    reader = _Reader(form)
    overlap_s = reader.duration("overlap_s")
    values = {"expires_in_s": reader.duration("expires_in_s")} | ({} if overlap_s is None else {"overlap_s": overlap_s})
    body = reader.build(ApiKeyRotate, values, ("overlap_s", "expires_in_s"))
    if is_own and body.overlap_s < MIN_OWN_OVERLAP_S:
        raise FormInvalid({"overlap_s": "This session is of the key: 1m or more, so that it can show the new one."})
    return body


def project_to_create(form: Form) -> ProjectCreate:
    """The project that a form describes.

    Raises:
        FormInvalid: a field has no valid value.
    """
    values: dict[str, Any] = {"name": form["name"], "tier": form["tier"] or None}
    if form["options.log_level"]:
        values["options"] = {"log_level": form["options.log_level"]}
    return _Reader(form).build(ProjectCreate, values, ("name", "tier", "options.log_level"))


def project_to_change(form: Form) -> ProjectUpdate:
    """How a form changes a project.

    Raises:
        FormInvalid: a field has no valid value.
    """
    return _Reader(form).build(ProjectUpdate, {"tier": form["tier"] or None}, ("tier",))


def level_to_change(form: Form) -> ProjectUpdate:
    """How a form changes the level of a project's request log.

    Raises:
        FormInvalid: there is no such level.
    """
    values = {"options": {"log_level": form["options.log_level"] or None}}
    return _Reader(form).build(ProjectUpdate, values, ("options.log_level",))


_MESSAGES = {
    "name": "Enter a name of one line, with at most 200 characters.",
    "project": "Must be a name of one line, with at most 200 characters.",
    "scopes": "Choose at least one.",
    "options.allowed_models": "Must be names of models or routes, separated by commas.",
    "tier": "Must be a word such as free, of letters, digits and ._-, with at most 64 characters.",
    "priority_floor": f"Must be a priority from 0 to {MAX_PRIORITY}.",
    "options.log_level": f"Must be one of {', '.join(LogLevel)}.",
}


class _Reader:
    """Reads the fields of a form that are no text, and collects what is wrong with them."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._errors = dict(form.errors)

    def duration(self, name: str) -> float | None:
        """Seconds of a duration such as 90d; None if there is none."""
        seconds = seconds_of(self._form[name], _UNITS)
        return self._value(name, seconds, "Must be a duration such as 90d, 24h, 30m or 45s.")

    def tokens(self, name: str) -> int | None:
        """A number of tokens."""
        text = self._form[name]
        return self._value(name, int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None, _TOKENS)

    def share(self, name: str) -> float | None:
        """A share, such as 0.8."""
        text = self._form[name]
        digits = text.replace(".", "", 1)
        value = float(text) if digits.isascii() and digits.isdigit() and len(text) < 10 else None
        return self._value(name, value, "Must be a share such as 0.8, above 0 and at most 1.")

    def build(self, kind: type[M], values: Mapping[str, Any], fields: Sequence[str]) -> M:
        """The model with these values."""
        try:
            model = kind(**values)
        except ValidationError as error:
            found = errors_of(error, fields)
            texts = {name: _MESSAGES.get(name, message) for name, message in found.items()}
            raise FormInvalid({**texts, **self._errors}) from None
        if self._errors:
            raise FormInvalid(self._errors)
        return model

    def _value(self, name: str, value: T | None, message: str) -> T | None:
        if self._form[name] and value is None:
            self._errors.setdefault(name, message)
        return value if self._form[name] else None
