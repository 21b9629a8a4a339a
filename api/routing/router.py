"""Chooses the model of a request that names a route: by rules, by complexity, and by what answered the conversation.

A conversation never goes down a level, and keeps its model inside a tool loop and as long as its history has opaque
parts, such as signed reasoning, that only one provider's models accept. A model that cannot serve the request is
replaced by its fallbacks, or by another model; one that has too much to do, by its fallbacks only.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from api.context.window import PromptTokens
from api.keys.principal import Principal
from api.routing.candidates import Candidates, Refusal
from api.routing.complexity import Complexity, Mode, level
from api.routing.conditions import holds
from api.routing.conversations import Conversations
from api.routing.facts import Facts
from shared.config.models.loader import Registry
from shared.config.models.routes import COMPLEXITY, CONVERSATION, OTHERWISE, RequestedRoute, Route, Rule
from shared.domain.conversation import Conversation, ConversationNote
from shared.domain.decisions import RouteDecision
from shared.domain.new_job import NewJob
from shared.redis.conversation_models import KnownModel
from shared.telemetry.definitions.labels import SkipReason
from shared.telemetry.metrics import Metrics

# For how long the model of a tool loop is remembered by routes that remember nothing else.
TOOL_LOOP_S = 3600
# Tokens up to which an explanation counts a prompt, if no candidate's context is known.
EXPLAINED_TOKENS = 100_000

# If no model can serve a request, the reason that the client can act on most easily comes first.
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
class Routed:
    """A job with a model in place of the route that it named, and how its conversation is remembered."""

    job: NewJob
    route: Route
    names: tuple[str, ...]
    known: KnownModel
    ttl_s: int


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
    known: KnownModel | None
    refusals: dict[str, Refusal | None] = field(default_factory=dict)
    overloads: dict[str, Refusal | None] = field(default_factory=dict)

    @property
    def floor(self) -> int | None:
        """The highest level that has answered the conversation; None if none has."""
        return None if self.known is None else _highest(self.route, self.known.model, self.known.floor)

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

    async def route(self, principal: Principal, new: NewJob) -> Routed | None:
        """Choose a model for a job that names a route; None if it names a model.

        Nothing is remembered before `remember`.
        """
        requested = self._registry.route(new.model)
        if requested is None or new.kind is not None:  # such as a summary, whose model the operator names
            return None
        route, history = requested.route, Conversation(new.request)
        names = history.names(route.name, principal.owner)
        known = await self._known(new, route, history, names.previous)
        request = self._request(principal, new, requested, history, known)
        choice = await self._choose(request)
        self._count(request, choice)
        remembers = bool(names.own) and (route.sticky_s > 0 or history.has_tools)
        tokens = request.facts.measured
        decision = RouteDecision(
            route=route.name,
            rule=choice.rule,
            mode=None if requested.mode is Mode.BALANCED else requested.mode.value,
            score=None if choice.score is None else round(choice.score, 4),
            tried=choice.tried,
            fallbacks=choice.fallbacks,
            conversation=secrets.token_hex(16) if remembers else None,
            input_tokens=None if tokens is None else tokens.number,
            tokens_estimated=tokens is not None and tokens.estimated,
        )
        job = replace(
            new,
            model=choice.model,
            requested_model=new.model,
            decisions=new.decisions.model_copy(update={"route": decision}),
        )
        floor = _highest(route, choice.model, *(() if known is None else (known.model, known.floor)))
        answers = KnownModel(choice.model, None if floor is None else route.models[floor])
        return Routed(job, route, names.own, answers, route.sticky_s or TOOL_LOOP_S)

    async def settle(self, principal: Principal, routed: Routed, new: NewJob) -> NewJob:
        """Complete the decision about a routed job that has passed all checks.

        Returns `new` without the fallbacks that its prompt is too long for, and with what is to be remembered, under
        the names of the request that the client sent and of `new`, whose conversation may have been shortened.
        """
        decision = new.decisions.route
        assert decision is not None
        fallbacks = tuple(
            [
                name
                for name in decision.fallbacks
                if await self._candidates.refusal(name, principal, new, shortens=False) is None
            ]
        )
        if fallbacks != decision.fallbacks:
            decision = decision.model_copy(update={"fallbacks": fallbacks})
            new = replace(new, decisions=new.decisions.model_copy(update={"route": decision}))
        if decision.conversation is not None:
            names = routed.names
            if new.request.messages is not routed.job.request.messages:
                names += Conversation(new.request).names(decision.route, principal.owner).own
            known, levels = routed.known, routed.route.models
            note = ConversationNote(decision.conversation, names, known.model, known.floor, levels, routed.ttl_s)
            new = replace(new, note=note)
        return new

    async def remember(self, note: ConversationNote) -> None:
        """Remember the model of a settled job, which is about to be stored."""
        known = KnownModel(note.model, note.floor)
        await self._conversations.remember(note.conversation, note.names, known, note.ttl_s, levels=note.levels)

    async def model_of(self, principal: Principal, new: NewJob) -> str | None:
        """The model that a route would choose for a job; None if it names a model. Nothing is remembered or counted."""
        found = await self._considered(principal, new)
        return None if found is None else found[1].model

    async def explain(self, principal: Principal, new: NewJob) -> Explanation | None:
        """How a request would be routed; None if it names a model. Nothing is remembered or counted."""
        found = await self._considered(principal, new, explained=True)
        if found is None:
            return None
        request, choice = found
        refusals = {
            name: await self._refusal(request, name) or await self._overload(request, name)
            for name in request.route.candidates
        }
        tokens = await request.facts.input_tokens()
        score = self._complexity.score(new.request)
        return Explanation(request.route.name, request.mode, choice, refusals, score, tokens)

    async def _considered(
        self, principal: Principal, new: NewJob, *, explained: bool = False
    ) -> tuple[_Request, Choice] | None:
        """A request with the choice for it, as `route` makes it."""
        requested = self._registry.route(new.model)
        if requested is None:
            return None
        route, history = requested.route, Conversation(new.request)
        names = history.names(route.name, principal.owner)
        known = await self._known(new, route, history, names.previous)
        request = self._request(principal, new, requested, history, known, explained=explained)
        return request, await self._choose(request)

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
    ) -> _Request:
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
        return _Request(principal, new, route, requested.mode, history, facts, known)

    async def _choose(self, request: _Request) -> Choice:
        known, provider = request.known, request.history.provider
        if provider is not None and (bound := await self._of_provider(request, provider)) is not None:
            return bound
        if known is not None and request.history.in_tool_loop:
            return Choice(known.model, CONVERSATION)
        choice, rule = await self._by_rules(request)
        if (kept := request.kept(choice.model)) is not None:
            return await self._serve(request, replace(choice, model=kept, rule=CONVERSATION), rule, displaced=choice)
        return await self._serve(request, choice, rule)

    async def _of_provider(self, request: _Request, provider: str) -> Choice | None:
        """The model for a conversation with opaque parts of a provider; None if none is known that reads them."""
        models = self._registry.models

        def reads(name: str) -> bool:
            return name in models and models[name].provider == provider

        readers = [name for name in request.route.candidates if reads(name)]
        known = request.known.model if request.known is not None else ""
        # A model that a reload has removed from the route keeps its tool loops, and the conversations that no other
        # model of the route can read.
        if reads(known) and (known in readers or request.history.in_tool_loop or not readers):
            return Choice(known, CONVERSATION)
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
        position = level(self._complexity, score, request.mode, len(route.models))
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

    async def _serve(
        self, request: _Request, choice: Choice, rule: Rule | None, displaced: Choice | None = None
    ) -> Choice:
        """Replace the chosen model if it cannot serve the request, and add the models that may take over from it.

        `displaced` would have been chosen if the conversation did not keep its model.
        """
        chain = [choice.model, *filter(request.may_serve, request.route.fallbacks_of(choice.model))]
        usable = [name for name in chain if await self._refusal(request, name) is None]
        if not usable:
            others = [
                *(() if displaced is None else (displaced.model,)),
                *(() if rule is None else rule.models),
                *_by_level(request.route, choice.model),
                *request.route.candidates,
            ]
            others = [name for name in dict.fromkeys(others) if name not in chain and request.may_serve(name)]
            for name in others:
                if await self._refusal(request, name) is None:
                    other = displaced if displaced is not None and displaced.model == name else choice
                    found = await self._serve(request, replace(other, model=name), None)
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
            refusal: Refusal | None = Refusal(SkipReason.REMOVED, "models.yaml no longer declares it")
            if model in self._registry:
                refusal = await self._candidates.refusal(model, request.principal, request.new)
            request.refusals[model] = refusal
        return request.refusals[model]

    async def _overload(self, request: _Request, model: str) -> Refusal | None:
        if model not in request.overloads:
            request.overloads[model] = await self._candidates.overload(
                model, request.new, request.route.fallback_wait_s
            )
        return request.overloads[model]

    def _count(self, request: _Request, choice: Choice) -> None:
        route = request.route.name
        self._metrics.route_decisions.labels(route, choice.rule, self._metrics.model_label(choice.model)).inc()
        for name in choice.tried:
            if (refusal := request.refusals.get(name) or request.overloads.get(name)) is not None:
                label = self._metrics.model_label(name)
                self._metrics.route_skipped.labels(route, label, refusal.reason.value).inc()


def _by_level(route: Route, model: str) -> tuple[str, ...]:
    """The other levels, those above the model first, then those below it, the closest first."""
    position = route.level(model)
    if position is None:
        return route.models
    return (*route.models[position + 1 :], *reversed(route.models[:position]))


def _highest(route: Route, *models: str | None) -> int | None:
    """The highest level among these models; None if none is one of the levels."""
    positions = [route.level(model) for model in models if model is not None]
    return max((position for position in positions if position is not None), default=None)


def _rank(refusal: Refusal | None) -> int:
    return _WORST_LAST.index(refusal.reason) if refusal is not None and refusal.reason in _WORST_LAST else 0
