"""The step of admission that shortens conversations that outgrow their model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from api.context.cut import Budget, Cut, cut
from api.context.limits import TokenLimiter
from api.context.message_counts import MessageCounts, most_tokens
from api.context.shortened import shortened
from api.context.summaries import NoSummary, Order, Summaries, SummaryJobs
from api.context.summary_store import StoredSummary
from api.context.tool_results import Cleared, clear
from api.context.transcript import introduction
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.answer_options import ContextOptions, ToolClearing
from shared.domain.decisions import ContextDecision
from shared.domain.errors import InvalidRequest
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest, Message
from shared.telemetry.metrics import Metrics

# A summary's share of the target, and its most tokens.
SUMMARY_SHARE = 0.25
MAX_SUMMARY_TOKENS = 1500
MIN_SUMMARY_TOKENS = 32
# The tokens of the text around a summary.
INTRODUCTION_TOKENS = 32
# With a prompt of more than this part of what is allowed, a summary is checked like the whole request.
TIGHT = 0.9
# The part of the context that max_tokens may take from the prompt. Own engines accept any, and end the output there.
MAX_OUTPUT_SHARE = 0.5
# Larger conversations are counted in threads, at most this many at the same time.
INLINE_BYTES = 4000
THREADS = 2


# The strategy that the job shows if only results of tools were cleared.
CLEAR_TOOL_USES = "clear_tool_uses"


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a conversation is shortened. `tokens`: of the whole prompt. `counted`: they were not estimated.

    `left`: the tokens of what is left, without a summary.
    """

    cut: Cut | None
    cleared: Cleared | None
    tokens: int
    left: int
    counted: bool

    @property
    def rounds(self) -> Sequence[Sequence[int]]:
        """The positions of the messages that each cut dropped."""
        return self.cut.rounds if self.cut is not None else ()

    @property
    def changes(self) -> bool:
        """Whether the conversation is changed."""
        return bool(self.rounds) or (self.cleared is not None and self.cleared.uses > 0)


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
        self._limits = TokenLimiter(registry, window)
        self._threads = asyncio.Semaphore(THREADS)

    async def shorten(
        self, principal: Principal, new: NewJob, jobs: SummaryJobs | None = None, *, counted: bool = True
    ) -> NewJob:
        """Shorten the conversation of a new job if it is above the trigger. `jobs` runs jobs that write summaries.

        `counted`: the outcome counts in the metrics.

        Raises:
            NotFound: the model does not exist.
            InvalidRequest: the request names a model for summaries that does not exist or may not be used, or what
                cannot be dropped does not fit the context.
        """
        only_counts = new.request.prompt_only and not new.request.echo
        if new.kind is not None or new.request.messages is None or only_counts:
            return new
        spec = self._registry[new.model]
        self._check_summarizer(principal, new)
        options = new.options.context or principal.options.context or spec.context
        strategy = options.strategy if options is not None else "error"
        clearing = new.options.tool_clearing
        budget = self._budget(principal, new, options) if options is not None and strategy != "error" else None
        if strategy != "error" and budget is None and counted:
            self._count(new.model, strategy, "unknown_length")
        triggers = [budget.trigger] if budget is not None else []
        if clearing is not None:
            triggers.append(clearing.trigger_tokens or 0)
        if not triggers or most_tokens(new.request) <= min(triggers):
            return new
        plan = await self._plan(
            new.request, self._window.message_counts(new.model, principal.project_id), budget, clearing
        )
        limit = self._window.length(new.model)
        if budget is not None and limit is not None and plan.counted and plan.left >= limit:
            self._window.note_refusal(new.model)
            if counted:
                self._count(new.model, strategy, "too_long")
            raise InvalidRequest(
                f"messages: this model's context is {limit} tokens, including the output; the instructions, the tools"
                f" and the newest turn, which are never dropped, have {plan.left}",
                param="messages",
            )
        if plan.changes:
            new = await self._shortened(principal, new, jobs, options, budget, plan)
            if counted:
                self._count_shortened(new, strategy if plan.rounds else CLEAR_TOOL_USES)
        return new

    def _check_summarizer(self, principal: Principal, new: NewJob) -> None:
        """Raise `InvalidRequest` if a request names a model for summaries that does not exist, or may not write them.

        The operator decides which model may: the requested one, and those that its entry and the key name.
        """
        name = new.options.context.model if new.options.context is not None else None
        if name is None:
            return
        if name not in self._registry:
            raise InvalidRequest(
                f"context.model: the model `{name}` does not exist; available models:"
                f" {', '.join(self._registry.models)}",
                param="context.model",
            )
        configured = (principal.options.context, self._registry[new.model].context)
        allowed = {new.model, *(given.model for given in configured if given is not None and given.model is not None)}
        if name not in allowed:
            raise InvalidRequest(
                f"context.model: the model `{name}` may not write summaries for this request. Name one of"
                f" {', '.join(f'`{model}`' for model in sorted(allowed))}, or leave it out",
                param="context.model",
            )

    def _budget(self, principal: Principal, new: NewJob, options: ContextOptions) -> Budget | None:
        """The trigger and the target in tokens; None if the length of the prompt is not known to be limited."""
        triggers = [] if options.trigger_tokens is None else [options.trigger_tokens]
        if (limit := self._window.length(new.model)) is not None:
            output = min(_max_tokens(new), int(limit * MAX_OUTPUT_SHARE))
            triggers.append(int((limit - output) * options.trigger))
        if (limit := self._limits.max_input(principal, new.model)) is not None:
            triggers.append(int(limit * options.trigger))
        if not triggers:
            return None
        trigger = max(1, min(triggers))
        target = int(trigger * options.target / options.trigger)
        summary = max(MIN_SUMMARY_TOKENS, min(MAX_SUMMARY_TOKENS, int(target * SUMMARY_SHARE)))
        return Budget(trigger, target, summary=summary if options.strategy == "summarize" else 0)

    async def _plan(
        self, request: GenerateRequest, counts: MessageCounts, budget: Budget | None, clearing: ToolClearing | None
    ) -> _Plan:
        if request.size <= INLINE_BYTES:
            return _plan(request, counts, budget, clearing)
        async with self._threads:
            return await asyncio.to_thread(_plan, request, counts, budget, clearing)

    async def _shortened(
        self,
        principal: Principal,
        new: NewJob,
        jobs: SummaryJobs | None,
        options: ContextOptions | None,
        budget: Budget | None,
        plan: _Plan,
    ) -> NewJob:
        dropped = sum(map(len, plan.rounds))
        after, strategy = plan.left, "sliding_window" if dropped else CLEAR_TOOL_USES
        kept = new.request
        if plan.cleared is not None:
            kept = kept.model_copy(update={"messages": plan.cleared.messages})
        request = shortened(kept, plan.cut.kept) if plan.cut is not None and dropped else kept
        summary = note = conversation = None
        if dropped and plan.cut is not None and options is not None and options.strategy == "summarize":
            try:
                summary = await self._summary(principal, new, jobs, options, budget, plan)
                summarized = shortened(kept, plan.cut.kept, introduction(summary.text))
                counts = self._window.message_counts(new.model, principal.project_id)
                added = _added(counts, request, summarized)
                await self._check_room(principal, replace(new, request=summarized), budget, plan.left, added, summary)
                request, after, strategy = summarized, plan.left + added, "summarize"
                conversation = summary.conversation
            except NoSummary as error:
                note = f"The oldest messages were dropped without a summary: {error}."
                conversation = error.conversation if summary is None else summary.conversation
        is_summarized = strategy == "summarize"
        decision = ContextDecision(
            strategy=strategy,
            dropped_messages=0 if is_summarized else dropped,
            summarized_messages=dropped if is_summarized else 0,
            summary_job=summary.job_id if summary is not None and is_summarized else None,
            conversation=conversation,
            cleared_tool_uses=plan.cleared.uses if plan.cleared is not None else 0,
            cleared_tokens=plan.cleared.saved if plan.cleared is not None else 0,
            tokens_before=plan.tokens,
            tokens_after=after,
            note=note,
        )
        update = {"context": decision} | ({} if plan.counted else {"tokens_estimated": True, "estimated_tokens": after})
        return replace(new, request=request, decisions=new.decisions.model_copy(update=update))

    async def _summary(
        self,
        principal: Principal,
        new: NewJob,
        jobs: SummaryJobs | None,
        options: ContextOptions,
        budget: Budget | None,
        plan: _Plan,
    ) -> StoredSummary:
        """The summary of the dropped messages.

        Raises:
            NoSummary: there is none, or no room for one.
        """
        if self._summaries is None or jobs is None:
            raise NoSummary("summaries are not written for lines of batches and replayed jobs")
        if new.log_level is LogLevel.NONE:
            raise NoSummary("nothing of the request may be stored, so no summary either")
        assert budget is not None
        most = self._most_tokens(principal, new, plan.left)
        if most is not None and plan.left + budget.summary > most:
            raise NoSummary(f"there is no room for one beside the {plan.left} tokens that are never dropped")
        messages = new.request.messages or []
        dropped = [messages[position] for positions in plan.rounds for position in positions]
        model = self._summarizer(principal, new, options)
        return await self._summaries.summary(jobs, principal, Order(new, model, dropped, budget.summary))

    def _most_tokens(self, principal: Principal, new: NewJob, left: int) -> int | None:
        """The most tokens that the prompt may have with a summary; None if they are not known to be limited."""
        limits = [self._limits.max_input(principal, new.model)]
        if (length := self._window.length(new.model)) is not None:
            # Upstreams refuse a max_tokens that does not fit beside the prompt, if it fits without the summary.
            beside = length - max(1, _max_tokens(new))
            is_strict = not self._registry[new.model].loads_model and left <= beside
            limits.append(beside if is_strict else length - 1)
        return min((limit for limit in limits if limit is not None), default=None)

    async def _check_room(
        self, principal: Principal, new: NewJob, budget: Budget | None, left: int, added: int, summary: StoredSummary
    ) -> None:
        """Raise `NoSummary` if a summary makes a request too long that is accepted without it.

        `left` and `added`: the tokens without the summary and those that it adds, counted by message.
        """
        assert budget is not None
        most = self._most_tokens(principal, new, left)
        usual = max(budget.trigger - left, 2 * budget.summary + INTRODUCTION_TOKENS)
        if added > usual or (most is not None and left + added > most):
            message = f"the summary of job {summary.job_id} is too long, {added} tokens"
            raise NoSummary(message, summary.conversation)
        if most is None or left + added <= TIGHT * most:
            return
        try:
            await self._limits.check_input(principal, new, counted=False)
            await self._window.check(new.model, new.request)
        except InvalidRequest as error:
            raise NoSummary(f"there is no room for one: {error.message}") from error

    def _summarizer(self, principal: Principal, new: NewJob, options: ContextOptions) -> str:
        """The model that writes summaries: if the options name none, that of the key or of the model, or the model."""
        spec: ModelSpec = self._registry[new.model]
        configured = (options, principal.options.context, spec.context)
        return next((given.model for given in configured if given is not None and given.model is not None), new.model)

    def _count_shortened(self, new: NewJob, strategy: str) -> None:
        decision = new.decisions.context
        if decision is None or self._metrics is None:
            return
        outcome = {"sliding_window": "dropped", "summarize": "summarized", CLEAR_TOOL_USES: "cleared"}
        self._count(new.model, strategy, "fell_back" if decision.note is not None else outcome[decision.strategy])
        saved = (decision.tokens_before or 0) - (decision.tokens_after or 0)
        self._metrics.context_tokens_dropped.labels(self._metrics.model_label(new.model)).inc(max(0, saved))

    def _count(self, model: str, strategy: str, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.conversations_shortened.labels(self._metrics.model_label(model), strategy, outcome).inc()


def _added(counts: MessageCounts, request: GenerateRequest, summarized: GenerateRequest) -> int:
    """The tokens that a summary adds: in front of a message, which becomes another one, or as one of its own."""
    without, with_it = request.messages or [], summarized.messages or []
    removed, new = _missing(without, with_it), _missing(with_it, without)
    return sum(map(counts.message, new)) - sum(map(counts.message, removed))


def _missing(messages: Sequence[Message], among: Sequence[Message]) -> list[Message]:
    known = set(map(id, among))
    return [message for message in messages if id(message) not in known]


def _max_tokens(new: NewJob) -> int:
    """The output tokens that the client asks for. What a limit has set in their place fits the room that is left."""
    limits = new.decisions.token_limits
    if limits is not None and limits.requested_max_tokens is None:
        return 0
    return new.request.sampling.max_tokens or 0


def _plan(
    request: GenerateRequest, counts: MessageCounts, budget: Budget | None, clearing: ToolClearing | None
) -> _Plan:
    messages = request.messages or []
    tokens = [counts.message(message) for message in messages]
    rest = counts.rest(request)
    left = total = rest + sum(tokens)
    cleared = found = None
    if clearing is not None:
        cleared = clear(messages, tokens, clearing, fixed=rest, count=counts.message)
        messages, tokens, left = cleared.messages, cleared.tokens, left - cleared.saved
    if budget is not None:
        found = cut(messages, tokens, replace(budget, fixed=rest))
        left = found.tokens - (budget.summary if found.rounds else 0)
    return _Plan(found, cleared, total, left, counts.is_counted(request))
