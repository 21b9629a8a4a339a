"""A router with the models of a file, queues that a test controls, and a memory in place of Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from api.context.window import ContextWindow, PromptTokens
from api.jobs.queue_store import ServiceRate
from api.jobs.route_candidates import RouteCandidates
from api.keys.principal import Principal
from api.routing.candidates import CostLimit, Refusal
from api.routing.complexity import Heuristic
from api.routing.conversations import Conversations
from api.routing.router import Explanation, Router
from shared.config.models.loader import load_registry
from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.conversation import Conversation, EarlierAnswer
from shared.domain.decisions import RouteDecision
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.redis.conversation_models import ConversationModels, KnownModel
from shared.telemetry.definitions.labels import SkipReason
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

OWNER = Owner(1, 1)
SIMPLE = "What is the capital of Peru?"
COMPLEX = (
    "Prove step by step that there are infinitely many primes of the form 4k+3, analyze the time complexity of a sieve"
    " that finds them, and then design and implement a distributed version of it in Python with error handling."
)
IMAGE = ImagePart(type="image", media_type="image/png", data="iVBORw0KGgo=")


def user(*content: str | ImagePart | FilePart) -> Message:
    """A message of the user."""
    if len(content) == 1 and isinstance(content[0], str):
        return Message(role="user", content=content[0])
    return Message(
        role="user",
        content=[TextPart(type="text", text=part) if isinstance(part, str) else part for part in content],
    )


def chat(content: str | Sequence[str | ImagePart], *more: str, **options: Any) -> GenerateRequest:
    """A request with one message."""
    parts = [content] if isinstance(content, str) else [*content]
    return GenerateRequest(messages=[user(*parts, *more)], **options)


class Queues:
    """In place of `QueueEstimates`. At first, each model has a worker with a free slot."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._rates: dict[str, ServiceRate] = {}
        self._waits: dict[str, float | None] = {}
        self._error: Exception | None = None

    def stop(self, model: str) -> None:
        """End the model's workers."""
        self._rates[model] = ServiceRate(0, 0, 0, None, 0)

    def start(self, model: str) -> None:
        """Start a worker of the model, and resume its queue."""
        self._rates.pop(model, None)

    def open_breaker(self, model: str) -> None:
        """Let the model's upstream fail."""
        self._rates[model] = ServiceRate(0, 0, 0, None, 1)

    def pause(self, model: str) -> None:
        """Pause the queue of a model that has a worker."""
        self._rates[model] = ServiceRate(4, 0, 0, 1.0, 1, paused=True)

    def wait(self, model: str, seconds: float | None) -> None:
        """Set the predicted wait of a model; None: unknown."""
        self._waits[model] = seconds

    def fail(self, error: Exception) -> None:
        """Let all queries fail."""
        self._error = error

    async def rate(self, model: str) -> ServiceRate:
        self.asked.append(model)
        if self._error is not None:
            raise self._error
        return self._rates.get(model, ServiceRate(4, 0, 0, 1.0, 1))

    async def new_job_wait_s(self, model: str, priority: int) -> float | None:
        return self._waits.get(model, 0.0)


class Memory(ConversationModels):
    """In place of Redis."""

    def __init__(self) -> None:  # without a connection
        self.models: dict[str, KnownModel] = {}
        self.names: dict[str, str] = {}
        self.ttls: dict[str, int] = {}
        self.error: Exception | None = None
        self._levels: dict[str, Sequence[str]] = {}

    async def find(self, names: Sequence[str], conversation: str | None = None) -> list[KnownModel | None]:
        self._fail()
        ids = [self.names.get(name, "") for name in names]
        return [self.models.get(item) for item in ([] if conversation is None else [conversation]) + ids]

    async def remember(
        self, conversation: str, names: Sequence[str], known: KnownModel, ttl_s: int, *, levels: Sequence[str] = ()
    ) -> None:
        self._fail()
        self.models[conversation], self.ttls[conversation] = known, ttl_s
        self._levels[conversation] = levels
        await self.name(conversation, names)

    async def name(self, conversation: str, names: Sequence[str]) -> None:
        self._fail()
        if conversation in self.models:
            level = self._level(conversation)
            self.names |= {name: conversation for name in names if self._level(self.names.get(name, "")) <= level}

    async def move(self, conversation: str | None, model: str) -> None:
        self._fail()
        if conversation in self.models:
            self.models[conversation] = replace(self.models[conversation], model=model)

    def _level(self, conversation: str) -> int:
        if (known := self.models.get(conversation)) is None:
            return 0
        levels = self._levels[conversation]
        return max([0, *(levels.index(name) + 1 for name in (known.model, known.floor) if name in levels)])

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class _Counting(ContextWindow):
    """Notes for which models tokens were counted."""

    counted: list[str]

    async def measure(
        self, model: str, request: GenerateRequest, limit: int | None = None, project_id: int | None = None
    ) -> PromptTokens:
        self.counted.append(model)
        return await super().measure(model, request, limit, project_id)


