"""The performance goals, and whether figures meet them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.bench import Figures, Key
from benchmarks.console_pages import PAGES
from benchmarks.prompts import ALL_KINDS, KINDS
from benchmarks.statistics import number


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit for a figure's median, or for its ratio to the median of `baseline`."""

    title: str
    key: Key
    limit: float
    at_least: bool
    unit: str = ""
    baseline: Key | None = None

    def evaluate(self, figures: Figures) -> Verdict | None:
        """Evaluate the goal. Returns None if a figure was not measured."""
        measured = figures.get(self.key)
        if measured is None:
            return None
        value = measured.median
        if self.baseline is not None:
            base = figures.get(self.baseline)
            if base is None or base.median == 0:
                return None
            value /= base.median
        return Verdict(self, value)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and the measured value."""

    goal: Goal
    value: float

    @property
    def met(self) -> bool:
        return self.value >= self.goal.limit if self.goal.at_least else self.value <= self.goal.limit

    @property
    def target(self) -> str:
        return f"{'≥' if self.goal.at_least else '≤'} {number(self.goal.limit)} {self.goal.unit}".rstrip()


def _calls(full: str) -> Iterator[Goal]:
    for call in ("submit", "poll", "list", "submit to start"):
        key, baseline = (Key("growth", system, f"{call} p99") for system in (full, "empty"))
        yield Goal(f"{call} p99 with a full queue, relative to an empty one", key, 1.3, False, "x", baseline)
    # The median of the ratios: of all calls, claims vary most from repeat to repeat.
    key = Key("growth", full, "claim p99, relative to an empty queue")
    yield Goal("claim p99 with a full queue, relative to an empty one", key, 1.3, False, "x")
    key, baseline = (Key("growth", system, "CPU per submit") for system in (full, "empty"))
    yield Goal("CPU per submit with a full queue, relative to an empty one", key, 1.3, False, "x", baseline)


def _loops() -> Iterator[Goal]:
    for process in ("api", "worker"):
        name = f"{process}: timers later than 50 ms"
        yield Goal(f"{name} beside heavy requests", Key("heavy", "headrace", name), 0, False, "%")


def _routes() -> Iterator[Goal]:
    for complexity in ("heuristic", "classifier"):
        key = Key("routes", complexity, f"CPU per decision without counting p99, {ALL_KINDS}")
        yield Goal(f"CPU of a routing decision, p99, {complexity}, without counting of tokens", key, 2, False, "ms")
        for kind in KINDS:
            key = Key("routes", complexity, f"CPU per decision, added p99, {kind}")
            yield Goal(f"CPU of a routing decision, added, p99, {complexity}, {kind}", key, 2, False, "ms")


def _identical() -> Iterator[Goal]:
    what = "100 identical requests"
    yield Goal(f"{what}: engine runs", Key("cache", "headrace", f"{what}: engine runs"), 1, False)
    yield Goal(f"{what}: equal answers", Key("cache", "headrace", f"{what}: equal answers"), 100, True)


def _vllm(streams: Iterable[int]) -> Iterator[Goal]:
    for count in streams:
        key, baseline = (Key("vllm", system, f"tokens/s at {count}") for system in ("headrace", "vllm"))
        yield Goal(f"tokens/s at {count}, relative to vLLM's own server", key, 1.1, True, "x", baseline)
    key, baseline = (Key("vllm", system, "tokens/s at 16") for system in ("headrace", "raw-engine"))
    yield Goal("tokens/s at 16, relative to vLLM without a server", key, 0.8, True, "x", baseline)


def _first_tokens() -> Iterator[Goal]:
    for streams, percentile, limit in ((1, "p50", 9), (16, "p50", 9), (16, "p99", 30)):
        key = Key("upstream", "headrace", f"added to {percentile} at {streams}")
        title = f"first token at {streams}, delay relative to the upstream, {percentile}"
        yield Goal(title, key, limit, False, "ms")
    key, baseline = (Key("bare-relay", system, "added to p50 at 16") for system in ("headrace", "bare-relay"))
    yield Goal("first token at 16, delay relative to that of a bare durable relay", key, 1.5, False, "x", baseline)
    for streams in (1, 16):
        key = Key("remote", "remote", f"added to p50 at {streams}, without 4 round trips")
        title = f"first token at {streams} with Redis and PostgreSQL 1 ms away, delay beyond 4 round trips"
        yield Goal(title, key, 9, False, "ms")


def _engines(names: Iterable[str]) -> Iterator[Goal]:
    for name in names:
        added = Key("engines", name, "added to the openai engine's p50 at 16")
        yield Goal(f"first token at 16 of {name}, delay relative to the openai engine", added, 1, False, "ms")
        key, baseline = (Key("engines", engine, "tokens/s at 64") for engine in (name, "openai"))
        yield Goal(f"relayed tokens/s at 64 of {name}, relative to the openai engine", key, 0.9, True, "x", baseline)
    killed = {"tokens repeated or lost": 0, "answers generated per job": 1}
    for figure, limit in killed.items():
        yield Goal(
            f"{figure}, killed worker, Responses upstream",
            Key("engines", "responses", f"killed worker: {figure}"),
            limit,
            False,
        )
    slow = {"memory of the worker": (300, "MiB"), "loop lag p99": (20, "ms")}
    for figure, (limit, unit) in slow.items():
        title = f"{figure}, 500 slow streams"
        yield Goal(title, Key("engines", "openai", f"500 slow streams: {figure}"), limit, False, unit)


def _console() -> Iterator[Goal]:
    key = Key("console", "headrace", "overview of 1 h p95, 1,000,000 jobs")
    yield Goal("overview of the console p95, 1,000,000 jobs", key, 50, False, "ms")
    for page in PAGES:
        key = Key("console", "headrace", f"page of {page} p95, 1,000,000 jobs")
        yield Goal(f"page of {page} p95, 1,000,000 jobs", key, 50, False, "ms")
    key = Key("console", "headrace", "submits slowed by an open console, 1,000,000 jobs")
    yield Goal("submits slowed by an open console, 1,000,000 jobs", key, 3, False, "%")
    for kind in ("project", "model", "status"):
        key = Key("console", "headrace", f"list by {kind} and time p95, 10,000,000 jobs")
        yield Goal(f"list of jobs by {kind} and time p95, 10,000,000 jobs", key, 150, False, "ms")


def _console_tabs() -> Iterator[Goal]:
    key = Key("console-tabs", "headrace", "CPU of the API added by 50 tabs")
    yield Goal("CPU of the API added by 50 tabs", key, 3, False, "%")


def _search_indexes() -> Iterator[Goal]:
    for what in ("submits slowed by", "PostgreSQL's CPU per submit, added by"):
        title = f"{what} the indexes for searches"
        yield Goal(f"{title}, 1,000,000 jobs", Key("search-indexes", "headrace", title), 3, False, "%")


def _usage() -> Iterator[Goal]:
    for what in ("cost by user and day, a month of a project", "cost by user, a day of all projects"):
        key = Key("usage", "headrace", f"{what} p95, 10,000,000 entries")
        yield Goal(f"{what} p95, 10,000,000 entries of the ledger", key, 150, False, "ms")


def _limits() -> Iterator[Goal]:
    key = Key("limits", "headrace", "accepted in any 60 s, of the limit")
    yield Goal("requests of 8 processes that a rate limit accepts in any 60 s, of the limit", key, 1, False, "x")
    key = Key("limits", "headrace", "script p99, 4 windows")
    yield Goal("script of the rate limits in Redis, p99, 4 windows", key, 100, False, "µs")


def _metering() -> Iterator[Goal]:
    for figure in ("submit p50 at 1", "submit p50 at 16", "first token p50 at 1", "first token p50 at 16"):
        key = Key("metering", "metered", f"added to {figure}")
        yield Goal(f"budgets and rate limits: added to {figure}", key, 0.5, False, "ms")


def _request_log() -> Iterator[Goal]:
    for what in (
        "newest page of all projects",
        "page of a project, two weeks back",
        "page of an end user, of all projects",
        "page of a project with bad feedback",
        "page of failures, which are rare",
    ):
        key = Key("request-log", "headrace", f"{what} p95, 10,000,000 requests")
        yield Goal(f"request log: {what} p95, 10,000,000 requests", key, 150, False, "ms")
    key = Key("request-log", "headrace", "retention, a day of the log, 10,000,000 requests in 30 days")
    yield Goal("request log: retention of a day, 10,000,000 requests", key, 1000, False, "ms")


GOALS = (
    *_vllm((16, 64, 256)),
    Goal(
        "tokens/s at 16, relative to a naive Celery task",
        Key("vllm", "headrace", "tokens/s at 16"),
        4,
        True,
        "x",
        Key("vllm", "celery-naive", "tokens/s at 16"),
    ),
    Goal(
        "first token at 1, delay relative to vLLM's own server",
        Key("vllm", "headrace", "added to the first token at 1"),
        1,
        False,
        "ms",
    ),
    Goal(
        "first token of the first request after a start with warm_prompts, relative to later ones",
        Key("warm", "warm", "first token of the first request"),
        1.2,
        False,
        "x",
        Key("warm", "warm", "first token of later requests"),
    ),
    *_first_tokens(),
    Goal(
        "relayed tokens/s at 64, relative to LiteLLM",
        Key("upstream", "headrace", "tokens/s at 64"),
        5,
        True,
        "x",
        Key("upstream", "litellm", "tokens/s at 64"),
    ),
    *_engines(("responses", "anthropic", "triton", "replicate", "runpod")),
    Goal("relayed tokens/s at 256", Key("relay", "headrace", "tokens/s at 256"), 50_000, True, "tokens/s"),
    Goal(
        "tokens/s of 64 streams at the speed of an engine, relative to the upstream alone",
        Key("relay-steady", "headrace", "tokens/s at 64"),
        0.93,
        True,
        "x",
        Key("relay-steady", "upstream", "tokens/s at 64"),
    ),
    Goal(
        "durable submits at 64, relative to a bare route",
        Key("bare-submit", "headrace", "submits/s at 64"),
        0.6,
        True,
        "x",
        Key("bare-submit", "bare-submit", "submits/s at 64"),
    ),
    Goal("durable submits", Key("submits", "headrace", "submits/s at 64"), 700, True, "/s"),
    *_routes(),
    Goal(
        "first token of a cached answer at 1, delay relative to a submit",
        Key("cache", "headrace", "hit, added to p50 at 1"),
        5,
        False,
        "ms",
    ),
    Goal(
        "replays that differ from the answer", Key("cache", "headrace", "replays that differ from the answer"), 0, False
    ),
    *_identical(),
    Goal("followers on one API process", Key("followers", "headrace", "followers held"), 2000, True),
    Goal("memory per follower", Key("followers", "headrace", "memory per follower"), 60, False, "KB"),
    Goal("GET job p99 with followers", Key("followers", "headrace", "GET job p99 with followers"), 50, False, "ms"),
    Goal("POST jobs p99 with followers", Key("followers", "headrace", "POST jobs p99 with followers"), 50, False, "ms"),
    Goal("failed calls with followers", Key("followers", "headrace", "failed calls"), 0, False),
    *_calls("full"),
    *_console(),
    *_console_tabs(),
    *_search_indexes(),
    *_usage(),
    *_limits(),
    *_metering(),
    *_request_log(),
    *_loops(),
    Goal(
        "p99 of a stream's steps beside heavy requests, relative to the stream alone",
        Key("heavy", "headrace", "step p99 beside"),
        3,
        False,
        "x",
        Key("heavy", "headrace", "step p99 alone"),
    ),
    *(
        Goal(f"{figure}, {system}", Key("webhooks", system, figure), limit, False, unit)
        for system in ("headrace", "beside a dead endpoint")
        for figure, limit, unit in (("end to event p99", 1000, "ms"), ("events lost", 0, ""))
    ),
    Goal("cancel p99, simulated engine", Key("cancel", "simulated", "cancel p99"), 1000, False, "ms"),
    Goal(
        "first token p95 with a batch, added beyond one step, simulated engine",
        Key("priority", "simulated", "p95 added beyond a step"),
        20,
        False,
        "ms",
    ),
    Goal(
        "first token p95 with a batch, added beyond one step, vLLM",
        Key("priority", "vllm", "p95 added beyond a step"),
        20,
        False,
        "ms",
    ),
    Goal("cancel p99, vLLM", Key("cancel", "vllm", "cancel p99"), 1000, False, "ms"),
)


def verdicts(figures: Figures) -> list[Verdict]:
    """Return the verdicts of all goals whose figures were measured."""
    return [verdict for goal in GOALS if (verdict := goal.evaluate(figures)) is not None]
