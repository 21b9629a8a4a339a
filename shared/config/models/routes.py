"""Routes: names that clients give as the model, behind which rules choose the model for each request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shared.config.models.base import MAX_NAME, NAME, Spec
from shared.config.models.conditions import MAX_KEYWORDS, NO_CONDITIONS, Conditions

# The value of `otherwise` that chooses by complexity. Decisions then name it as the rule.
COMPLEXITY = "complexity"
# The rules that decisions name if `otherwise` is a model, and if the conversation was answered by a better model.
OTHERWISE, CONVERSATION = "otherwise", "conversation"
# The same, for a model that costs less than the one that was chosen, because a budget has no room for that one.
BUDGET = "budget"
DAY_S = 24 * 3600

_ModelName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=NAME)]


class Mode(StrEnum):
    """What a route prefers: `auto:cost`, `auto:balanced`, `auto:quality`."""

    COST = "cost"
    BALANCED = "balanced"
    QUALITY = "quality"


class Rule(BaseModel):
    """A rule of a route: the conditions under which it applies, and the model, or a split between models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    conditions: Conditions = Field(NO_CONDITIONS, alias="if")
    model: _ModelName | None = None
    split: dict[_ModelName, Annotated[float, Field(gt=0, le=100)]] | None = Field(
        None, min_length=1, description="Percentages by model. An end user always gets the same one."
    )

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the rule may choose."""
        return tuple(self.split or ()) if self.model is None else (self.model,)


class Route(BaseModel):
    """A route. `models` are its levels, the cheapest first; a conversation never goes down a level for `sticky_s`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _ModelName
    description: str = ""
    models: tuple[_ModelName, ...] = Field((), description="The levels: the cheapest model first.")
    rules: tuple[Rule, ...] = Field((), description="The first rule that applies decides.")
    otherwise: _ModelName | None = Field(
        None, description="If no rule applies: a model, or `complexity`, which is the default if there are `models`."
    )
    fallbacks: dict[_ModelName, tuple[_ModelName, ...]] = Field(
        default_factory=dict, description="The models that take over from a model, in order."
    )
    fallback_wait_s: float | None = Field(
        None,
        ge=0,
        description="A model for which a job would wait longer is skipped for a fallback with a shorter wait.",
    )
    baseline: _ModelName | None = Field(
        None, description="The model that savings are reported against; by default the last level."
    )
    sticky_s: int = Field(DAY_S, ge=0, le=30 * DAY_S, description="0: each request is routed by itself.")

    @property
    def candidates(self) -> tuple[str, ...]:
        """All models that the route may choose: the levels, then the others in the order of the file."""
        names = [*self.models]
        for rule in self.rules:
            names += rule.models
        if self.otherwise is not None and self.otherwise != COMPLEXITY:
            names.append(self.otherwise)
        for name, others in self.fallbacks.items():
            names += [name, *others]
        return tuple(dict.fromkeys(names))

    @property
    def uses_complexity(self) -> bool:
        """Whether requests that no rule applies to are served by the level for their complexity."""
        decided = any(not rule.conditions.names for rule in self.rules)
        return not decided and self.otherwise in (None, COMPLEXITY)

    @property
    def counts_up_to(self) -> int:
        """The most tokens that a rule compares a prompt with: longer prompts make no difference."""
        conditions = [rule.conditions for rule in self.rules]
        return max((max(item.input_tokens_over or 0, item.input_tokens_under or 0) for item in conditions), default=0)

    def level(self, model: str) -> int | None:
        """The level of a model, from 0; None if it is none of `models`."""
        return self.models.index(model) if model in self.models else None

    def fallbacks_of(self, model: str) -> tuple[str, ...]:
        """The models that take over from a model, in order: its own fallbacks, then theirs."""
        found = [model]
        for name in found:  # grows
            found += [other for other in self.fallbacks.get(name, ()) if other not in found]
        return tuple(found[1:])


@dataclass(frozen=True, slots=True)
class RequestedRoute:
    """A route and the mode in which a request names it."""

    route: Route
    mode: Mode = Mode.BALANCED


class RouteProblem(NamedTuple):
    """The problems of the routes in a file, each with its place and a message."""

    location: tuple[int | str, ...]
    message: str


def requested_names(route: Route) -> Iterator[tuple[str, RequestedRoute]]:
    """The names by which requests choose a route, with what they stand for. Modes are about complexity only."""
    yield route.name, RequestedRoute(route)
    for mode in Mode if route.uses_complexity else ():
        yield f"{route.name}:{mode.value}", RequestedRoute(route, mode)


def route_problems(routes: Sequence[Route], models: Mapping[str, Spec]) -> Iterator[RouteProblem]:
    """Finds the problems of routes that their schema does not exclude."""
    names: dict[str, str] = {}
    for index, route in enumerate(routes):
        here = ("routes", index)
        for name, _ in requested_names(route):
            if name in models:
                message = f"{route.name!r}: requests for {name!r} choose the model of this name; rename one of them"
                yield RouteProblem((*here, "name"), message)
            elif name in names:
                message = f"{route.name!r}: requests for {name!r} choose the route {names[name]!r}; rename one of them"
                yield RouteProblem((*here, "name"), message)
            names.setdefault(name, route.name)
        unknown = list(_unknown_models(route, models))
        for location, message in unknown or _problems(route, models):
            yield RouteProblem((*here, *location), message)


