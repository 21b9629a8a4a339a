"""Routes: the CPU of a decision, with the heuristic and with a trained classifier, and what a route adds to a submit.

The decisions are made in this process, with the models, Redis and PostgreSQL of an API process. No model is called.
The rules ask for the tokens of each prompt, which a real tokenizer counts. `added` is what the decision adds to the
admission of the same request to the chosen model by its name, which counts the prompt if it may exceed the context.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import uvloop

from api.context.count_memo import counting_once
from api.context.window import ContextWindow, PromptTokens
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore
from api.jobs.route_candidates import RouteCandidates
from api.keys.principal import Principal
from api.routing.classifier import Classifier
from api.routing.complexity import Complexity, Heuristic
from api.routing.conversations import Conversations
from api.routing.fit import fit, write
from api.routing.router import Router
from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.prompts import ALL_KINDS, KINDS, examples, requests
from benchmarks.scenarios.submits import JOBS
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from benchmarks.systems.vllm_model import vllm_model
from shared.config.models.loader import load_registry
from shared.domain.errors import InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.engine import connect
from shared.redis.connection import connect_redis
from shared.redis.conversation_models import ConversationModels
from shared.runtime.gc_tuning import freeze_gc
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

# The route's models, in ascending order, and their context lengths. No worker of them is started.
LENGTHS = {"small": 8192, "middle": 32_768, "large": 131_072}
# Not a tier of the route. Unlike the tiers, it reads images.
VISION: dict[str, Any] = {"name": "vision", "engine": "simulated", "modalities": ["image"]}
ROUTE: dict[str, Any] = {
    "name": "auto",
    "models": list(LENGTHS),
    "rules": [
        {"name": "images", "if": {"images": True}, "model": "vision"},
        {"name": "legal", "if": {"keywords": ["contract", "liability", "in other words"]}, "model": "large"},
        {"name": "free", "if": {"tier": ["free"]}, "model": "small"},
        {"name": "long", "if": {"input_tokens_over": 4000}, "model": "middle"},
        {"name": "busy", "if": {"predicted_wait_over_s": 10}, "model": "middle"},
    ],
    "fallbacks": {"small": ["middle"], "middle": ["large"]},
}
CONCURRENCY = 16
# Decisions of each kind that are not measured: the first ones read the queues' estimates.
WARM_UP = 24


def run(bench: Bench) -> None:
    tokenizer = vllm_model(bench.options).folder
    models = [
        {"name": name, "engine": "vllm", "model": str(tokenizer), "options": {"max_model_len": length}}
        for name, length in LENGTHS.items()
    ]
    with headrace(bench.folder, [*models, VISION], routes=[ROUTE]) as system:
        complexities = {"heuristic": Heuristic(), "classifier": _trained(bench.folder / "classifier.json")}
        for repeat in bench.repeats():
            system.delete_jobs()
            for name in bench.rotated(list(complexities), repeat):
                uvloop.run(_decisions(bench, system, name, complexities[name]))
            for model in ("auto", "small"):
                _submits(bench, system, model)


def _trained(path: Path) -> Complexity:
    file, _ = fit(examples(), 0.95)
    write(file, path)
    return Classifier.read(path)


class _Counting(ContextWindow):
    """Adds up the CPU seconds in which tokens are counted."""

    seconds = 0.0

    async def check(self, *args: Any, **kwargs: Any) -> None:
        began = process_time()
        try:
            await super().check(*args, **kwargs)
        finally:
            self.seconds += process_time() - began

    async def measure(self, *args: Any, **kwargs: Any) -> PromptTokens:
        began = process_time()
        try:
            return await super().measure(*args, **kwargs)
        finally:
            self.seconds += process_time() - began


async def _decisions(bench: Bench, system: Headrace, name: str, complexity: Complexity) -> None:
    """Route requests as an API process does, and add the figures of each kind."""
    registry = load_registry(system.models_file)
    metrics = Metrics(Exporter.API, registry.models)
    database, redis = connect(system.database_url, pool_size=1), connect_redis(system.redis_url)
    window = _Counting(registry)
    candidates = RouteCandidates(registry, window, QueueEstimates(QueueStore(database), registry))
    router = Router(registry, candidates, Conversations(ConversationModels(redis), metrics), complexity, metrics)
    owner = Owner(1, 1)
    principal = Principal.of(owner)
    naming = Owner(2, 2).project_id  # another project, so that nothing that the decision counted is known
    freeze_gc()  # as an API process does: a collection would take 20 ms
    everything: defaultdict[str, list[float]] = defaultdict(list)
    try:
        for kind in KINDS:
            seconds: defaultdict[str, list[float]] = defaultdict(list)
            for number, request in enumerate(requests(kind, bench.pick(144, 48) + WARM_UP)):
                new = NewJob(owner, "auto", 3, request)
                window.seconds, began = 0.0, process_time()
                with counting_once(owner.project_id):
                    routed = await router.route(principal, new)
                    assert routed is not None
                    settled = await router.settle(principal, routed, routed.job)
                    if settled.note is not None:
                        await router.remember(settled.note)
                    decided, counting = process_time(), window.seconds
                    await _check(window, routed.job.model, request)
                checked = process_time()
                complexity.score(request)
                scored = process_time()
                with counting_once(naming):
                    await _check(window, routed.job.model, request)
                named = process_time()
                if number >= WARM_UP:
                    seconds["decision"].append(decided - began)
                    seconds["decision, added"].append(checked - began - (named - scored))
                    seconds["decision without counting"].append(decided - began - counting)
                    seconds["score"].append(scored - checked)
            _add(bench, name, seconds, kind)
            for what in seconds:
                everything[what] += seconds[what]
        _add(bench, name, everything, ALL_KINDS)
    finally:
        await redis.aclose()
        await database.dispose()


async def _check(window: ContextWindow, model: str, request: GenerateRequest) -> None:
    """Check a prompt as admission does. The longest ones do not fit any model."""
    with contextlib.suppress(InvalidRequest):
        await window.check(model, request)


def _add(bench: Bench, name: str, measured: Mapping[str, Sequence[float]], kind: str) -> None:
    for what, seconds in measured.items():
        used = sorted(seconds)
        for share in (50, 99):
            bench.add(name, f"CPU per {what} p{share}, {kind}", 1000 * percentile(used, share / 100), "ms")


def _submits(bench: Bench, system: Headrace, model: str) -> None:
    system.delete_jobs()
    plan = Plan(
        port=system.port,
        path=JOBS,
        body={"model": model, "messages": [{"role": "user", "content": f"{NUMBER}: name three rivers."}]},
        headers=system.headers,
        concurrency=CONCURRENCY,
        seconds=bench.pick(6.0, 1.5),
        warm_up=CONCURRENCY,
    )
    summary, used = bench.measure(system.name, system.processes, plan)
    what = "with a route" if model == "auto" else "without"
    bench.add(system.name, f"submits/s {what}", summary.per_second, "/s")
    bench.add_cpu(system.name, f"CPU per submit {what}", used, summary.requests)
