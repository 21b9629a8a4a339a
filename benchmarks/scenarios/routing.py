"""CPU of a route's decision, with the shipped heuristic and with a trained classifier, in this process.

What a decision asks Redis and PostgreSQL is answered from memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence

from api.context.window import PromptTokens
from api.keys.principal import Principal
from api.routing.candidates import Refusal
from api.routing.classifier import Classifier
from api.routing.complexity import Complexity, Heuristic
from api.routing.conversations import Conversations
from api.routing.examples import Example
from api.routing.fit import fit, write
from api.routing.router import Router
from benchmarks.bench import Bench
from benchmarks.statistics import percentile
from shared.config.models.loader import Registry
from shared.config.models.routes import Route
from shared.config.models.simulated import SimulatedModel
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import NewJob
from shared.redis.conversation_models import ConversationModels, KnownModel
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

# Beginnings of tasks, which are labelled, and texts that follow them.
SIMPLE = ("What is the population of", "Who wrote about", "Translate into German:", "Which colour has")
COMPLEX = ("Prove a statement about", "Write a program that simulates", "Compare step by step", "Analyse the causes of")
TEXTS = (
    "the river and its bridges ",
    "мост через реку ",
    "河上的桥和船",
    "川にかかる橋",
    "جسر فوق النهر ",
    "नदी पर पुल ",
    "def cross(river): return [bridge for bridge in river];\n",
    "😀🤯🦙 ",
)
CHARACTERS = (20, 200, 2000, 20_000, 200_000)
TURNS = (1, 11, 101)

MODELS = ("small", "middle", "large")
RULES = (
    {"name": "images", "if": {"images": True}, "model": "large"},
    {"name": "tools", "if": {"tools": True}, "model": "middle"},
    {"name": "legal", "if": {"keywords": ["contract", "liability", "court"]}, "model": "large"},
    {"name": "free", "if": {"tier": ["free"]}, "model": "small"},
)


def requests(seed: int) -> Iterator[GenerateRequest]:
    """One request of each kind of text, length and conversation, in random order."""
    order = random.Random(seed)
    kinds = [(text, characters, turns) for text in TEXTS for characters in CHARACTERS for turns in TURNS]
    order.shuffle(kinds)
    for text, characters, turns in kinds:
        beginning = order.choice((*SIMPLE, *COMPLEX))
        task = f"{beginning} {(text * (characters // len(text) + 1))[:characters]}"
        earlier = [Message(role=("user", "assistant")[at % 2], content=text) for at in range(turns - 1)]
        yield GenerateRequest(messages=[*earlier, Message(role="user", content=task)])


def examples() -> list[Example]:
    """Labelled requests to train on. How good the classifier is does not change its cost."""
    return [
        Example(GenerateRequest(prompt=f"{beginning} {text} {number}"), label)
        for label, beginnings in ((0.0, SIMPLE), (1.0, COMPLEX))
        for beginning in beginnings
        for number, text in enumerate(TEXTS)
    ]


class _Memory(ConversationModels):
    """In place of Redis."""

    def __init__(self) -> None:
        pass

    async def find(self, names: Sequence[str], conversation: str | None = None) -> list[KnownModel | None]:
        return []


class _AllCanServe:
    """Candidates that can serve each request at once."""

    async def refusal(self, model: str, principal: Principal, new: NewJob, *, shortens: bool = True) -> Refusal | None:
        return None

    async def overload(self, model: str, new: NewJob, max_wait_s: float | None = None) -> Refusal | None:
        return None

    def length(self, model: str) -> int | None:
        return None

    async def wait_s(self, model: str, priority: int) -> float | None:
        return 0.0

    async def measure(
        self, model: str, request: GenerateRequest, limit: int | None, project_id: int
    ) -> PromptTokens | None:
        return None


def new_router(complexity: Complexity) -> Router:
    """A router for a route with rules, of which none applies."""
    registry = Registry(
        {name: SimulatedModel(name=name, engine="simulated") for name in MODELS},
        [Route.model_validate({"name": "auto", "models": MODELS, "rules": RULES, "otherwise": "complexity"})],
    )
    metrics = Metrics(Exporter.API, registry.models)
    return Router(registry, _AllCanServe(), Conversations(_Memory(), metrics), complexity, metrics)


async def measure(bench: Bench, name: str, complexity: Complexity, rounds: int) -> None:
    """Score and route each kind of request `rounds` times, and add the figures."""
    router = new_router(complexity)
    owner = Owner(1, 1)
    principal = Principal.of(owner)
    scores, decisions = [], []
    for seed in range(rounds):
        for request in requests(seed):
            before = time.thread_time_ns()
            complexity.score(request)
            scored = time.thread_time_ns()
            await router.route(principal, NewJob(owner, "auto", 3, request))
            scores.append((scored - before) / 1e6)
            decisions.append((time.thread_time_ns() - scored) / 1e6)
    for what, used in (("score", scores), ("decision", decisions)):
        used.sort()
        bench.add(name, f"CPU per {what} p50", percentile(used, 0.5), "ms")
        bench.add(name, f"CPU per {what} p99", percentile(used, 0.99), "ms")
        bench.add(name, f"CPU per {what}, maximum", used[-1], "ms")


def run(bench: Bench) -> None:
    file, _ = fit(examples(), 0.95)
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = bench.folder / "model.json"
    write(file, path)
    rounds = bench.pick(20, 2)
    for _ in bench.repeats():
        before = time.process_time()
        classifier = Classifier.read(path)
        bench.add("classifier", "CPU to load", 1000 * (time.process_time() - before), "ms")
        asyncio.run(measure(bench, "heuristic", Heuristic(), rounds))
        asyncio.run(measure(bench, "classifier", classifier, rounds))
