"""Chooses the model of a request that names a route: by rules, by complexity, and by what answered the conversation.

A conversation never goes down a level, and keeps its model inside a tool loop and as long as its history has opaque
parts, such as signed reasoning, that only one provider's models accept. A model that cannot serve the request is
replaced by its fallbacks, or by another model; one that has too much to do, by its fallbacks only.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from api.context.window import PromptTokens
from api.keys.principal import Principal
from api.routing.candidates import Candidates, CostLimit, Refusal
from api.routing.chooser import Chooser
from api.routing.complexity import Complexity, Mode
from api.routing.conversations import Conversations
from api.routing.facts import Facts
from api.routing.routed_request import Choice, RoutedRequest, highest_level
from shared.config.models.loader import Registry
from shared.config.models.routes import RequestedRoute, Route
from shared.domain.conversation import Conversation, ConversationNote
from shared.domain.decisions import RouteDecision
from shared.domain.new_job import NewJob
from shared.redis.conversation_models import KnownModel
from shared.telemetry.metrics import Metrics

# For how long the model of a tool loop is remembered by routes that remember nothing else.
TOOL_LOOP_S = 3600
# Tokens up to which an explanation counts a prompt, if no candidate's context is known.
EXPLAINED_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a request would be routed. `refusals` has each candidate, and why it would not be chosen if it can."""

    route: str
    mode: Mode
    choice: Choice
    refusals: dict[str, Refusal | None]
    score: float
    tokens: PromptTokens


@dataclass(frozen=True, slots=True)
class Routed:
    """A job with a model in place of the route that it named, and how its conversation is remembered."""

    job: NewJob
    route: Route
    names: tuple[str, ...]
    known: KnownModel
    ttl_s: int