class Routing:
    """A router. `job` is the one that was routed last."""

    def __init__(self, folder: Path, models: str) -> None:
        self.folder = folder
        (folder / "models.yaml").write_text(models)
        self.registry = load_registry(folder / "models.yaml")
        self.restart()

    def restart(self) -> None:
        """Forget all requests."""
        self.queues, self.memory = Queues(), Memory()
        self._metrics = Metrics(Exporter.API, self.registry.models)
        self.window = window = _Counting(self.registry)
        self.counted = window.counted = []
        self._candidates = candidates = RouteCandidates(self.registry, window, self.queues)  # type: ignore[arg-type]
        conversations = Conversations(self.memory, self._metrics)
        self.router = Router(self.registry, candidates, conversations, Heuristic(), self._metrics)
        self.job = NewJob(OWNER, "", 3, GenerateRequest(prompt=""))

    @property
    def model(self) -> str:
        """The model that was chosen last."""
        return self.job.model

    async def decide(
        self,
        request: GenerateRequest,
        name: str = "auto",
        *,
        user: str | None = None,
        principal: Principal | None = None,
        start_within_s: float | None = None,
        options: RequestOptions = NO_REQUEST_OPTIONS,
        earlier_answer: EarlierAnswer | None = None,
    ) -> RouteDecision:
        """Route a request, as admission does if all its checks pass."""
        acting = (principal or Principal.of(OWNER)).acting_for(user)
        new = NewJob(
            acting.owner,
            name,
            3,
            request,
            start_within_s=start_within_s,
            options=options,
            earlier_answer=earlier_answer,
        )
        routed = await self.router.route(acting, new)
        assert routed is not None
        self.job = await self.router.settle(acting, routed, routed.job)
        await self.remember()
        assert self.job.decisions.route is not None
        return self.job.decisions.route

    async def downgrade(
        self,
        request: GenerateRequest,
        costs: Mapping[str, int | None],
        *,
        below: int,
        room: int,
        name: str = "auto",
        user: str | None = None,
    ) -> RouteDecision | None:
        """Route a request that costs so much with each model to a cheaper one, and remember it; None: there is none."""

        async def cost(model: str) -> Decimal | None:
            return None if (found := costs[model]) is None else Decimal(found)

        acting = Principal.of(OWNER).acting_for(user)
        limit = CostLimit(Decimal(below), Decimal(room), cost)
        routed = await self.router.downgrade(acting, NewJob(acting.owner, name, 3, request), limit)
        if routed is None:
            return None
        self.job = await self.router.settle(acting, routed, routed.job)
        await self.remember()
        return self.job.decisions.route

    async def remember(self) -> None:
        """Remember the job that was routed last, as before it is stored."""
        if self.job.note is not None:
            await self.router.remember(self.job.note)

    async def choose(self, request: GenerateRequest, name: str = "auto", **arguments: Any) -> str:
        """Route a request. Returns the model."""
        await self.decide(request, name, **arguments)
        return self.model

    async def decided(
        self, request: GenerateRequest, name: str = "auto", **arguments: Any
    ) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Route a request. Returns the model, those that were tried before, and those that may take over."""
        decision = await self.decide(request, name, **arguments)
        return self.model, decision.tried, decision.fallbacks

    async def answer(self, *messages: Message) -> None:
        """End the job that was routed last with this output, as a worker does."""
        route = self.job.decisions.route
        if route is not None and route.conversation is not None:
            answers = [(item.text, [call.id for call in item.tool_calls or ()]) for item in messages]
            names = Conversation(self.job.request).answered(route.route, self.job.owner, answers)
            await self.memory.name(route.conversation, names)

    async def refusal(self, model: str) -> Refusal | None:
        """Why a model cannot serve the job that was routed last."""
        return await self._candidates.refusal(model, Principal.of(OWNER), self.job)

    async def explain(self, request: GenerateRequest, *, start_within_s: float | None = None) -> Explanation:
        """How the route `auto` would serve a request."""
        new = NewJob(OWNER, "auto", 3, request, start_within_s=start_within_s)
        explanation = await self.router.explain(Principal.of(OWNER), new)
        assert explanation is not None
        return explanation

    def counted_decisions(self, **labels: str) -> float:
        """How often requests were counted as routed, with all of these labels."""
        return self._sum("headrace_route_decisions_total", labels)

    def skipped(self, model: str, reason: SkipReason) -> float:
        """How often a model was skipped for a reason."""
        return self._sum("headrace_route_skipped_models_total", {"model": model, "reason": reason.value})

    @property
    def conversation_errors(self) -> float:
        """How often the models of conversations could not be read or written."""
        return self._sum("headrace_route_conversation_errors_total", {})

    def _sum(self, name: str, labels: dict[str, str]) -> float:
        samples = [sample for family in self._metrics.registry().collect() for sample in family.samples]
        return sum(item.value for item in samples if item.name == name and labels.items() <= item.labels.items())
