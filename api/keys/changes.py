"""Partial updates of API keys and of projects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pydantic import ValidationError

from api.http.validation import describe
from api.keys.principal import Scope
from shared.domain.answer_options import KeyOptions
from shared.domain.errors import InvalidRequest
from shared.domain.project_options import ProjectOptions

NEVER = math.inf
# A name of a key or of a project is one line of text.
NAME = r"[^\x00-\x1f\x7f]+"
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Changes of a key. None: the value remains as it is.

    `expires_in_s`: seconds from now, or NEVER. `options` gets the options that the key has, and returns the new ones.
    """

    name: str | None = None
    scopes: Collection[Scope] | None = None
    priority_floor: int | None = None
    expires_in_s: float | None = None
    options: Callable[[KeyOptions], KeyOptions] | None = None

    def names(self) -> list[str]:
        """The names of what changes."""
        return [name for name in self.__slots__ if getattr(self, name) is not None]


class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"


# Stands for a value that a change leaves as it is, if None is a value.
UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class ProjectChanges:
    """Changes of a project. `tier`: None removes it. `options` gets those that the project has, and returns the new
    ones; None: they remain as they are."""

    tier: str | Unchanged | None = UNCHANGED
    options: Callable[[ProjectOptions], ProjectOptions] | None = None

    def names(self) -> list[str]:
        """The names of what changes."""
        return [name for name, none in (("tier", UNCHANGED), ("options", None)) if getattr(self, name) is not none]


def changed_project_options(options: ProjectOptions, patch: Mapping[str, Any]) -> ProjectOptions:
    """The options after a merge patch: None removes a member, and what is absent remains."""
    values = {**options.model_dump(exclude_none=True), **patch}
    return ProjectOptions(**{name: value for name, value in values.items() if value is not None})


def changed_options(options: KeyOptions, patch: Mapping[str, Any]) -> KeyOptions:
    """The options after a merge patch (RFC 7396): None removes a group, or a member of one, and what is absent remains.

    What a change makes moot is removed: `no_cache` and `cache` replace each other, `context.model` belongs to the
    strategy that was set with it, and `token_limits.on_exceed` to a `max_output`.

    Raises:
        InvalidRequest: the result is not valid; `param` names the field, such as `options.token_limits.max_output`.
    """
    values = options.model_dump(exclude_none=True)
    for name, change in patch.items():
        if isinstance(change, Mapping):
            members = {**values.get(name, {}), **change}
            values[name] = {member: value for member, value in members.items() if value is not None}
        elif change is None:
            values.pop(name, None)
        else:
            values[name] = change
    if patch.get("no_cache"):
        if patch.get("cache") is not None:
            raise InvalidRequest("options.no_cache: cannot be combined with options.cache", param="options.no_cache")
        values.pop("cache", None)
    elif patch.get("cache") is not None:
        values["no_cache"] = False
    _settle_limits(values, patch.get("token_limits") or {})
    _settle_context(values, patch.get("context") or {})
    try:
        return KeyOptions.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        for problem in problems:
            problem["loc"] = ("options", *problem["loc"])
        message, param = describe(problems)
        raise InvalidRequest(message, param=param) from None


def _settle_limits(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    limits = values.get("token_limits")
    if limits is None or "max_output" in limits:
        return
    if change.get("on_exceed") is not None:
        param = "options.token_limits.on_exceed"
        raise InvalidRequest(f"{param}: requires max_output", param=param)
    limits.pop("on_exceed", None)
    if not limits:
        del values["token_limits"]


def _settle_context(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    if change.get("strategy") not in (None, "summarize") and change.get("model") is None:
        values["context"].pop("model", None)
