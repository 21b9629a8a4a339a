"""The scenarios by name, in the order of execution."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.scenarios import (
    bare_relay,
    bare_submit,
    cache,
    cancel,
    console,
    console_tabs,
    engines,
    followers,
    growth,
    heavy,
    limits,
    metering,
    priority,
    relay,
    relay_steady,
    remote,
    request_log,
    routes,
    search_indexes,
    submits,
    upstream,
    usage,
    vllm,
    warm,
    webhooks,
)

SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "vllm": vllm.run,
    "warm": warm.run,
    "upstream": upstream.run,
    "bare-relay": bare_relay.run,
    "relay-steady": relay_steady.run,
    "remote": remote.run,
    "engines": engines.run,
    "relay": relay.run,
    "submits": submits.run,
    "bare-submit": bare_submit.run,
    "routes": routes.run,
    "cache": cache.run,
    "followers": followers.run,
    "growth": growth.run,
    "console": console.run,
    "console-tabs": console_tabs.run,
    "search-indexes": search_indexes.run,
    "usage": usage.run,
    "limits": limits.run,
    "metering": metering.run,
    "request-log": request_log.run,
    "heavy": heavy.run,
    "cancel": cancel.run,
    "priority": priority.run,
    "webhooks": webhooks.run,
}
