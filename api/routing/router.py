"""Chooses the model of a request that names a route: by rules, by complexity, and by what answered the conversation.

A conversation never goes down a tier, and keeps its model inside a tool loop and as long as its history has opaque
parts, such as signed reasoning, that only one provider's models accept. A model that cannot serve the request is
replaced by its fallbacks, or by another tier; one that has too much to do, by its fallbacks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from api.context.window import PromptTokens
from api.keys.principal import Principal
from api.routing.candidates import Candidates, Refusal
from api.routing.complexity import Complexity, Mode, tier
from api.routing.conditions import holds
from api.routing.conversation import Conversation
from api.routing.conversations import Conversations
from api.routing.facts import Facts
from shared.config.models.loader import Registry
from shared.config.models.routes import COMPLEXITY, CONVERSATION, OTHERWISE, RequestedRoute, Route, Rule
from shared.domain.decisions import RouteDecision
from shared.postgres.job_store import NewJob
from shared.telemetry.metrics import Metrics, SkipReason

# If no model can serve a request, the reason that a client can do most about comes first.
_WORST_LAST = (SkipReason.CONTEXT_LENGTH, SkipReason.LIMIT, SkipReason.CAPABILITY, SkipReason.REMOVED)


@dataclass(frozen=True, slots=True)
class Choice:
    """The model for a request, the rule that chose it, and the models that were tried before or may take over."""

    model: str
    rule: str
    score: float | None = None
    tried: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()


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
class _Request:
    """A request to be routed, and what has been found out about it so far."""

    principal: Principal
    new: NewJob
    route: Route
    mode: Mode
    history: Conversation
    facts: Facts
    # The model of the conversation's earlier answers.
    known: str | None
    refusals: dict[str, Refusal | None] = field(default_factory=dict)
    overloads: dict[str, Refusal | None] = field(default_factory=dict)

    def may_serve(self, model: str) -> bool:
        """Whether a model is not below the tier of the conversation's earlier answers."""
        floor = None if self.known is None else self.route.tier(self.known)
        position = self.route.tier(model)
        return floor is None or position is None or position >= floor


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
        self._metrics = metrics

    async def route(self, principal: Principal, new: NewJob) -> NewJob:
        """The job with a model in place of the route that it names; the job itself if it names a model."""
        requested = self._registry.route(new.model)
        if requested is None or new.kind is not None:  # such as a summary, whose model the operator names
            return new
        route, history = requested.route, Conversation(new.request)
        ids = history.ids(route.name, principal.owner) if route.sticky_s else None
        previous, own = (ids.previous if history.continues else (), ids.own) if ids is not None else ((), ())
        known = self._first_known(await self._conversations.models(previous))
        request = self._request(principal, new, requested, history, known)
        choice = await self._choose(request)
        await self._conversations.remember(own, choice.model, route.sticky_s, better=route.above(choice.model))
        self._count(request, choice)
        decision = RouteDecision(
            route=route.name,
            rule=choice.rule,
            mode=None if requested.mode is Mode.BALANCED else requested.mode.value,
            score=None if choice.score is None else round(choice.score, 4),
            tried=choice.tried,
            fallbacks=choice.fallbacks,
            conversation=own[0] if own else None,
        )
        return replace(
            new,
            model=choice.model,
            requested_model=new.model,
            decisions=new.decisions.model_copy(update={"route": decision}),
        )

    async def explain(self, principal: Principal, new: NewJob) -> Explanation | None:
        """How a request would be routed; None if it names a model. Nothing is remembered or counted."""
        requested = self._registry.route(new.model)
        if requested is None:
            return None
        route, history = requested.route, Conversation(new.request)
        known = None
        if route.sticky_s and history.continues:
            previous = history.ids(route.name, principal.owner).previous
            known = self._first_known(await self._conversations.models(previous))
        request = self._request(principal, new, requested, history, known, counts_all=True)
        choice = await self._choose(request)
        refusals = {
            name: await self._refusal(request, name) or await self._overload(request, name) for name in route.candidates
        }
        tokens = await request.facts.input_tokens()
        score = self._complexity.score(new.request)
        return Explanation(route.name, requested.mode, choice, refusals, score, tokens)

    def _first_known(self, models: Iterable[str | None]) -> str | None:
        return next((model for model in models if model is not None and model in self._registry), None)

    def _request(
        self,
        principal: Principal,
        new: NewJob,
        requested: RequestedRoute,
        history: Conversation,
        known: str | None,
        *,
        counts_all: bool = False,
    ) -> _Request:
        route = requested.route
        facts = Facts(
            new.request,
            tier=principal.tier,
            priority=new.priority,
            models=route.candidates,
            count_up_to=None if counts_all else route.counts_up_to,
            candidates=self._candidates,
        )
        return _Request(principal, new, route, requested.mode, history, facts, known)

    async def _choose(self, request: _Request) -> Choice:
        known, provider = request.known, request.history.provider
        if provider is not None and (bound := await self._of_provider(request, provider)) is not None:
            return bound
        if known is not None and request.history.in_tool_loop:
            return Choice(known, CONVERSATION)
        choice, rule = await self._by_rules(request)
        if known is not None and choice.model != known and known in request.route.candidates:
            floor, position = request.route.tier(known), request.route.tier(choice.model)
            if floor is None or position is None or position < floor:
                choice, rule = replace(choice, model=known, rule=CONVERSATION), None
        return await self._serve(request, choice, rule)

    async def _of_provider(self, request: _Request, provider: str) -> Choice | None:
        """The model for a conversation with opaque parts of a provider; None if the route has none that reads them."""
        models = self._registry.models

        def reads(name: str) -> bool:
            return name in models and models[name].provider == provider

        if request.known is not None and reads(request.known):
            return Choice(request.known, CONVERSATION)
        readers = [name for name in request.route.candidates if reads(name)]
        if not readers:
            return None
        choice, _ = await self._by_rules(request)
        readers = [name for name in readers if request.may_serve(name)] or readers
        readers.sort(key=lambda name: name != choice.model)
        for name in readers:
            if await self._refusal(request, name) is None:
                return choice if name == choice.model else replace(choice, model=name, rule=CONVERSATION)
        return replace(choice, model=readers[0], rule=CONVERSATION)

    async def _by_rules(self, request: _Request) -> tuple[Choice, Rule | None]:
        """The choice of the first rule that applies, with that rule; otherwise the route's default."""
        route, facts = request.route, request.facts
        for rule in route.rules:
            if await holds(rule.conditions, route.models[0] if route.models else "", facts):
                return Choice(self._of_rule(request, rule), rule.name), rule
        if route.otherwise is not None and route.otherwise != COMPLEXITY:
            return Choice(route.otherwise, OTHERWISE), None
        score = self._complexity.score(request.new.request)
        position = tier(self._complexity, score, request.mode, len(route.models))
        return Choice(route.models[position], COMPLEXITY, score), None

    @staticmethod
    def _of_rule(request: _Request, rule: Rule) -> str:
        if rule.model is not None:
            return rule.model
        assert rule.split
        at = request.history.sample(f"{request.route.name}/{rule.name}", request.principal.owner)
        for name, percentage in rule.split.items():
            at -= percentage
            if at < 0:
                return name
        return name  # rounding

    async def _serve(self, request: _Request, choice: Choice, rule: Rule | None) -> Choice:
        """Replace the chosen model if it cannot serve the request, and add the models that may take over from it."""
        chain = [choice.model, *filter(request.may_serve, request.route.fallbacks_of(choice.model))]
        usable = [name for name in chain if await self._refusal(request, name) is None]
        if not usable:
            others = [*(() if rule is None else rule.models), *_by_tier(request.route, choice.model)]
            others = [name for name in dict.fromkeys(others) if name not in chain and request.may_serve(name)]
            for name in others:
                if await self._refusal(request, name) is None:
                    found = await self._serve(request, replace(choice, model=name), None)
                    return replace(found, tried=tuple(dict.fromkeys((*chain, *found.tried))))
            refused = [name for name in (*chain, *others) if request.refusals[name] is not None]
            return replace(choice, model=min(refused, key=lambda name: _rank(request.refusals[name])))
        model = usable[0]
        if len(usable) > 1:
            for name in usable:
                if await self._overload(request, name) is None:
                    model = name
                    break
        return replace(
            choice,
            model=model,
            tried=tuple(chain[: chain.index(model)]),
            # Ids of tokens mean something else to another model.
            fallbacks=() if request.new.request.names_tokens else tuple(usable[usable.index(model) + 1 :]),
        )

    async def _refusal(self, request: _Request, model: str) -> Refusal | None:
        if model not in request.refusals:
            refusal: Refusal | None = Refusal(SkipReason.REMOVED, "models.yaml does not declare it any more")
            if model in self._registry:
                refusal = await self._candidates.refusal(model, request.principal, request.new)
            request.refusals[model] = refusal
        return request.refusals[model]

    async def _overload(self, request: _Request, model: str) -> Refusal | None:
        if model not in request.overloads:
            request.overloads[model] = await self._candidates.overload(model, request.new)
        return request.overloads[model]

    def _count(self, request: _Request, choice: Choice) -> None:
        route = request.route.name
        self._metrics.route_decisions.labels(route, choice.rule, self._metrics.model_label(choice.model)).inc()
        for name in choice.tried:
            if (refusal := request.refusals.get(name) or request.overloads.get(name)) is not None:
                label = self._metrics.model_label(name)
                self._metrics.route_skipped.labels(route, label, refusal.reason.value).inc()


def _by_tier(route: Route, model: str) -> tuple[str, ...]:
    """The other tiers, those above the model first, then those below it, the closest first."""
    position = route.tier(model)
    if position is None:
        return route.models
    return (*route.models[position + 1 :], *reversed(route.models[:position]))


def _rank(refusal: Refusal | None) -> int:
    return _WORST_LAST.index(refusal.reason) if refusal is not None and refusal.reason in _WORST_LAST else 0
