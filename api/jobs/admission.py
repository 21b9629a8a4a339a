"""Admission control: single submits, batch lines and replays all pass through `admit`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial

from api.budgets.budgets import Budgets
from api.context.count_memo import counting_once
from api.context.limits import TokenLimiter
from api.context.shortening import Shortening
from api.context.summaries import SummaryJobs
from api.context.window import ContextWindow, PromptTokens
from api.jobs.capability_check import CapabilityCheck
from api.jobs.logprob_limit import LogprobLimit
from api.jobs.media_check import NO_MEDIA_LIMITS, MediaCheck, MediaLimits
from api.jobs.quotas import NO_RESERVATION, JobQuotas, Reservation
from api.keys.allowed_models import require_allowed
from api.keys.principal import Principal, Scope
from api.limits.limiter import NOTHING, RateLimiter, Taken
from api.request_log.levels import NO_LEVELS, LogLevels
from api.routing.candidates import CostLimit
from api.routing.router import Explanation, Routed, Router
from api.webhooks.request_webhooks import RequestWebhooks
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.errors import BudgetExceeded, RateLimited
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.structure_size import structure_steps
from shared.telemetry.metrics import Metrics

# Steps of at most about a millisecond between two turns of the event loop.
STEPS_PER_TURN = 4


class Admission:
    """Runs the checks that a job must pass before it is stored."""

    def __init__(
        self,
        registry: Registry,
        context: ContextWindow,
        quotas: JobQuotas | None = None,
        media: MediaLimits = NO_MEDIA_LIMITS,
        metrics: Metrics | None = None,
        router: Router | None = None,
        shortening: Shortening | None = None,
        limiter: RateLimiter | None = None,
        budgets: Budgets | None = None,
        log_levels: LogLevels = NO_LEVELS,
        webhooks: RequestWebhooks | None = None,
    ) -> None:
        """Without a router, requests that name a route are rejected as those with an unknown model."""
        self._registry = registry
        self._capabilities = CapabilityCheck(registry)
        self._media = MediaCheck(media)
        self._context = context
        self._token_limiter = TokenLimiter(registry, context, metrics)
        self._logprobs = LogprobLimit(registry, context)
        self._quotas = quotas
        self._router = router
        self._shortening = shortening or Shortening(registry, context, metrics=metrics)
        self._limiter = limiter
        self._budgets = budgets
        self._log_levels = log_levels
        self._webhooks = webhooks

    async def admit(self, principal: Principal, new: NewJob, jobs: SummaryJobs | None = None) -> NewJob:
        """Check a new job of a principal. Returns the job to store, which a step may have changed: its model is none of
        the routes.

        `jobs` runs jobs that write summaries of long conversations. Without it, none are written.

        Raises:
            Forbidden: the key may not be used for inference, or not for this priority.
            NotFound: the model does not exist, or the key may not be used for it.
            InvalidRequest: the model cannot serve the request, a limit of tokens is exceeded, an image or a file is
                damaged or too large, the prompt does not fit the model's context, too many log probabilities are
                requested, a structured output exceeds a bound, nothing may be sent to the webhook, or it is not known
                what the job could cost at most, and a hard budget applies.
            BudgetExceeded: the job could cost more than the whole of a hard budget.
        """
        # Order: choose the model (routing), check the request against it, look up a stored result (cache). Steps that
        # reserve something (caps, limits, budgets) come last, so that a rejected job has reserved nothing.
        principal.require(Scope.INFERENCE)
        principal.require_priority(new.priority)
        self._require_allowed(principal, new)
        if self._webhooks is not None and new.webhook is not None:
            await self._webhooks.admit(principal.project_id, new.webhook)
        with counting_once(principal.project_id):
            return await self._admitted(principal, new, jobs)

    async def _admitted(self, principal: Principal, new: NewJob, jobs: SummaryJobs | None) -> NewJob:
        routed = await self._router.route(principal, new) if self._router is not None else None
        return await self._checked(principal, new if routed is None else routed.job, routed, jobs)

    async def _checked(
        self, principal: Principal, new: NewJob, routed: Routed | None, jobs: SummaryJobs | None
    ) -> NewJob:
        """Run the checks and steps of a job whose model is known: whichever way it was chosen."""
        new = self._log_levels.apply(principal, new)
        new = self._token_limiter.limit_output(principal, new)
        new = await self._shortening.shorten(principal, new, jobs)
        new = await self._token_limiter.check_input(principal, new)
        await self.check(new.model, new.request)
        if self._router is not None and routed is not None:
            new = await self._router.settle(principal, routed, new)
        if self._budgets is not None:
            new = await self._budgets.plan(new)
        return new

    async def downgrade(
        self, principal: Principal, new: NewJob, refusal: BudgetExceeded, jobs: SummaryJobs | None = None
    ) -> NewJob:
        """As `admit`, with a model that costs less: for a job that budgets have refused that choose cheaper models.

        Raises:
            BudgetExceeded: its route has none, or it names a model; or as `admit`.
        """
        if self._router is None or not self._router.names_route(new.model):
            raise refusal.without_cheaper("A route could choose a cheaper model, but the request names a model.")
        with counting_once(principal.project_id):
            limit = CostLimit(refusal.amount, refusal.room, partial(self._most_cost, principal, new))
            routed = await self._router.downgrade(principal, new, limit)
            if routed is None:
                raise refusal.without_cheaper(f"No cheaper model of the route `{new.model}` can run it instead.")
            return await self._checked(principal, routed.job, routed, jobs)

    async def _most_cost(self, principal: Principal, new: NewJob, model: str) -> Decimal | None:
        """What a job could cost at most with a model that can serve it; None if it is not known."""
        limited = self._token_limiter.limit_output(principal, replace(new, model=model), counted=False)
        return await self._budgets.most_cost(limited) if self._budgets is not None else None

    async def hold(self, new: NewJob, error: BudgetExceeded) -> NewJob | None:
        """The job as it can be stored now, to be started when the budgets that have no room for it have it again. None:
        it cannot wait."""
        return await self._budgets.held(new, error) if self._budgets is not None and error.holds else None

    async def remember(self, new: NewJob) -> None:
        """Remember what the next request of its conversation must know of an admitted job, before it is stored.

        A job that a quota refuses is not remembered: nobody answers it.
        """
        if self._router is not None and new.note is not None:
            await self._router.remember(new.note)

    async def take_rates(self, new: NewJob, *, of_batch: bool = False) -> Taken:
        """Take what an admitted job needs from the rate limits, from all of them or from none.

        For each job that a client submits, lines of batches and replays among them; see `RateLimiter.take`. It is
        returned to the `Settlement`: if no job is created, or once the job has ended.

        Raises:
            RateLimited: a limit is reached.
            Unavailable: Redis is unavailable, and the setting is to refuse requests then.
        """
        return await self._limiter.take(new, of_batch=of_batch) if self._limiter is not None else NOTHING

    async def take_request(self, owner: Owner, model: str) -> None:
        """Take a request that runs no job from the rate limits; raises as `take_rates`."""
        if self._limiter is not None:
            await self._limiter.take_request(owner, model)

    def check_requests(self, owner: Owner, model: str, number: int) -> None:
        """Check that the rate limits allow `number` requests at the same time; nothing is taken.

        Raises:
            RateLimited: a limit never does.
        """
        if self._limiter is not None:
            self._limiter.check_requests(owner, model, number)

    async def refused_together(self, refused: Sequence[RateLimited], taken: Sequence[Taken]) -> RateLimited:
        """The error of several jobs that are accepted all or none; see `RateLimiter.together`."""
        return await self._limiter.together(refused, taken) if self._limiter is not None else refused[0]

    async def reserve(self, new: NewJob) -> Reservation:
        """Reserve a part of the quotas for an admitted job, until the caller has stored it.

        For jobs that a client submits now. Lines of batches and replays are admitted without quotas: only a part of a
        batch is queued at a time (HEADRACE_BATCH_JOBS), and an operator replays.

        Raises:
            QuotaExceeded: a quota is used up.
        """
        return await self._quotas.reserve(new) if self._quotas is not None else NO_RESERVATION

    async def recheck(self, principal: Principal, new: NewJob) -> NewJob:
        """Run the checks of a job without side effects: of a rejected one, to report the reason, or of one that is not
        submitted. Returns it as it would be admitted; raises as `admit`."""
        new = await self._preview(principal, new)
        new = self._token_limiter.limit_output(principal, new, counted=False)
        new = await self._shortening.shorten(principal, new, counted=False)
        new = await self._token_limiter.check_input(principal, new, counted=False)
        await self.check(new.model, new.request)
        if self._router is not None:
            new = await self._router.without_unfit(principal, new)
        if self._budgets is not None:
            await self._budgets.check(new)
        return new

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Check a request against its model, without side effects; raises as `admit`."""
        spec = self._registry[model]
        self._capabilities.check(model, request)
        await self._media.check(request)
        await self._check_structure(spec, request)
        await self._context.check(model, request)
        await self._logprobs.check(model, request)
        self.require_model(model)

    async def explain(self, principal: Principal, new: NewJob) -> Explanation | None:
        """How a job would be routed; None if it names a model.

        Raises:
            Forbidden: as `admit`.
            NotFound: there is neither a model nor a route of this name, or the key may not be used for it.
        """
        principal.require(Scope.INFERENCE)
        principal.require_priority(new.priority)
        self._require_allowed(principal, new)
        with counting_once(principal.project_id):
            explanation = await self._router.explain(principal, new) if self._router is not None else None
        if explanation is None:
            self.require_model(new.model)
        return explanation

    async def model_of(self, principal: Principal, new: NewJob) -> str:
        """The model that would run a job: the one that it names, or that of the route. Nothing is remembered.

        Raises:
            NotFound: the key may not be used for it.
        """
        return (await self._preview(principal, new)).model

    async def _preview(self, principal: Principal, new: NewJob) -> NewJob:
        """The job with the model that would run it, and the fallbacks of its route; raises as `model_of`."""
        self._require_allowed(principal, new)
        with counting_once(principal.project_id):
            return await self._router.preview(principal, new) if self._router is not None else new

    def _require_allowed(self, principal: Principal, new: NewJob) -> None:
        if new.kind is None:  # otherwise a request that was allowed needs the job, maybe of a model that a route chose
            require_allowed(principal, self._registry, new.model)

    def require_model(self, model: str) -> None:
        """Raise `NotFound` if a reload has removed the model; its last worker may have ended by then."""
        self._registry[model]

    async def count_tokens(
        self, model: str, request: GenerateRequest, project_id: int | None = None
    ) -> PromptTokens | None:
        """Count the tokens of a prompt, or estimate them if they cannot be counted; None if only a worker can.

        Raises:
            NotFound: the model does not exist.
            InvalidRequest: the model cannot serve the request, an image or a file is damaged or too large, or the chat
                template rejects the prompt.
        """
        spec = self._registry[model]
        self._capabilities.check(model, request)
        await self._media.check(request)
        if (tokens := await self._context.count(model, request)) is not None:
            return PromptTokens(tokens)
        return None if spec.capabilities.token_counting else self._context.estimate(model, request, project_id)

    async def _check_structure(self, spec: ModelSpec, request: GenerateRequest) -> None:
        """Check what the model's engine will compile, without blocking the event loop."""
        if (bounds := spec.structure_bounds) is not None:
            for number, _ in enumerate(structure_steps(request, bounds, all_tools=spec.compiles_all_tools)):
                if number % STEPS_PER_TURN == STEPS_PER_TURN - 1:
                    await asyncio.sleep(0)
