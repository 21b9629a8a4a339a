"""A request while its model is chosen: what is known about it, and which models its conversation may have."""

from __future__ import annotations

from dataclasses import dataclass, field

from api.keys.principal import Principal
from api.routing.candidates import Refusal
from api.routing.facts import Facts
from shared.config.models.routes import Mode, Route
from shared.domain.conversation import Conversation
from shared.domain.new_job import NewJob
from shared.redis.conversation_models import KnownModel


@dataclass(frozen=True, slots=True)
class Choice:
    """The model for a request, the rule that chose it, and the models that were tried before or may take over."""

    model: str
    rule: str
    score: float | None = None
    tried: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """A request to be routed, and what has been found out about it so far."""

    principal: Principal
    new: NewJob
    route: Route
    mode: Mode
    history: Conversation
    facts: Facts
    # The model of the conversation's earlier answers.
    known: KnownModel | None
    refusals: dict[str, Refusal | None] = field(default_factory=dict)
    overloads: dict[str, Refusal | None] = field(default_factory=dict)

    @property
    def floor(self) -> int | None:
        """The highest level that has answered the conversation; None if none has."""
        return None if self.known is None else highest_level(self.route, self.known.model, self.known.floor)

    def may_serve(self, model: str) -> bool:
        """Whether a model is not below the level of the conversation's earlier answers."""
        floor, position = self.floor, self.route.level(model)
        return floor is None or position is None or position >= floor

    def kept(self, choice: str) -> str | None:
        """The model that keeps the conversation instead of the one that was chosen; None if that one may have it.

        A conversation leaves its model only for a higher level.
        """
        if self.known is None or self.known.model == choice:
            return None
        model, floor, position = self.known.model, self.floor, self.route.level(choice)
        if model not in self.route.candidates:  # after a reload
            return None if floor is None or self.may_serve(choice) else self.route.models[floor]
        climbs = self.route.level(model) is not None and position is not None and floor is not None
        return None if climbs and self.may_serve(choice) else model


def highest_level(route: Route, *models: str | None) -> int | None:
    """The highest level among these models; None if none is one of the levels."""
    positions = [route.level(model) for model in models if model is not None]
    return max((position for position in positions if position is not None), default=None)
