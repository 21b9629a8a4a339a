"""Metrics of requests before they become jobs."""

from __future__ import annotations

from shared.telemetry.definitions.buckets import DURATION_BUCKETS, FIRST_TOKEN_BUCKETS, RATE_LIMIT_BUCKETS
from shared.telemetry.definitions.labels import (
    API,
    BUDGET_SCOPE,
    MODEL,
    WORKER,
    HttpRejection,
    Quota,
    TokenLimitOutcome,
)
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class RequestMetrics:
    """Requests, their prompts, and the limits that apply to them."""

    def __init__(self, new: InstrumentSet) -> None:
        # HTTP

        self.http_requests = new.counter(
            "headrace_http_requests_total",
            "HTTP responses by route template, method and status, counted when the headers are sent.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
                Label("status", bound="HTTP status codes"),
            ),
            API,
        )
        self.http_response = new.histogram(
            "headrace_http_response_seconds",
            "Time from request to response headers.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
            ),
            FIRST_TOKEN_BUCKETS,
            API,
        )

        self.ignored_parameters = new.counter(
            "headrace_ignored_parameters_total",
            "Requests and batch lines with a parameter that was accepted and ignored, by parameter.",
            (Label("parameter", bound="known parameters of the APIs, and `(other)`"),),
            API,
        )
        self.http_rejections = new.counter(
            "headrace_http_rejections_total",
            "Requests that the HTTP server rejected before the application received them, and connections it closed.",
            (Label("reason", tuple(reason.value for reason in HttpRejection)),),
            API,
        )
        self.http_connections = new.gauge("headrace_http_connections", "Open client connections.", (), API)
        self.auth_failures = new.counter(
            "headrace_auth_failures_total",
            "Requests rejected with 401, by whether they had no key or an invalid one.",
            (Label("reason", ("missing", "invalid")),),
            API,
        )
        self.quota_rejections = new.counter(
            "headrace_quota_rejections_total",
            "Submits, streams and uploads rejected with 429 because a quota was used up.",
            (Label("reason", tuple(quota.value for quota in Quota)),),
            API,
        )

        # Budgets

        self.budget_rejections = new.counter(
            "headrace_budget_rejections_total",
            "Submits rejected with 429 because a hard budget had no room for them, by whose budget it was.",
            (BUDGET_SCOPE,),
            API,
        )
        self.budget_held_jobs = new.counter(
            "headrace_budget_held_jobs_total",
            "Background jobs that wait for the next window of a budget.",
            (),
            API,
        )
        self.budget_downgraded_jobs = new.counter(
            "headrace_budget_downgraded_jobs_total",
            "Jobs of routes that got a cheaper model because a budget had no room for the one that was chosen.",
            (),
            API,
        )
        self.budget_alerts = new.counter(
            "headrace_budget_alerts_total",
            "Thresholds of budgets that were reached, once for each window. `limit`: all of the budget is spent.",
            (BUDGET_SCOPE, Label("level", ("threshold", "limit"))),
            API,
        )
        self.budget_reservations_released = new.counter(
            "headrace_budget_reservations_released_total",
            "Reservations of jobs that a process of an older version had ended without releasing them.",
            (),
            API,
        )

        # Rate limits

        self.rate_limited = new.counter(
            "headrace_rate_limited_total",
            "Requests that a rate limit refused with 429, or that wait because of one that is soft, by what the limit"
            " counts and the narrowest part of its scope.",
            (
                Label("unit", ("requests", "tokens")),
                Label("scope", ("project", "key", "end_user", "model")),
                Label("outcome", ("refused", "delayed")),
            ),
            API,
        )
        self.rate_limit_time = new.histogram(
            "headrace_rate_limit_seconds",
            "Time that a request waited for Redis to check its rate limits.",
            (),
            RATE_LIMIT_BUCKETS,
            API,
        )
        self.rate_limits_unavailable = new.counter(
            "headrace_rate_limits_unavailable_total",
            "Requests whose rate limits could not be checked, because Redis was unavailable, by what happened to them.",
            (Label("outcome", ("allowed", "refused")),),
            API,
        )
        self.batch_lines_held = new.counter(
            "headrace_batch_lines_held_total",
            "Times that a batch waited to submit its next line because of a rate limit.",
            (),
            API,
        )

        # Conversations that outgrow their model's context

        self.conversations_shortened = new.counter(
            "headrace_conversations_shortened_total",
            "Requests above the trigger of their strategy for long conversations, by outcome. `fell_back`: messages"
            " were dropped without a summary.",
            (
                MODEL,
                Label("strategy", ("sliding_window", "summarize", "clear_tool_uses")),
                Label("outcome", ("dropped", "summarized", "cleared", "fell_back", "too_long", "unknown_length")),
            ),
            API,
        )
        self.context_tokens_dropped = new.counter(
            "headrace_context_tokens_dropped_total",
            "Prompt tokens removed by shortening conversations.",
            (MODEL,),
            API,
        )
        self.summary_time = new.histogram(
            "headrace_summary_seconds",
            "Time to write the summary of a conversation, by the model that wrote it.",
            (MODEL,),
            DURATION_BUCKETS,
            API,
        )

        # Limits and estimates of tokens

        self.token_limits = new.counter(
            "headrace_token_limits_total",
            "Requests whose max_tokens a token limit lowered or set, and requests that one refused.",
            (MODEL, Label("outcome", tuple(outcome.value for outcome in TokenLimitOutcome))),
            API,
        )
        self.token_estimates = new.counter(
            "headrace_token_estimates_total",
            "Prompts whose tokens were estimated for a limit because they could not be counted.",
            (MODEL,),
            API,
        )
        self.estimated_prompt_tokens = new.counter(
            "headrace_estimated_prompt_tokens_total",
            "Prompt tokens of ended jobs whose prompt was estimated: as estimated, and as reported in the usage.",
            (MODEL, Label("source", ("estimate", "usage"))),
            API,
            WORKER,
        )
        self.underestimated_prompts = new.counter(
            "headrace_underestimated_prompts_total",
            "Ended jobs whose prompt had more tokens than estimated; about 5 % are expected.",
            (MODEL,),
            API,
            WORKER,
        )
        self.tokens_per_byte = new.gauge(
            "headrace_prompt_tokens_per_byte",
            "Tokens per byte of a prompt that estimates assume: learned from usage, 0.333 until there is enough.",
            (MODEL,),
            API,
            aggregation=Aggregation.MAX,
        )
