"""Applies the limits of tokens that a model and an API key have.

All limits apply: the smallest `max_output`, `max_input` and `default_output`. A request that exceeds a `max_output` is
refused if that limit says so, otherwise its max_tokens is lowered. `max_tokens` is counted as in the APIs: for each
choice, and with its reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from api.context.window import ContextWindow, PromptTokens
from api.keys.principal import Principal
from shared.config.models.base import Unsupported
from shared.config.models.loader import ModelSpec, Registry
from shared.domain.answer_options import TokenLimits
from shared.domain.decisions import TokenLimitsDecision
from shared.domain.errors import InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest, Sampling
from shared.telemetry.definitions.labels import TokenLimitOutcome
from shared.telemetry.metrics import Metrics

# An estimate, which is often much too high, never lowers max_tokens below the smaller of these shares: of its former
# value, and of the context.
LEAST_SHARE = 0.5
LEAST_CONTEXT_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class _Limits:
    """The limits of a model, or of a key. `owner` names it in errors."""

    limits: TokenLimits
    owner: str


class TokenLimiter:
    """Limits the tokens of requests. Jobs that the server submits itself have no limits."""

    def __init__(self, registry: Registry, window: ContextWindow, metrics: Metrics | None = None) -> None:
        self._registry = registry
        self._window = window
        self._metrics = metrics

    def max_input(self, principal: Principal, model: str) -> int | None:
        """The longest prompt of a principal's requests to a model, in tokens; None if only its context limits it."""
        limits = self._of(principal, self._registry[model])
        return _least(item.limits.max_input for item in limits)

    def max_output(self, principal: Principal, model: str) -> int | None:
        """The largest max_tokens of a principal's requests to a model; None if it is not limited."""
        limits = self._of(principal, self._registry[model])
        return _least(item.limits.max_output for item in limits)

    def limit_output(self, principal: Principal, new: NewJob, *, counted: bool = True) -> NewJob:
        """Set the max_tokens that applies to a job.

        `counted`: the outcome counts in the metrics.

        Raises:
            InvalidRequest: max_tokens exceeds a limit that refuses this, or another parameter requires more tokens.
        """
        try:
            limited = self._limit_output(principal, new)
        except InvalidRequest:
            if counted:
                self._count(new.model, TokenLimitOutcome.REFUSED_OUTPUT)
            raise
        if counted and limited is not new:
            is_default = new.request.sampling.requested_max_tokens is None
            self._count(new.model, TokenLimitOutcome.DEFAULT if is_default else TokenLimitOutcome.CLAMPED)
        return limited

    def _limit_output(self, principal: Principal, new: NewJob) -> NewJob:
        spec = self._registry[new.model]
        limits = self._of(principal, spec)
        if not limits or new.kind is not None or new.request.prompt_only or not spec.capabilities.max_tokens:
            return new
        requested = new.request.sampling.requested_max_tokens
        ceiling = _least(item.limits.max_output for item in limits)
        if requested is None:
            max_tokens = self._default(spec, new, limits, ceiling)
        elif ceiling is not None and requested > ceiling:
            _require_clamping(limits, requested, ceiling)
            max_tokens = ceiling
        else:
            return new
        if max_tokens is None or max_tokens == new.request.sampling.max_tokens:
            return new
        sampling = new.request.sampling.limited(max_tokens)
        request = new.request.model_copy(update={"sampling": sampling})
        _require_room(spec, new.request, request, max_tokens)
        decision = TokenLimitsDecision(requested_max_tokens=requested, max_tokens=max_tokens)
        return _decided(new, sampling, decision)

    async def check_input(self, principal: Principal, new: NewJob, *, counted: bool = True) -> NewJob:
        """Check the length of a prompt, after it was shortened if that is configured.

        A max_tokens that was set here is lowered to what the prompt leaves of the context.

        Raises:
            InvalidRequest: the prompt is longer than a limit allows, or the chat template rejects it.
        """
        limits = self._of(principal, self._registry[new.model])
        counts_only = new.request.prompt_only and not new.request.echo
        if not limits or new.kind is not None or counts_only:
            return new
        max_input = _least(item.limits.max_input for item in limits)
        room = self._contested_room(new)
        if (max_input is None or self._window.has_fewer(new.model, new.request, max_input + 1)) and room is None:
            return new
        counted_to = max(room or 0, 0 if max_input is None else max_input + 1)
        tokens = await self._window.measure(new.model, new.request, counted_to, principal.project_id)
        if tokens.estimated:
            new = _with_estimate(new, tokens.number)
            if counted and self._metrics is not None:
                self._metrics.token_estimates.labels(self._metrics.model_label(new.model)).inc()
        if max_input is not None and tokens.number > max_input:
            if counted:
                self._count(new.model, TokenLimitOutcome.REFUSED_INPUT)
            raise _too_long(new.request, tokens, max_input, _owner(limits, max_input))
        return new if room is None else _within(new, room, tokens)

    def _of(self, principal: Principal, spec: ModelSpec) -> Sequence[_Limits]:
        found = []
        if spec.token_limits is not None:
            found.append(_Limits(spec.token_limits, f"the model `{spec.name}`"))
        if principal.options.token_limits is not None:
            found.append(_Limits(principal.options.token_limits, "this API key"))
        return found

    def _default(self, spec: ModelSpec, new: NewJob, limits: Sequence[_Limits], ceiling: int | None) -> int | None:
        """The max_tokens of a request that has none; None if it needs none."""
        sampling = new.request.sampling
        default = _least(item.limits.default_output for item in limits)
        if default is None:
            usual = sampling.max_tokens or spec.default_max_tokens
            if ceiling is None or (usual is not None and usual <= ceiling):
                return sampling.max_tokens
            default = ceiling
        default = max(default, sampling.min_tokens)
        if (budget := sampling.thinking_token_budget or 0) >= default:
            default += budget
        return _least([default, ceiling, spec.max_output_tokens, self._window.length(new.model)])

    def _contested_room(self, new: NewJob) -> int | None:
        """The context's length, if a max_tokens that was set here may not fit beside the prompt."""
        decision, length = new.decisions.token_limits, self._window.length(new.model)
        if decision is None or length is None or self._registry[new.model].loads_model:
            return None
        return None if self._window.has_fewer(new.model, new.request, length - decision.max_tokens) else length

    def _count(self, model: str, outcome: TokenLimitOutcome) -> None:
        if self._metrics is not None:
            self._metrics.token_limits.labels(self._metrics.model_label(model), outcome.value).inc()


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _require_clamping(limits: Iterable[_Limits], requested: int, ceiling: int) -> None:
    """Raise `InvalidRequest` if one of the limits that a max_tokens exceeds refuses it."""
    refusing = [
        (most, item.owner)
        for item in limits
        if (most := item.limits.max_output) is not None and requested > most and item.limits.on_exceed == "reject"
    ]
    if refusing:
        most, owner = min(refusing)
        raise InvalidRequest(
            f"max_tokens: {owner} allows at most {most} output tokens; got {requested}."
            f" Set it to {ceiling} or less, or leave it out",
            param="max_tokens",
        )


