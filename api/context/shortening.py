"""The step of admission that shortens conversations that outgrow their model's context."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from api.context.cut import Budget, Cut, cut
from api.context.message_counts import MessageCounts, most_tokens
from api.context.shortened import shortened
from api.context.summaries import NoSummary, Order, Summaries, SummaryJobs
from api.context.transcript import introduction
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.answer_options import ContextOptions
from shared.domain.decisions import ContextDecision
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import NewJob
from shared.telemetry.metrics import Metrics

# A summary's share of the target, and its most tokens.
SUMMARY_SHARE = 0.25
MAX_SUMMARY_TOKENS = 1500
MIN_SUMMARY_TOKENS = 32
# The part of the context that max_tokens may take from the prompt. Own engines accept any, and end the output there.
MAX_OUTPUT_SHARE = 0.5
# Larger conversations are counted in a thread, so many at the same time.
INLINE_BYTES = 4000
THREADS = 2


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a conversation is shortened. `tokens`: of the whole prompt. `counted`: they were not estimated."""

    cut: Cut
    tokens: int
    counted: bool


class Shortening:
    """Shortens conversations, as the model, the key or the request says."""

    def __init__(
        self,
        registry: Registry,
        window: ContextWindow,
        summaries: Summaries | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Without `summaries`, as for commands that submit jobs, the oldest turns are dropped instead."""
        self._registry = registry
        self._window = window
        self._summaries = summaries
        self._metrics = metrics
        self._threads = asyncio.Semaphore(THREADS)

    async def shorten(
        self, principal: Principal, new: NewJob, jobs: SummaryJobs | None = None, *, counted: bool = True
    ) -> NewJob:
        """Shorten the conversation of a new job if it is above the trigger. `jobs` runs jobs that write summaries.

        `counted`: the outcome counts in the metrics.

        Raises:
            NotFound: the model does not exist.
            InvalidRequest: the request names a model for summaries that does not exist, or what cannot be dropped does
                not fit the context.
        """
        if new.kind is not None or new.request.messages is None:
            return new
        spec = self._registry[new.model]
        options = new.options.context or principal.options.context or spec.context
        if options is None or options.strategy == "error":
            return new
        if (asked := new.options.context) is not None and asked.model is not None and asked.model not in self._registry:
            raise InvalidRequest(
                f"context.model: the model `{asked.model}` does not exist; available models:"
                f" {', '.join(self._registry.models)}",
                param="context.model",
            )
        budget = self._budget(new, options)
        if budget is None:
            if counted:
                self._count(new.model, options.strategy, "unknown_length")
            return new
        request = new.request
        if most_tokens(request) <= budget.trigger:
            return new
        plan = await self._plan(request, self._window.message_counts(new.model), budget)
        if plan.cut.rounds:
            new = await self._shortened(principal, new, jobs, options, budget, plan)
            if counted:
                self._count_shortened(new, options.strategy)
        elif plan.tokens <= budget.trigger:
            return new
        limit = self._window.length(new.model)
        left = plan.cut.tokens - (budget.summary if plan.cut.rounds else 0)
        if limit is not None and plan.counted and left >= limit:
            self._window.note_refusal(new.model)
            if counted:
                self._count(new.model, options.strategy, "too_long")
            raise InvalidRequest(
                f"messages: this model's context is {limit} tokens, including the output; the instructions, the tools"
                f" and the newest turn, which are never dropped, have {left}",
                param="messages",
            )
        return new

    def _budget(self, new: NewJob, options: ContextOptions) -> Budget | None:
        """The trigger and the target in tokens; None if the model's context length is unknown."""
        limit = self._window.length(new.model)
        trigger = options.trigger_tokens
        if limit is not None:
            output = min(new.request.sampling.max_tokens or 0, int(limit * MAX_OUTPUT_SHARE))
            share = max(1, int((limit - output) * options.trigger))
            trigger = min(share, trigger or share)
        if trigger is None:
            return None
        target = int(trigger * options.target / options.trigger)
        summary = max(MIN_SUMMARY_TOKENS, min(MAX_SUMMARY_TOKENS, int(target * SUMMARY_SHARE)))
        return Budget(trigger, target, summary=summary if options.strategy == "summarize" else 0)

    async def _plan(self, request: GenerateRequest, counts: MessageCounts, budget: Budget) -> _Plan:
        if request.size <= INLINE_BYTES:
            return _plan(request, counts, budget)
        async with self._threads:
            return await asyncio.to_thread(_plan, request, counts, budget)

    async def _shortened(
        self,
        principal: Principal,
        new: NewJob,
        jobs: SummaryJobs | None,
        options: ContextOptions,
        budget: Budget,
        plan: _Plan,
    ) -> NewJob:
        dropped = sum(map(len, plan.cut.rounds))
        after = plan.cut.tokens - budget.summary
        text = note = job_id = None
        if options.strategy == "summarize":
            try:
                text, job_id, added = await self._summary(principal, new, jobs, options, budget, plan)
                after += added
            except NoSummary as error:
                note = f"The oldest messages were dropped without a summary: {error}."
        decision = ContextDecision(
            strategy="sliding_window" if text is None else "summarize",
            dropped_messages=dropped if text is None else 0,
            summarized_messages=dropped if text is not None else 0,
            summary_job=job_id,
            tokens_before=plan.tokens,
            tokens_after=after,
            note=note,
        )
        update = {"context": decision} | ({} if plan.counted else {"tokens_estimated": True, "estimated_tokens": after})
        decisions = new.decisions.model_copy(update=update)
        return replace(new, request=shortened(new.request, plan.cut.kept, text), decisions=decisions)

    async def _summary(
        self,
        principal: Principal,
        new: NewJob,
        jobs: SummaryJobs | None,
        options: ContextOptions,
        budget: Budget,
        plan: _Plan,
    ) -> tuple[str, str, int]:
        """The text that replaces the dropped messages, the job that wrote it, and its tokens.

        Raises:
            NoSummary: there is none.
        """
        if self._summaries is None or jobs is None:
            raise NoSummary("summaries are not written for lines of batches and replayed jobs")
        if new.options.store is False:
            raise NoSummary("with `store` false, no summary may be stored")
        messages = new.request.messages or []
        rounds = [[messages[position] for position in positions] for positions in plan.cut.rounds]
        model = self._summarizer(principal, new, options)
        summary = await self._summaries.summary(jobs, principal, Order(new, model, rounds, budget.summary))
        text = introduction(summary.text)
        counts = self._window.message_counts(new.model)
        added = counts.message(Message(role="user", content=text)) - counts.message(Message(role="user", content=""))
        if plan.cut.tokens - budget.summary + added > max(budget.trigger, plan.cut.tokens):
            raise NoSummary(f"the summary of job {summary.job_id} is too long, {added} tokens")
        return text, summary.job_id, added

    def _summarizer(self, principal: Principal, new: NewJob, options: ContextOptions) -> str:
        """The model that writes summaries: if the options name none, that of the key or of the model, or the model."""
        spec: ModelSpec = self._registry[new.model]
        configured = (options, principal.options.context, spec.context)
        return next((given.model for given in configured if given is not None and given.model is not None), new.model)

    def _count_shortened(self, new: NewJob, strategy: str) -> None:
        decision = new.decisions.context
        if decision is None or self._metrics is None:
            return
        outcome = "dropped" if decision.strategy == "sliding_window" else "summarized"
        self._count(new.model, strategy, outcome if decision.note is None else "fell_back")
        saved = (decision.tokens_before or 0) - (decision.tokens_after or 0)
        self._metrics.context_tokens_dropped.labels(self._metrics.model_label(new.model)).inc(max(0, saved))

    def _count(self, model: str, strategy: str, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.conversations_shortened.labels(self._metrics.model_label(model), strategy, outcome).inc()


def _plan(request: GenerateRequest, counts: MessageCounts, budget: Budget) -> _Plan:
    messages = request.messages or []
    tokens = [counts.message(message) for message in messages]
    rest = counts.rest(request)
    return _Plan(cut(messages, tokens, replace(budget, fixed=rest)), rest + sum(tokens), counts.is_counted(request))
