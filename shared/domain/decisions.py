"""Decisions about a job, made when it is admitted and while it is answered. Stored in its row and shown to clients.

Every member is optional, so that each version can read the decisions of others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Decision(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RouteDecision(_Decision):
    """Which rule of a route chose the model.

    `fallbacks` are the models that may still take over, in order; `tried` those that could not serve the job. `left`
    are those of `tried` that the job was queued for before it moved to the next one. `conversation` identifies the
    request in its conversation, whose later requests are not answered by a cheaper model. `input_tokens` are those that
    rules compared; a prompt that is longer than all rules say has at least so many. `downgraded_from` is the model that
    the route chose first, and that a budget had no room for.
    """

    route: str
    rule: str
    mode: str | None = Field(None, description="`cost` or `quality`, if the request named the route with it.")
    score: float | None = Field(None, description="The complexity of the request, from 0 to 1.")
    tried: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    conversation: str | None = None
    input_tokens: int | None = None
    tokens_estimated: bool = Field(False, description="Whether `input_tokens` is an estimate.")
    downgraded_from: str | None = Field(
        None, description="The model that the route chose first, if a budget had no room for it."
    )

    def moved(self, model: str, to: str) -> RouteDecision:
        """The decision after a job of `model` has moved to the fallback `to`."""
        fallbacks = tuple(name for name in self.fallbacks if name not in (model, to))
        changes = {"tried": (*self.tried, model), "fallbacks": fallbacks, "left": (*self.left, model)}
        return self.model_copy(update=changes)


class CacheOutcome(StrEnum):
    """Whether the response cache answered a job."""

    HIT = "HIT"
    MISS = "MISS"
    COALESCED = "COALESCED"
    BYPASS = "BYPASS"


class BypassReason(StrEnum):
    """Why the response cache was not used for a request although it is on."""

    # The request, or the server, wants the answer not to be stored.
    NO_STORE = "no_store"
    # Running it again is expected to result in another answer.
    NOT_REPEATABLE = "not_repeatable"
    # It generates nothing.
    PROMPT_ONLY = "prompt_only"
    # Answers are those of end users, and it names none.
    NO_END_USER = "no_end_user"
    UNAVAILABLE = "unavailable"


class CacheDecision(_Decision):
    """How the response cache took part in an answer.

    `source` is the job whose answer it is, `age_s` the seconds since that job ended, `fingerprint` how its model was
    run. `ttl_s`: for how long the answer of this job is to be stored, if its model still has this `revision`.
    `inherited`: the part of the usage, by its names, that was generated for `source` before this job continued it.
    `reason`: of a `BYPASS`, a `BypassReason`.
    """

    outcome: str
    reason: str | None = None
    source: str | None = None
    age_s: int | None = None
    fingerprint: str | None = None
    ttl_s: int | None = None
    revision: str | None = None
    inherited: dict[str, int] | None = None


class ContextDecision(_Decision):
    """How a conversation was shortened, in messages and tokens. `note`: why it differs from the configuration.

    `conversation` identifies the summaries that were written of the conversation: they are deleted with the job.
    `cleared_tool_uses`: tool calls whose results were cleared; `cleared_tokens`: the tokens that this saved.
    """

    strategy: str
    dropped_messages: int = 0
    summarized_messages: int = 0
    summary_job: str | None = None
    conversation: str | None = None
    cleared_tool_uses: int = 0
    cleared_tokens: int = 0
    tokens_before: int | None = None
    tokens_after: int | None = None
    note: str | None = None


class TokenLimitsDecision(_Decision):
    """The requested `max_tokens` (None: none), and the one that applies, because of a limit or a default.

    The same for `thinking_token_budget`, if it was lowered with `max_tokens`.
    """

    requested_max_tokens: int | None = None
    max_tokens: int
    requested_thinking_token_budget: int | None = None
    thinking_token_budget: int | None = None


class Decisions(_Decision):
    """All decisions about a job.

    `tokens_estimated`: the prompt's tokens were estimated, not counted; `estimated_tokens` is the estimate.
    """

    route: RouteDecision | None = None
    cache: CacheDecision | None = None
    context: ContextDecision | None = None
    token_limits: TokenLimitsDecision | None = None
    tokens_estimated: bool = False
    estimated_tokens: int | None = None

    @property
    def may_move(self) -> bool:
        """Whether another model may still take over the job."""
        return self.route is not None and bool(self.route.fallbacks)

    @property
    def has_moved(self) -> bool:
        """Whether the job has left the model that it was admitted for."""
        return self.route is not None and bool(self.route.left)

    @property
    def inherits(self) -> bool:
        """Whether the answer begins with tokens that were generated for another job."""
        return self.cache is not None and self.cache.inherited is not None

    def without_inherited(self) -> Decisions:
        """Return the decisions about a job whose answer has started again."""
        if self.cache is None:
            return self
        return self.model_copy(update={"cache": self.cache.model_copy(update={"inherited": None})})

    def stored(self) -> dict[str, Any] | None:
        """The JSON form for the job's row; None if nothing was decided."""
        return self.model_dump(mode="json", exclude_defaults=True) or None

    def headers(self) -> dict[str, str]:
        """The response headers that report them."""
        headers = {}
        if (route := self.route) is not None:
            score = "" if route.score is None else f"; score={route.score:.2f}"
            instead = "" if route.downgraded_from is None else f"; downgraded_from={route.downgraded_from}"
            headers["x-headrace-route"] = f"{route.route}; rule={route.rule}{score}{instead}"
        if (cache := self.cache) is not None:
            headers["x-headrace-cache"] = cache.outcome
            if cache.age_s is not None:
                headers["Age"] = str(cache.age_s)
        if (context := self.context) is not None and context.note is not None:
            headers["x-headrace-context"] = f"{context.strategy}; requested=summarize"
        if (limits := self.token_limits) is not None:
            headers["x-headrace-max-tokens"] = str(limits.max_tokens)
        if self.tokens_estimated or (route is not None and route.tokens_estimated):
            headers["x-headrace-tokens-estimated"] = "true"
        return headers


NO_DECISIONS = Decisions()
