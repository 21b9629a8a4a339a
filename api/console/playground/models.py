"""What the playground offers of each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from api.keys.allowed_models import is_allowed
from api.keys.principal import Principal
from shared.config.models.capabilities import Capabilities, union
from shared.config.models.loader import Registry


@dataclass(frozen=True, slots=True)
class Choice:
    """A model or a route that a request may name. `limit`: tokens of its context; None if unknown, and for a route."""

    name: str
    note: str
    limit: int | None
    reasoning: bool
    tools: bool
    structure: bool


def choices(registry: Registry, length: Callable[[str], int | None], principal: Principal) -> list[Choice]:
    """The models that a principal may use, in the order of the file, and then the routes.

    A route can do what one of its models can.
    """
    models = registry.models
    found = [
        _choice(name, spec.description or spec.engine, length(name), spec.capabilities) for name, spec in models.items()
    ]
    for route in registry.routes:
        candidates = [models[name].capabilities for name in route.candidates if name in models]
        found.append(_choice(route.name, "route", None, union(candidates)))
    return [choice for choice in found if is_allowed(principal, registry, choice.name)]


def _choice(name: str, note: str, limit: int | None, capabilities: Capabilities) -> Choice:
    return Choice(
        name=name,
        note=note,
        limit=limit,
        reasoning="reasoning_effort" in capabilities.chat_options,
        tools=capabilities.tools,
        structure=bool(capabilities.structures),
    )
