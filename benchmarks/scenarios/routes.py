"""Routes: the CPU of a decision, without any model call, and what it adds to a submit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import process_time
from typing import Any

from api.context.window import ContextWindow
from api.jobs.queue_estimates import QueueEstimates
from api.jobs.queue_store import QueueStore
from api.jobs.route_candidates import RouteCandidates
from api.keys.principal import Principal
from api.routing.complexity import Heuristic
from api.routing.conversations import Conversations
from api.routing.router import Router
from benchmarks.bench import Bench
from benchmarks.load.plan import NUMBER, Plan
from benchmarks.scenarios.submits import JOBS
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from shared.config.models.loader import load_registry
from shared.domain.owner import Owner
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool
from shared.postgres.engine import connect
from shared.postgres.job_store import NewJob
from shared.redis.connection import connect_redis
from shared.redis.conversation_models import ConversationModels
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

OPTIONS: dict[str, Any] = {"engine": "simulated", "options": {"max_model_len": 100_000}}
MODELS: list[dict[str, Any]] = [
    {"name": "small", **OPTIONS},
    {"name": "middle", **OPTIONS},
    {"name": "large", **OPTIONS, "modalities": ["image"]},
]
ROUTES: list[dict[str, Any]] = [
    {
        "name": "auto",
        "models": ["small", "middle", "large"],
        "rules": [
            {"name": "images", "if": {"images": True}, "model": "large"},
            {"name": "words", "if": {"keywords": ["translate", "in other words"]}, "model": "middle"},
            {"name": "long", "if": {"input_tokens_over": 4000}, "model": "middle"},
            {"name": "busy", "if": {"predicted_wait_over_s": 10}, "model": "middle"},
        ],
        "fallbacks": {"small": ["middle"], "middle": ["large"]},
    }
]
CONCURRENCY = 16


def run(bench: Bench) -> None:
    seconds = bench.pick(6.0, 1.5)
    with headrace(bench.folder, MODELS, routes=ROUTES) as system:
        for _ in bench.repeats():
            for kind, took in asyncio.run(_decisions(system, bench.pick(1000, 100))):
                bench.add(system.name, f"CPU per decision p50, {kind}", 1000 * percentile(took, 0.5), "ms")
                bench.add(system.name, f"CPU per decision p99, {kind}", 1000 * percentile(took, 0.99), "ms")
            for name in ("auto", "small"):
                system.delete_jobs()
                body = {"model": name, "messages": [{"role": "user", "content": f"{NUMBER}: name three rivers."}]}
                plan = Plan(
                    port=system.port,
                    path=JOBS,
                    body=body,
                    headers=system.headers,
                    concurrency=CONCURRENCY,
                    seconds=seconds,
                    warm_up=CONCURRENCY,
                )
                summary, used = bench.measure(system.name, system.processes, plan)
                what = "with a route" if name == "auto" else "without"
                bench.add(system.name, f"submits/s {what}", summary.per_second, "/s")
                bench.add_cpu(system.name, f"CPU per submit {what}", used, summary.requests)


async def _decisions(system: Headrace, count: int) -> list[tuple[str, list[float]]]:
    """Route requests as an API process does. Returns the CPU seconds of each decision, sorted, by kind of request."""
    registry = load_registry(system.models_file)
    metrics = Metrics(Exporter.API, registry.models)
    database, redis = connect(system.database_url, pool_size=1), connect_redis(system.redis_url)
    estimates = QueueEstimates(QueueStore(database), registry)
    candidates = RouteCandidates(registry, ContextWindow(registry), estimates)
    router = Router(registry, candidates, Conversations(ConversationModels(redis), metrics), Heuristic(), metrics)
    owner = Owner(1, 1)
    results = []
    try:
        for kind in ("question", "code and tools", "20 turns", "16 KB"):
            took = []
            for number in range(count + 20):
                new = NewJob(owner, "auto", 3, _request(kind, number))
                began = process_time()
                await router.route(Principal.of(owner), new)
                took.append(process_time() - began)
            results.append((kind, sorted(took[20:])))
    finally:
        await redis.aclose()
        await database.dispose()
    return results


def _request(kind: str, number: int) -> GenerateRequest:
    match kind:
        case "question":
            return GenerateRequest(messages=[_user(f"{number}: what is the capital of Peru?")])
        case "code and tools":
            tools = [Tool(function=Function(name=f"tool_{n}", parameters={"type": "object"})) for n in range(20)]
            text = f"{number}: implement a sieve\n```python\ndef sieve(n): ...\n```\nand prove that it ends."
            return GenerateRequest(messages=[_user(text)], chat=ChatOptions(tools=tools))
        case "20 turns":
            return GenerateRequest(messages=[*_turns(number), _user("And what follows from it?")])
    return GenerateRequest(messages=[_user(f"{number}: " + "summarize this text. " * 780)])


def _turns(number: int) -> Iterator[Message]:
    for turn in range(20):
        yield _user(f"{number}.{turn}: " + "tell me more about rivers. " * 10)
        yield Message(role="assistant", content=f"{number}.{turn}: " + "rivers are long. " * 20)


def _user(text: str) -> Message:
    return Message(role="user", content=text)