def _require_room(spec: ModelSpec, old: GenerateRequest, new: GenerateRequest, max_tokens: int) -> None:
    """Raise `InvalidRequest` if another parameter requires more output tokens than the limit allows."""
    min_tokens = new.sampling.min_tokens
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: a limit of {max_tokens} output tokens applies to this request; got {min_tokens}."
            f" Set it to {max_tokens} or less",
            param="min_tokens",
        )
    missing = next(spec.unsupported(new), None)
    if missing is not None and next(spec.unsupported(old), None) is None:
        param = _param(missing, new)
        raise InvalidRequest(
            f"{param}: a limit of {max_tokens} output tokens applies to this request, and the model `{spec.name}` does"
            f" not support {missing.what}. Turn thinking off, or request less of it",
            param=param,
        )


def _owner(limits: Iterable[_Limits], max_input: int) -> str:
    return next(item.owner for item in limits if item.limits.max_input == max_input)


def _param(missing: Unsupported, request: GenerateRequest) -> str:
    """The parameter that the client has sent and can change: not the max_tokens that was set here."""
    if missing.param != "max_tokens":
        return missing.param
    if request.sampling.thinking_token_budget is not None:
        return "thinking_token_budget"
    return "reasoning_effort" if request.chat is not None and request.chat.reasoning_effort else "max_tokens"


def _with_estimate(new: NewJob, tokens: int) -> NewJob:
    update = {"tokens_estimated": True, "estimated_tokens": tokens}
    return replace(new, decisions=new.decisions.model_copy(update=update))


def _within(new: NewJob, length: int, tokens: PromptTokens) -> NewJob:
    """Lower a max_tokens that was set here to what the prompt leaves of the context."""
    decision = new.decisions.token_limits
    if decision is None:
        return new
    room = max(1, length - tokens.number)
    if tokens.estimated:
        # Most prompts have fewer tokens than estimated. If this one does not fit, the upstream refuses it.
        room = max(room, min(int(decision.max_tokens * LEAST_SHARE), int(length * LEAST_CONTEXT_SHARE)))
    if decision.max_tokens <= room or room < new.request.sampling.min_tokens:
        return new
    sampling = new.request.sampling.limited(room)
    return _decided(new, sampling, decision.model_copy(update={"max_tokens": room}))


def _decided(new: NewJob, sampling: Sampling, decision: TokenLimitsDecision) -> NewJob:
    """The job with these parameters, and the decision about them."""
    old, budget = new.request.sampling.thinking_token_budget, sampling.thinking_token_budget
    if budget != old:
        requested = decision.requested_thinking_token_budget or old
        update = {"requested_thinking_token_budget": requested, "thinking_token_budget": budget}
        decision = decision.model_copy(update=update)
    return replace(
        new,
        request=new.request.model_copy(update={"sampling": sampling}),
        decisions=new.decisions.model_copy(update={"token_limits": decision}),
    )


def _too_long(request: GenerateRequest, tokens: PromptTokens, max_input: int, owner: str) -> InvalidRequest:
    param = "messages" if request.messages is not None else "prompt"
    number = f"{'at least ' if tokens.at_least else 'about ' if tokens.estimated else ''}{tokens.number}"
    note = ", estimated from its size" if tokens.estimated else ""
    what = "conversation" if request.messages is not None else "prompt"
    return InvalidRequest(
        f"{param}: {owner} allows prompts of at most {max_input} tokens; this one has {number}{note}."
        f" Send a shorter {what}",
        param=param,
    )
