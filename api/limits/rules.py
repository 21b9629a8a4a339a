"""The limits that apply to a request, as found by its project, key, end user and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Self

from api.keys.open_requests import StreamLimit
from api.keys.principal import Principal
from shared.domain.owner import Owner
from shared.redis import keys as redis_keys

# The `end_user` of a limit that each end user has.
EACH_USER = "*"


class Mode(StrEnum):
    """What happens to a request above a rate limit: it is refused, or waits in the queue."""

    HARD = "hard"
    SOFT = "soft"


class Measure(StrEnum):
    """What a limit counts: the columns of its row."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    CONCURRENT_JOBS = "concurrent_jobs"
    QUEUED_JOBS = "queued_jobs"
    OPEN_STREAMS = "open_streams"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The value of one measure, and the limit that it is from."""

    value: int
    soft: bool
    limit_id: int


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit. `project_id` is None for the default of all projects; None elsewhere does not narrow it."""

    project_id: int | None
    key_id: int | None
    end_user: str | None
    model: str | None
    allowances: Mapping[Measure, Allowance]

    def over(self, other: Limit) -> Limit:
        """This limit, with the values of a less specific one where it has none."""
        return replace(self, allowances={**other.allowances, **self.allowances})


@dataclass(frozen=True, slots=True)
class LimitScope:
    """Whose requests a limit counts together: those of a project, and of one of its keys, end users or models.

    `per_user`: those of `end_user`, who is None for requests that name none.
    """

    project_id: int
    key_id: int | None = None
    per_user: bool = False
    end_user: str | None = None
    model: str | None = None

    @classmethod
    def of(cls, limit: Limit, owner: Owner) -> Self:
        """That of a limit which applies to the owner's requests."""
        per_user = limit.end_user is not None
        return cls(owner.project_id, limit.key_id, per_user, owner.end_user if per_user else None, limit.model)

    def window_key(self, measure: Measure) -> str:
        """The key of the window in Redis. Its length does not depend on names of end users."""
        scope = "" if self.key_id is None else f":k{self.key_id}"
        if self.per_user:
            scope += f":u{_digest(self.end_user)}" if self.end_user is not None else ":u"
        if self.model is not None:
            scope += f":m{self.model}"
        return redis_keys.rate_window(self.project_id, scope, UNITS[measure])

    def __str__(self) -> str:
        """The scope in an error message."""
        text = "this project" if self.key_id is None else "this API key"
        if self.per_user:
            text = f"the end user {self.end_user[:64]!r}" if self.end_user is not None else "requests without end user"
        return text if self.model is None else f"{text} with the model `{self.model}`"

    @property
    def kind(self) -> str:
        """The most specific part of the scope, for metrics."""
        if self.model is not None:
            return "model"
        return "end_user" if self.per_user else "project" if self.key_id is None else "key"


# The measures of rates, and their names.
RATES = (Measure.REQUESTS, Measure.TOKENS)
UNITS = {Measure.REQUESTS: "requests", Measure.TOKENS: "tokens"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit that applies to a request: `value` of one measure, for all requests of a scope together."""

    scope: LimitScope
    measure: Measure
    value: int
    soft: bool
    limit_id: int

    @property
    def name(self) -> str:
        """The limit's id in the API."""
        return limit_name(self.limit_id)


class LimitBook:
    """The limits of all projects, and what applies to a request.

    A project's own limit is merged over the default with the same key, end user and model, and one for a named end user
    over that for each end user: value by value. Limits of different scopes all apply.
    """

    def __init__(self, limits: Sequence[Limit] = ()) -> None:
        self.replace(limits)

    def replace(self, limits: Sequence[Limit]) -> None:
        """Use these limits from now on."""
        self._defaults = [limit for limit in limits if limit.project_id is None]
        self._own: dict[int, list[Limit]] = {}
        for limit in limits:
            if limit.project_id is not None:
                self._own.setdefault(limit.project_id, []).append(limit)
        # Merged, by project: those of all end users, and those of named ones.
        self._merged: dict[int | None, tuple[list[Limit], dict[str, list[Limit]]]] = {}
        self._is_empty = not limits

    def rules(self, owner: Owner, model: str | None, measures: Sequence[Measure]) -> Sequence[Rule]:
        """The rules of these measures that apply to an owner's request for a model."""
        if self._is_empty:
            return ()
        return [
            Rule(LimitScope.of(limit, owner), measure, found.value, found.soft, found.limit_id)
            for limit in self._matching(owner, model)
            for measure in measures
            if (found := limit.allowances.get(measure)) is not None
        ]

    def stream_limits(self, principal: Principal, model: str | None) -> Sequence[StreamLimit]:
        """The limits of open streams that apply to a principal's stream of a model's answer."""
        return [
            StreamLimit(rule.scope, rule.scope == LimitScope(principal.project_id), rule.value, rule.name)
            for rule in self.rules(principal.owner, model, (Measure.OPEN_STREAMS,))
        ]

    def _matching(self, owner: Owner, model: str | None) -> Iterator[Limit]:
        common, by_user = self._of(owner.project_id)
        named = by_user.get(owner.end_user, ()) if by_user and owner.end_user is not None else ()
        of_user = {(limit.key_id, limit.model): limit for limit in named}
        for limit in common:
            if limit.end_user is not None:
                limit = _merged(of_user.pop((limit.key_id, limit.model), None), limit)
            if _applies(limit, owner, model):
                yield limit
        yield from (limit for limit in of_user.values() if _applies(limit, owner, model))

    def _of(self, project_id: int) -> tuple[list[Limit], dict[str, list[Limit]]]:
        """The limits of a project, merged with the defaults: those of all end users, and those of named ones."""
        own = self._own.get(project_id)
        place = project_id if own is not None else None  # projects without limits of their own share the defaults
        if place not in self._merged:
            found = {(limit.key_id, limit.end_user, limit.model): limit for limit in self._defaults}
            for limit in own or ():
                scope = (limit.key_id, limit.end_user, limit.model)
                found[scope] = limit.over(found[scope]) if scope in found else limit
            common = [limit for limit in found.values() if limit.end_user in (None, EACH_USER)]
            by_user: dict[str, list[Limit]] = {}
            for limit in found.values():
                if limit.end_user is not None and limit.end_user != EACH_USER:
                    by_user.setdefault(limit.end_user, []).append(limit)
            self._merged[place] = common, by_user
        return self._merged[place]


def limit_name(limit_id: int) -> str:
    """The id of a limit in the API."""
    return f"limit_{limit_id}"


def _merged(named: Limit | None, each: Limit) -> Limit:
    return each if named is None else named.over(each)


def _applies(limit: Limit, owner: Owner, model: str | None) -> bool:
    return limit.key_id in (None, owner.key_id) and limit.model in (None, model)


def _digest(name: str) -> str:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