def _unknown_models(route: Route, models: Mapping[str, Spec]) -> Iterator[RouteProblem]:
    for location, name in _named_models(route):
        if name not in models:
            known = f"; models are: {', '.join(models)}" if len(models) <= 20 else ""
            yield RouteProblem(location, f"there is no model {name!r}{known}")


def _named_models(route: Route) -> Iterator[tuple[tuple[int | str, ...], str]]:
    for index, name in enumerate(route.models):
        yield ("models", index), name
    for index, rule in enumerate(route.rules):
        if rule.model is not None:
            yield ("rules", index, "model"), rule.model
        for name in rule.split or ():
            yield ("rules", index, "split", name), name
        if rule.conditions.of is not None:
            yield ("rules", index, "if", "of"), rule.conditions.of
    if route.otherwise not in (None, COMPLEXITY):
        yield ("otherwise",), route.otherwise
    for name, others in route.fallbacks.items():
        yield ("fallbacks", name), name
        for index, other in enumerate(others):
            yield ("fallbacks", name, index), other
    if route.baseline is not None:
        yield ("baseline",), route.baseline


def _problems(route: Route, models: Mapping[str, Spec]) -> Iterator[RouteProblem]:
    for index, name in enumerate(route.models):
        if name in route.models[:index]:
            yield RouteProblem(("models", index), f"{name!r} is already a level")
    for index, rule in enumerate(route.rules):
        for location, message in _rule_problems(route, index, rule, models):
            yield RouteProblem(("rules", index, *location), message)
    yield from _end_problems(route)
    if (keywords := sum(len(rule.conditions.keywords or ()) for rule in route.rules)) > MAX_KEYWORDS:
        message = f"the rules of a route may have {MAX_KEYWORDS} keywords in all; these have {keywords}"
        yield RouteProblem(("rules",), message)
    if route.fallback_wait_s is not None and not route.fallbacks:
        yield RouteProblem(("fallback_wait_s",), "needs `fallbacks`, which take over from a model with a longer wait")
    if (cycle := _cycle(route.fallbacks)) is not None:
        message = f"a cycle: {' -> '.join(cycle)}; a request would never end"
        yield RouteProblem(("fallbacks", cycle[0]), message)


def _rule_problems(route: Route, index: int, rule: Rule, models: Mapping[str, Spec]) -> Iterator[RouteProblem]:
    earlier = route.rules[:index]
    if rule.name in (COMPLEXITY, OTHERWISE, CONVERSATION, BUDGET):
        yield RouteProblem(("name",), f"{rule.name!r} is what decisions name without a rule; use another name")
    if any(rule.name == other.name for other in earlier):
        yield RouteProblem(("name",), f"{rule.name!r} is declared twice")
    if (rule.model is None) == (rule.split is None):
        yield RouteProblem((), "give exactly one of `model` and `split`")
    if rule.split is not None and not math.isclose(total := sum(rule.split.values()), 100, abs_tol=1e-6):
        yield RouteProblem(("split",), f"the percentages must add up to 100, not {total:g}")
    if (problem := rule.conditions.contradiction()) is not None:
        yield RouteProblem(("if", problem[0]), problem[1])
    if rule.conditions.predicted_wait_over_s is not None and rule.conditions.of is None and not route.models:
        yield RouteProblem(("if", "predicted_wait_over_s"), "needs `of`, the model that a job would wait for")
    for name in rule.models:
        for what in rule.conditions.unserved(models[name]):
            if rule.split is None:
                yield RouteProblem(("model",), f"{name!r} cannot serve {what}, so this rule can never apply")
            else:
                yield RouteProblem(("split", name), f"{name!r} cannot serve {what}, so it would never get its share")
    for number, other in enumerate(earlier):
        if other.conditions.covers(rule.conditions):
            why = "applies to all requests" if not other.conditions.names else "applies to the same requests first"
            yield RouteProblem((), f"can never apply: rules[{number}] ({other.name!r}) {why}")
            break


def _end_problems(route: Route) -> Iterator[RouteProblem]:
    """Problems with what happens if no rule applies."""
    last = next((rule for rule in route.rules if not rule.conditions.names), None)
    if last is not None:
        if route.otherwise is not None:
            message = f"can never apply: the rule {last.name!r} applies to all requests"
            yield RouteProblem(("otherwise",), message)
    elif route.otherwise == COMPLEXITY and not route.models:
        yield RouteProblem(("otherwise",), "`complexity` chooses one of `models`, which the route does not have")
    elif route.otherwise is None and not route.models:
        if route.rules:
            message = "requests that no rule applies to have no model; set `otherwise` or `models`"
        else:
            message = "this route matches nothing; give it `models`, rules, or a model as `otherwise`"
        yield RouteProblem((), message)


def _cycle(fallbacks: Mapping[str, Sequence[str]]) -> list[str] | None:
    """A cycle of fallbacks, beginning and ending with the same model; None if there is none."""
    finished: set[str] = set()
    for start in fallbacks:
        path: list[str] = []
        remaining = [iter((start,))]
        while remaining:
            name = next(remaining[-1], None)
            if name is None:
                remaining.pop()
                if path:
                    finished.add(path.pop())
            elif name in path:
                return [*path[path.index(name) :], name]
            elif name not in finished:
                path.append(name)
                remaining.append(iter(fallbacks.get(name, ())))
    return None
