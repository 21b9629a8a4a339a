"""Tells routes about models, from the checks of admission and the estimates of the queues."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from api.context.limits import TokenLimiter
from api.context.window import ContextWindow, PromptTokens
from api.jobs.capability_check import CapabilityCheck
from api.jobs.queue_estimates import QueueEstimates
from api.keys.principal import Principal
from api.routing.candidates import Refusal
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest
from shared.runtime.outages import is_database_outage
from shared.telemetry.definitions.labels import SkipReason

logger = logging.getLogger(__name__)


class RouteCandidates:
    """The models of routes. During a database outage, nothing is known about their queues."""

    def __init__(self, registry: Registry, context: ContextWindow, estimates: QueueEstimates) -> None:
        self._registry = registry
        self._capabilities = CapabilityCheck(registry)
        self._context = context
        self._token_limiter = TokenLimiter(registry, context)
        self._estimates = estimates

    async def refusal(self, model: str, principal: Principal, new: NewJob, *, shortens: bool = True) -> Refusal | None:
        """As in `Candidates`. A model whose conversations are shortened is not refused because of their length."""
        reason = SkipReason.CAPABILITY
        try:
            if (missing := self._capabilities.unmet(model, new.request)) is not None:
                message = f"{missing.param}: does not support {missing.what}"
                return Refusal(reason, message)
            reason = SkipReason.LIMIT
            limited = self._token_limiter.limit_output(principal, replace(new, model=model), counted=False)
            options = new.options.context or principal.options.context or self._registry[model].context
            if not shortens or options is None or options.strategy == "error":
                await self._token_limiter.check_input(principal, limited, counted=False)
                reason = SkipReason.CONTEXT_LENGTH
                await self._context.check(model, limited.request)
        except NotFound as error:  # a reload has removed it
            return Refusal(SkipReason.REMOVED, error.message)
        except InvalidRequest as error:
            return Refusal(reason, error.message)
        return None

    async def overload(self, model: str, new: NewJob, max_wait_s: float | None = None) -> Refusal | None:
        """As in `Candidates`."""
        try:
            rate = await self._estimates.rate(model)
            if rate.paused:
                return Refusal(SkipReason.PAUSED, "its queue is paused by an operator")
            if not rate.workers:
                return Refusal(SkipReason.NO_WORKER, "it has no ready worker")
            if not rate.slots:
                return Refusal(SkipReason.BREAKER_OPEN, "its upstream is failing, and its circuit breaker is open")
            if new.start_within_s is None and max_wait_s is None:
                return None
            wait_s = await self._estimates.new_job_wait_s(model, new.priority)
        except Exception as error:
            self._tolerate(model, error)
            return None
        if wait_s is None:
            return None
        if new.start_within_s is not None and wait_s > new.start_within_s:
            message = f"a job would wait about {wait_s:g} s, and this one must start within {new.start_within_s:g} s"
            return Refusal(SkipReason.WAIT, message)
        if max_wait_s is not None and wait_s > max_wait_s:
            message = f"a job would wait about {wait_s:g} s, more than the route's fallback_wait_s, {max_wait_s:g} s"
            return Refusal(SkipReason.WAIT, message)
        return None

    async def wait_s(self, model: str, priority: int) -> float | None:
        """As in `Candidates`."""
        try:
            rate = await self._estimates.rate(model)
            return await self._estimates.new_job_wait_s(model, priority) if rate.slots and not rate.paused else math.inf
        except Exception as error:
            self._tolerate(model, error)
            return None

    def length(self, model: str) -> int | None:
        """As in `Candidates`."""
        return self._context.length(model)

    def most_tokens(self, model: str, request: GenerateRequest) -> int | None:
        """As in `Candidates`."""
        return self._context.most_tokens(model, request)

    async def measure(
        self, model: str, request: GenerateRequest, limit: int | None, project_id: int
    ) -> PromptTokens | None:
        """As in `Candidates`."""
        try:
            return await self._context.measure(model, request, limit, project_id)
        except InvalidRequest:  # the template rejects the prompt
            return None

    @staticmethod
    def _tolerate(model: str, error: Exception) -> None:
        """Raise an error unless the database is unavailable."""
        if not is_database_outage(error):
            raise error
        logger.warning("model=%s cannot estimate its queue for a route: %s", model, error)
