"""Chooses the model of a request: by rules, by complexity, and by what answered the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from api.routing.candidates import Candidates, CostLimit, Refusal
from api.routing.complexity import Complexity, level
from api.routing.conditions import holds
from api.routing.routed_request import Choice, RoutedRequest
from shared.config.models.loader import Registry
from shared.config.models.routes import BUDGET, COMPLEXITY, CONVERSATION, OTHERWISE, Route, Rule
from shared.telemetry.definitions.labels import SkipReason

# If no model can serve a request, the reason that the client can act on most easily comes first.
_WORST_LAST = (SkipReason.CONTEXT_LENGTH, SkipReason.LIMIT, SkipReason.CAPABILITY, SkipReason.REMOVED)


class Chooser:
    """Chooses models. What it finds out about models on the way stays with the request."""

    def __init__(self, registry: Registry, candidates: Candidates, complexity: Complexity) -> None:
        self._registry = registry
        self._candidates = candidates
        self._complexity = complexity

    async def choose(self, request: RoutedRequest) -> Choice:
        """Choose the model, and those that may take over from it."""
        known, provider = request.known, request.history.provider
        if provider is not None and (bound := await self._of_provider(request, provider)) is not None:
            return bound
        if known is not None and request.history.in_tool_loop:
            return Choice(known.model, CONVERSATION)
        choice, rule = await self._by_rules(request)
        if (kept := request.kept(choice.model)) is not None:
            return await self._serve(request, replace(choice, model=kept, rule=CONVERSATION), rule, displaced=choice)
        return await self._serve(request, choice, rule)

    async def cheaper(self, request: RoutedRequest, choice: Choice, limit: CostLimit) -> Choice | None:
        """The model for a request instead of the chosen one, which costs too much: of the route's levels, or of all its
        models if it has none.

        It is the dearest one within the limit that can serve the request, or the cheapest if all cost more than there
        is room for: then the budgets say when there will be. None if no model costs less, or if the conversation is
        bound to its model.
        """
        history, route = request.history, request.route
        if request.known is not None and history.in_tool_loop:
            return None
        costs: dict[str, Decimal] = {}
        for name in route.models or route.candidates:
            if history.provider is not None and not self._reads(name, history.provider):
                continue
            if await self.refusal(request, name) is not None:
                continue
            if (cost := await limit.cost(name)) is not None and cost < limit.below:
                costs[name] = cost
        if not costs:
            return None
        # Of models that cost the same, the highest level comes first.
        cheapest_first = sorted(costs, key=costs.__getitem__)
        affordable = [name for name in reversed(cheapest_first) if costs[name] <= limit.room] or cheapest_first[:1]
        model = await self._first(request, affordable) or affordable[0]
        others = [name for name in route.fallbacks_of(model) if name in costs and costs[name] <= costs[model]]
        fallbacks = () if request.new.request.names_tokens else tuple(others)
        return replace(choice, model=model, rule=BUDGET, fallbacks=fallbacks)

    def _reads(self, name: str, provider: str) -> bool:
        """Whether a model can read the opaque parts of a provider."""
        models = self._registry.models
        return name in models and models[name].provider == provider

    async def _of_provider(self, request: RoutedRequest, provider: str) -> Choice | None:
        """The model for a conversation with opaque parts of a provider; None if none is known that reads them."""
        readers = [name for name in request.route.candidates if self._reads(name, provider)]
        known = request.known.model if request.known is not None else ""
        # A model that a reload has removed from the route keeps its tool loops, and the conversations that no other
        # model of the route can read.
        if self._reads(known, provider) and (known in readers or request.history.in_tool_loop or not readers):
            return Choice(known, CONVERSATION)
        if not readers:
            return None
        choice, _ = await self._by_rules(request)
        readers = [name for name in readers if request.may_serve(name)] or readers
        readers.sort(key=lambda name: name != choice.model)
        if (found := await self._first(request, readers)) == choice.model:
            return choice
        return replace(choice, model=readers[0] if found is None else found, rule=CONVERSATION)

    async def _by_rules(self, request: RoutedRequest) -> tuple[Choice, Rule | None]:
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
    def _of_rule(request: RoutedRequest, rule: Rule) -> str:
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
        self, request: RoutedRequest, choice: Choice, rule: Rule | None, displaced: Choice | None = None
    ) -> Choice:
        """Replace the chosen model if it cannot serve the request, and add the models that may take over from it.

        `displaced` would have been chosen if the conversation did not keep its model.
        """
        chain = [choice.model, *filter(request.may_serve, request.route.fallbacks_of(choice.model))]
        usable = [name for name in chain if await self.refusal(request, name) is None]
        if not usable:
            others = [
                *(() if displaced is None else (displaced.model,)),
                *(() if rule is None else rule.models),
                *_by_level(request.route, choice.model),
                *request.route.candidates,
            ]
            others = [name for name in dict.fromkeys(others) if name not in chain and request.may_serve(name)]
            if (name := await self._first(request, others)) is not None:
                other = displaced if displaced is not None and displaced.model == name else choice
                found = await self._serve(request, replace(other, model=name), None)
                return replace(found, tried=tuple(dict.fromkeys((*chain, *found.tried))))
            refused = [name for name in (*chain, *others) if request.refusals[name] is not None]
            return replace(choice, model=min(refused, key=lambda name: _rank(request.refusals[name])))
        model = usable[0] if len(usable) == 1 else await self._soonest(request, usable)
        return replace(
            choice,
            model=model,
            tried=tuple(chain[: chain.index(model)]),
            # Ids of tokens mean something else to another model.
            fallbacks=() if request.new.request.names_tokens else tuple(usable[usable.index(model) + 1 :]),
        )

    async def _soonest(self, request: RoutedRequest, usable: Sequence[str]) -> str:
        """The first model that does not have too much to do.

        If all have, the first one whose queue is not paused, because no operator has to act; if all are paused, the
        first one.
        """
        for name in usable:
            if await self.overload(request, name) is None:
                return name
        return next((name for name in usable if not _is_paused(request.overloads[name])), usable[0])

    async def _first(self, request: RoutedRequest, names: Sequence[str]) -> str | None:
        """The first model that can serve the request, one whose queue is not paused if there is one; None if none can
        serve it."""
        paused = None
        for name in names:
            if await self.refusal(request, name) is not None:
                continue
            if not _is_paused(await self.overload(request, name)):
                return name
            paused = paused or name
        return paused

    async def refusal(self, request: RoutedRequest, model: str) -> Refusal | None:
        """Why a model cannot serve the request; None if it can."""
        if model not in request.refusals:
            refusal: Refusal | None = Refusal(SkipReason.REMOVED, "models.yaml no longer declares it")
            if model in self._registry:
                refusal = await self._candidates.refusal(model, request.principal, request.new)
            request.refusals[model] = refusal
        return request.refusals[model]

    async def overload(self, request: RoutedRequest, model: str) -> Refusal | None:
        """Why a model cannot serve the request soon; None if it can."""
        if model not in request.overloads:
            request.overloads[model] = await self._candidates.overload(
                model, request.new, request.route.fallback_wait_s
            )
        return request.overloads[model]


def _by_level(route: Route, model: str) -> tuple[str, ...]:
    """The other levels, those above the model first, then those below it, the closest first."""
    position = route.level(model)
    if position is None:
        return route.models
    return (*route.models[position + 1 :], *reversed(route.models[:position]))


def _is_paused(overload: Refusal | None) -> bool:
    return overload is not None and overload.reason is SkipReason.PAUSED


def _rank(refusal: Refusal | None) -> int:
    return _WORST_LAST.index(refusal.reason) if refusal is not None and refusal.reason in _WORST_LAST else 0