class Router:
    """Replaces routes by models."""

    def __init__(
        self,
        registry: Registry,
        candidates: Candidates,
        conversations: Conversations,
        complexity: Complexity,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._candidates = candidates
        self._conversations = conversations
        self._complexity = complexity
        self._chooser = Chooser(registry, candidates, complexity)
        self._metrics = metrics

    async def route(self, principal: Principal, new: NewJob) -> Routed | None:
        """Choose a model for a job that names a route; None if it names a model.

        Nothing is remembered before `remember`.
        """
        if new.kind is not None:  # such as a summary, whose model the operator names
            return None
        found = await self._considered(principal, new)
        return None if found is None else self._routed(*found)

    async def downgrade(self, principal: Principal, new: NewJob, limit: CostLimit) -> Routed | None:
        """Choose a model that costs less for a job that names a route, because budgets have no room for the one that
        `route` has chosen. None if the job names a model, or no other model can run it for less."""
        if new.kind is not None or (found := await self._considered(principal, new)) is None:
            return None
        request, refused, names = found
        choice = await self._chooser.cheaper(request, refused, limit)
        if choice is None:
            return None
        # It may be the same one, without the fallbacks, which cost more.
        first = None if choice.model == refused.model else refused.model
        return self._routed(request, choice, names, downgraded_from=first)

    def names_route(self, model: str) -> bool:
        """Whether the model that a request names is a route."""
        return self._registry.route(model) is not None

    def _routed(
        self, request: RoutedRequest, choice: Choice, names: tuple[str, ...], *, downgraded_from: str | None = None
    ) -> Routed:
        new, route, known = request.new, request.route, request.known
        self._count(request, choice)
        remembers = bool(names) and (route.sticky_s > 0 or request.history.has_tools)
        tokens = request.facts.measured
        decision = RouteDecision(
            route=route.name,
            rule=choice.rule,
            mode=None if request.mode is Mode.BALANCED else request.mode.value,
            score=None if choice.score is None else round(choice.score, 4),
            tried=choice.tried,
            fallbacks=choice.fallbacks,
            conversation=secrets.token_hex(16) if remembers else None,
            input_tokens=None if tokens is None else tokens.number,
            tokens_estimated=tokens is not None and tokens.estimated,
            downgraded_from=downgraded_from,
        )
        job = replace(
            new,
            model=choice.model,
            requested_model=new.model,
            decisions=new.decisions.model_copy(update={"route": decision}),
        )
        floor = highest_level(route, choice.model, *(() if known is None else (known.model, known.floor)))
        answers = KnownModel(choice.model, None if floor is None else route.models[floor])
        return Routed(job, route, names, answers, route.sticky_s or TOOL_LOOP_S)

    async def settle(self, principal: Principal, routed: Routed, new: NewJob) -> NewJob:
        """Complete the decision about a routed job that has passed all checks.

        Returns `new` without the fallbacks that its prompt is too long for, and with what is to be remembered, under
        the names of the request that the client sent and of `new`, whose conversation may have been shortened.
        """
        new = await self.without_unfit(principal, new)
        decision = new.decisions.route
        assert decision is not None
        if decision.conversation is not None:
            names = routed.names
            if new.request.messages is not routed.job.request.messages:
                names += Conversation(new.request).names(decision.route, principal.owner).own
            known, levels = routed.known, routed.route.models
            note = ConversationNote(decision.conversation, names, known.model, known.floor, levels, routed.ttl_s)
            new = replace(new, note=note)
        return new

    async def without_unfit(self, principal: Principal, new: NewJob) -> NewJob:
        """A job without the fallbacks that cannot serve it; its conversation is not shortened again for them."""
        decision = new.decisions.route
        if decision is None:
            return new
        fallbacks = tuple(
            [
                name
                for name in decision.fallbacks
                if await self._candidates.refusal(name, principal, new, shortens=False) is None
            ]
        )
        if fallbacks == decision.fallbacks:
            return new
        decision = decision.model_copy(update={"fallbacks": fallbacks})
        return replace(new, decisions=new.decisions.model_copy(update={"route": decision}))

    async def remember(self, note: ConversationNote) -> None:
        """Remember the model of a settled job, which is about to be stored."""
        known = KnownModel(note.model, note.floor)
        await self._conversations.remember(note.conversation, note.names, known, note.ttl_s, levels=note.levels)

    async def preview(self, principal: Principal, new: NewJob) -> NewJob:
        """A job with the model that its route would choose, and the fallbacks; unchanged if it names a model. Nothing
        is remembered or counted."""
        found = await self._considered(principal, new)
        if found is None:
            return new
        request, choice, _ = found
        decision = RouteDecision(route=request.route.name, rule=choice.rule, fallbacks=choice.fallbacks)
        decisions = new.decisions.model_copy(update={"route": decision})
        return replace(new, model=choice.model, decisions=decisions)

    async def explain(self, principal: Principal, new: NewJob) -> Explanation | None:
        """How a request would be routed; None if it names a model. Nothing is remembered or counted."""
        found = await self._considered(principal, new, explained=True)
        if found is None:
            return None
        request, choice, _ = found
        refusals = {
            name: await self._chooser.refusal(request, name) or await self._chooser.overload(request, name)
            for name in request.route.candidates
        }
        tokens = await request.facts.input_tokens()
        score = self._complexity.score(new.request)
        return Explanation(request.route.name, request.mode, choice, refusals, score, tokens)

    async def _considered(
        self, principal: Principal, new: NewJob, *, explained: bool = False
    ) -> tuple[RoutedRequest, Choice, tuple[str, ...]] | None:
        """A request, the choice for it, and the names of its conversation; None if it names a model."""
        requested = self._registry.route(new.model)
        if requested is None:
            return None
        route, history = requested.route, Conversation(new.request)
        names = history.names(route.name, principal.owner)
        known = await self._known(new, route, history, names.previous)
        request = self._request(principal, new, requested, history, known, explained=explained)
        return request, await self._chooser.choose(request), names.own

    async def _known(
        self, new: NewJob, route: Route, history: Conversation, names: tuple[str, ...]
    ) -> KnownModel | None:
        """The model that answered the conversation last, of those that this process serves; None if unknown."""
        if not (route.sticky_s or history.in_tool_loop or history.provider is not None):
            return None
        earlier = new.earlier_answer
        if earlier is not None and earlier.route != route.name:
            earlier = None
        remembered = await self._conversations.find(names, None if earlier is None else earlier.conversation)
        remembered = [known for known in remembered if known.model in self._registry]
        if earlier is not None and earlier.model in self._registry:
            age = datetime.now(UTC) - earlier.created_at
            if age < timedelta(seconds=route.sticky_s or TOOL_LOOP_S):
                return KnownModel(earlier.model, remembered[0].floor if remembered else None)
        return remembered[0] if remembered else None

    def _request(
        self,
        principal: Principal,
        new: NewJob,
        requested: RequestedRoute,
        history: Conversation,
        known: KnownModel | None,
        *,
        explained: bool = False,
    ) -> RoutedRequest:
        route = requested.route
        count_up_to = route.counts_up_to
        if explained:  # beyond the longest context, the number makes no difference
            lengths = [self._candidates.length(name) or 0 for name in route.candidates]
            count_up_to = max([count_up_to, *lengths]) or EXPLAINED_TOKENS
        facts = Facts(
            new.request,
            tier=principal.tier,
            priority=new.priority,
            models=route.candidates,
            count_up_to=count_up_to,
            candidates=self._candidates,
            project_id=principal.project_id,
        )
        return RoutedRequest(principal, new, route, requested.mode, history, facts, known)

    def _count(self, request: RoutedRequest, choice: Choice) -> None:
        route = request.route.name
        self._metrics.route_decisions.labels(route, choice.rule, self._metrics.model_label(choice.model)).inc()
        for name in choice.tried:
            if (refusal := request.refusals.get(name) or request.overloads.get(name)) is not None:
                label = self._metrics.model_label(name)
                self._metrics.route_skipped.labels(route, label, refusal.reason.value).inc()
