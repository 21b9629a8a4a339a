"""Conversations stay with their model, or go up: whatever the rules, the fallbacks and the load say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as ConnectionLost

from api.jobs.admission import Admission
from api.jobs.quotas import NO_RESERVATION, Reservation
from api.jobs.service import JobService
from api.keys.principal import Principal
from api.routing.router import TOOL_LOOP_S
from shared.domain.conversation import EarlierAnswer
from shared.domain.errors import QuotaExceeded
from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.opaque import OpaquePart
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Tool,
)
from tests.support.examples import example_count
from tests.support.routing import COMPLEX, IMAGE, OWNER, SIMPLE, Routing, user

MODELS = """\
models:
  - {name: small, engine: simulated}
  - {name: middle, engine: anthropic, model: claude-haiku-4-5, options: {api_key_env: KEY}}
  - {name: large, engine: anthropic, model: claude-opus-4-5, options: {api_key_env: KEY}}
  - {name: trial, engine: simulated}
  - {name: middle2, engine: simulated}
  - {name: large2, engine: simulated}
  - {name: backup, engine: simulated, modalities: [image]}
  - {name: vision, engine: simulated, modalities: [image]}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: images, if: {images: true}, model: middle}
      - {name: trial, if: {keywords: [poem]}, split: {small: 50, trial: 50}}
      - {name: short, if: {keywords: [short]}, model: small}
      - {name: busy, if: {predicted_wait_over_s: 10}, model: middle}
    fallbacks: {small: [middle], large: [middle, backup], trial: [small]}
  - name: pictures
    models: [small, middle2, large2]
    rules:
      - {name: images, if: {images: true}, model: vision}
    fallbacks: {small: [middle2]}
  - {name: other, models: [small, middle, large]}
  - {name: stateless, models: [small, middle, large], sticky_s: 0}
"""


@pytest.fixture
def routing(tmp_path: Path) -> Routing:
    return Routing(tmp_path, MODELS)


@pytest.fixture(scope="module")
def shared_routing(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    return Routing(tmp_path_factory.mktemp("routing"), MODELS)


def said(text: str, *, calls: int = 0, opaque: str | None = None) -> Message:
    tool_calls = [
        MessageToolCall(id=f"call_{text}_{number}", function=FunctionCall(name="f", arguments="{}"))
        for number in range(calls)
    ]
    parts = [OpaquePart(opaque, "signature", text)] if opaque is not None else None
    return Message(role="assistant", content=text, tool_calls=tool_calls or None, opaque=parts)


def result(text: str) -> Message:
    return Message(role="tool", content="1", tool_call_id=f"call_{text}_0")


def request(*messages: Message, system: str = "Be brief.") -> GenerateRequest:
    return GenerateRequest(messages=[Message(role="system", content=system), *messages])


async def test_a_conversation_never_goes_down(routing: Routing) -> None:
    turns = [user(SIMPLE)]
    assert await routing.choose(request(*turns)) == "small"
    turns += [said("Lima."), user(COMPLEX)]
    assert await routing.choose(request(*turns)) == "large"
    for text in (SIMPLE, "short", "poem"):
        turns += [said(f"Answer to {text}"), user(text)]
        decision = await routing.decide(request(*turns))
        assert (routing.model, decision.rule) == ("large", "conversation")
    assert await routing.choose(request(user(SIMPLE))) == "small", "this is another conversation"


async def test_conversations_are_apart(routing: Routing) -> None:
    """By end user, route and `prompt_cache_key`, and by what was said: not by an opening that many have."""
    turns = [user("hi"), said("Hello!"), user(COMPLEX)]
    assert await routing.choose(request(*turns), user="a") == "large"
    later = request(*turns, said("..."), user(SIMPLE))
    assert await routing.choose(later, user="a") == "large"
    assert await routing.choose(later, user="b") == "small"
    assert await routing.choose(later, "other", user="a") == "small"
    assert await routing.choose(later, "stateless", user="a") == "small"
    assert await routing.choose(request(user("hi"), said("Hello!"), user(SIMPLE)), user="a") == "small"


async def test_examples_in_front_of_a_question_are_no_conversation(routing: Routing) -> None:
    examples = (user("2+2"), said("4"))
    assert await routing.choose(request(*examples, user(COMPLEX))) == "large"
    assert await routing.choose(request(*examples, user(SIMPLE))) == "small"
    assert await routing.choose(request(*examples, user(COMPLEX), said("..."), user(SIMPLE))) == "large"


async def test_a_conversation_is_recognized_after_changes_of_the_client(routing: Routing) -> None:
    turns = [user(SIMPLE), said("Lima."), user(COMPLEX), said("..."), user("Go on.")]
    assert await routing.choose(request(*turns[:3], system="It is 10:00.")) == "large"
    assert await routing.choose(request(*turns, system="It is 10:01.")) == "large", "the system prompt has the time"
    shortened = [*turns[2:], said("more"), user("short")]
    assert await routing.choose(request(*shortened)) == "large", "the first turn was dropped"


async def test_a_repeated_request_keeps_the_better_model(routing: Routing) -> None:
    first = request(user("hi"))
    routing.queues.stop("small")
    assert await routing.choose(first) == "middle"
    routing.queues.start("small")
    assert await routing.choose(first) == "small"
    assert await routing.choose(request(user("hi"), said("Hello!"), user(SIMPLE))) == "middle"


@pytest.mark.parametrize("first", ["small", "middle"])
async def test_no_change_inside_a_tool_loop(routing: Routing, first: str) -> None:
    """Not even if the model has no worker, or cannot serve the request."""
    opening = user("short") if first == "small" else user(IMAGE)
    assert await routing.choose(request(opening)) == first
    routing.queues.stop(first)
    turns = [opening]
    for number in range(3):
        turns += [said(f"step {number}", calls=1), result(f"step {number}")]
        decision = await routing.decide(request(*turns))
        assert (routing.model, decision.rule, decision.tried, decision.fallbacks) == (first, "conversation", (), ())
    routing.queues.start(first)
    turns += [said("done"), user(COMPLEX)]
    assert await routing.choose(request(*turns)) == {"small": "large", "middle": "middle"}[first]  # the image remains


async def test_no_change_with_opaque_parts_of_a_provider(routing: Routing) -> None:
    assert await routing.choose(request(user(IMAGE))) == "middle"
    signed = [user(IMAGE), said("A cat.", opaque="anthropic"), user(COMPLEX)]
    assert await routing.decided(request(*signed)) == ("middle", (), ())


async def test_opaque_parts_of_an_unknown_conversation_choose_a_model_of_their_provider(routing: Routing) -> None:
    turns = [user("Who?"), said("Me.", opaque="anthropic"), user(SIMPLE)]
    assert await routing.decided(request(*turns)) == ("middle", (), ())
    turns[2] = user(COMPLEX)
    assert await routing.decided(request(*turns), user="another") == ("large", (), ())
    foreign = [user("Who?"), said("Me.", opaque="openai"), user(SIMPLE)]
    assert await routing.choose(request(*foreign)) == "small", "no model of the route reads them"
    turns[2] = user(SIMPLE)
    for paused, model in (("middle", "large"), ("large", "middle")):
        routing.queues.pause(paused)
        assert await routing.choose(request(*turns), user=f"paused {paused}") == model


async def test_a_model_on_trial_keeps_its_conversations(routing: Routing) -> None:
    names = [f"user{number}" for number in range(20)]
    chosen = {name: await routing.choose(request(user("a poem")), user=name) for name in names}
    assert set(chosen.values()) == {"small", "trial"}
    for name, model in chosen.items():
        later = request(user("a poem"), said("Roses are red."), user(COMPLEX))
        assert await routing.choose(later, user=name) == ("trial" if model == "trial" else "large")


async def test_a_fallback_that_answered_keeps_the_conversation(routing: Routing) -> None:
    """A worker notes it under the id in the decision, whatever the client does to its system prompt."""
    decision = await routing.decide(request(user("short"), system="It is 10:00."))
    assert decision.conversation is not None
    await routing.memory.move(decision.conversation, "large")
    for system in ("It is 10:00.", "It is 10:01."):
        loop = [user("short"), said("step", calls=1), result("step")]
        decision = await routing.decide(request(*loop, system=system))
        assert (routing.model, decision.rule) == ("large", "conversation")
        assert await routing.choose(request(user("short"), said("Yes."), user("short"), system=system)) == "large"


async def test_an_image_later_in_a_conversation_goes_to_the_model_that_reads_it(routing: Routing) -> None:
    """Also if that model is none of the levels. It then keeps the conversation, which does not go down afterwards."""
    turns = [user(COMPLEX)]
    assert await routing.choose(request(*turns), "pictures") == "large2"
    turns += [said("1"), user("What is this?", IMAGE)]
    decision = await routing.decide(request(*turns), "pictures")
    assert (routing.model, decision.rule, decision.tried) == ("vision", "images", ("large2",))
    for number in range(3):
        turns += [said(f"answer {number}"), user(f"{SIMPLE} {number}")]
        assert await routing.choose(request(*turns), "pictures") == "vision"
    later = [*turns[4:], said("more"), user(SIMPLE)]
    decision = await routing.decide(request(*later), "pictures")
    assert (routing.model, decision.rule) == ("vision", "conversation"), "the client has dropped the image"
    routes = [
        route.model_copy(update={"rules": ()}) if route.name == "pictures" else route
        for route in routing.registry.routes
    ]
    routing.registry.replace(routing.registry.models, routes)
    assert await routing.choose(request(*later, said("and more"), user(SIMPLE)), "pictures") == "large2"


async def test_the_displaced_model_of_a_split_serves_what_the_conversations_model_cannot(tmp_path: Path) -> None:
    file = """\
models: [{name: a, engine: simulated}, {name: b, engine: simulated}, {name: c, engine: simulated, modalities: [image]}]
routes: [{name: auto, models: [a], rules: [{name: all, split: {a: 50, b: 25, c: 25}}]}]
"""
    routing = Routing(tmp_path, file)
    for number in range(20):
        name = f"user{number}"
        first = await routing.choose(request(user("hi")), user=name)
        later = await routing.choose(request(user("hi"), said("Hello!"), user(IMAGE)), user=name)
        assert (first in "abc", later) == (True, "c")


async def test_the_displaced_default_serves_what_the_conversations_model_cannot(tmp_path: Path) -> None:
    """It comes before the levels, as in a new conversation."""
    file = """\
models:
  - {name: a, engine: simulated}
  - {name: b, engine: simulated, modalities: [image]}
  - {name: c, engine: simulated, modalities: [image]}
routes: [{name: auto, models: [a, b], rules: [{name: easy, if: {keywords: [easy]}, model: a}], otherwise: c}]
"""
    routing = Routing(tmp_path, file)
    assert await routing.choose(request(user("easy"))) == "a"
    decision = await routing.decide(request(user("easy"), said("1"), user(IMAGE)))
    assert (routing.model, decision.rule) == ("c", "otherwise")


async def test_a_conversation_does_not_go_down_as_a_last_resort(tmp_path: Path) -> None:
    """If only a lower level can serve a request, it is refused: the conversation may not go down."""
    file = """\
models: [{name: a, engine: simulated, modalities: [image]}, {name: b, engine: simulated}]
routes: [{name: auto, models: [a, b]}]
"""
    routing = Routing(tmp_path, file)
    assert await routing.choose(request(user(COMPLEX))) == "b"
    assert await routing.choose(request(user(COMPLEX), said("1"), user(IMAGE))) == "b"
    assert await routing.refusal("b") is not None
    assert await routing.choose(request(user(IMAGE))) == "a"


async def test_answers_tell_conversations_with_the_same_opening_apart(routing: Routing) -> None:
    """A model that was busy when one client said hello does not get the conversations of all others."""
    routing.queues.stop("small")
    assert await routing.choose(request(user("hi"))) == "middle"
    await routing.answer(said("Hello from middle."))
    routing.queues.start("small")
    for number in range(3):
        assert await routing.choose(request(user("hi"))) == "small"
        await routing.answer(said(f"Hello {number}."))
        assert await routing.choose(request(user("hi"), said(f"Hello {number}.\n"), user(SIMPLE))) == "small"
    assert await routing.choose(request(user("hi"), said("Hello from middle."), user(SIMPLE))) == "middle"
    assert await routing.choose(request(user("hi"), said("Edited."), user(SIMPLE))) == "middle", "it may be that one"


@pytest.mark.parametrize("calls", [0, 1])
async def test_a_client_may_keep_only_the_last_message_before_an_answer(routing: Routing, calls: int) -> None:
    turns = [user("Hello."), said("Hi."), user(COMPLEX)]
    assert await routing.choose(request(*turns)) == "large"
    await routing.answer(said("answer", calls=calls))
    kept = [turns[2], said("answer", calls=calls), result("answer") if calls else user(SIMPLE)]
    assert await routing.choose(request(*kept, system="It is 10:01.")) == "large"
    assert await routing.choose(request(user("Another"), *kept[1:])) == "small"


async def test_calls_tell_conversations_with_the_same_opening_apart(routing: Routing) -> None:
    assert await routing.choose(request(user("short"))) == "small"
    await routing.answer(said("first", calls=1))
    routing.queues.stop("small")
    assert await routing.choose(request(user("short"))) == "middle"
    await routing.answer(said("second", calls=1))
    for text, model in {"first": "small", "second": "middle"}.items():
        assert await routing.choose(request(user("short"), said(text, calls=1), result(text))) == model


def shortened(request: GenerateRequest) -> GenerateRequest:
    """A request of which only the system prompt and the newest message are left."""
    messages = request.messages or []
    return request.model_copy(update={"messages": [messages[0], messages[-1]]})


async def settle_shortened(routing: Routing, full: GenerateRequest) -> GenerateRequest:
    """Route a request and shorten it, as admission does. Returns what the job stores."""
    principal = Principal.of(OWNER)
    routed = await routing.router.route(principal, NewJob(OWNER, "auto", 3, full))
    assert routed is not None
    routing.job = await routing.router.settle(
        principal, routed, replace(routed.job, request=shortened(routed.job.request))
    )
    await routing.remember()
    return routing.job.request


@pytest.mark.parametrize("remembers", [True, False], ids=["redis", "without"])
async def test_a_conversation_is_recognized_after_a_cut(routing: Routing, remembers: bool) -> None:
    """With the full history and with what the server has kept of it, in a tool loop as well; with
    `previous_response_id` even without Redis."""
    turns = [user(SIMPLE), said("Lima."), user(COMPLEX)]
    kept = (await settle_shortened(routing, request(*turns))).messages or []
    assert routing.model == "large"
    route = routing.job.decisions.route
    assert route is not None
    earlier = EarlierAnswer("auto", "large", route.conversation, datetime.now(UTC))
    continued = ([said("done"), user(SIMPLE)], [said("step", calls=1), result("step")])
    if not remembers:
        routing.memory.error = ConnectionLost("refused")
    for more in continued:
        chain = GenerateRequest(messages=[*kept, *more])
        decision = await routing.decide(chain, earlier_answer=earlier)
        assert (routing.model, decision.rule) == ("large", "conversation")
        if remembers:
            assert await routing.choose(chain) == "large"
            assert await routing.choose(request(*turns, *more)) == "large"
    assert (
        await routing.choose(GenerateRequest(messages=[*kept, *continued[0]]), "other", earlier_answer=earlier)
        == "small"
    )
    old = replace(earlier, created_at=datetime.now(UTC) - timedelta(days=2), conversation=None)
    if not remembers:
        assert await routing.choose(GenerateRequest(messages=[*kept, *continued[0]]), earlier_answer=old) == "small"


async def test_a_refused_request_binds_no_conversation(routing: Routing) -> None:
    principal = Principal.of(OWNER)
    assert await routing.router.route(principal, NewJob(OWNER, "auto", 3, request(user(COMPLEX)))) is not None
    assert routing.memory.models == {}
    assert await routing.choose(request(user(COMPLEX), said("1"), user(SIMPLE))) == "small"


class _Quotas:
    """Project quotas, which are used up at first."""

    used_up = True

    async def reserve(self, new: NewJob) -> Reservation:
        if self.used_up:
            raise QuotaExceeded
        return NO_RESERVATION


class _Stored(Exception):
    """A job was stored."""


class _Store:
    async def insert(self, new: NewJob, idempotency: object) -> tuple[Job, bool]:
        raise _Stored


async def test_a_request_that_a_quota_refuses_is_not_remembered(routing: Routing) -> None:
    """Nobody answers it, so it must not keep the conversation at the model that was chosen for it."""
    quotas: Any = _Quotas()
    admission = Admission(routing.registry, routing.window, quotas, router=routing.router)
    names = ("logs", "terminator", "hints", "hub", "redis", "queue_estimates", "metrics")
    others: dict[str, Any] = dict.fromkeys(names)
    service = JobService(admission=admission, store=_Store(), **others)  # type: ignore[arg-type]
    new = NewJob(OWNER, "auto", 3, request(user(COMPLEX)))
    with pytest.raises(QuotaExceeded):
        await service.submit(Principal.of(OWNER), new)
    assert (routing.memory.models, routing.memory.names) == ({}, {})
    quotas.used_up = False
    with pytest.raises(_Stored):
        await service.submit(Principal.of(OWNER), new)
    assert [known.model for known in routing.memory.models.values()] == ["large"]
    assert routing.memory.names


async def test_a_route_that_remembers_nothing_keeps_tool_loops(routing: Routing) -> None:
    tools = ChatOptions(tools=[Tool(function=Function(name="f"))])
    opening = [user("short")]
    first = request(*opening).model_copy(update={"chat": tools})
    routing.queues.stop("small")
    assert await routing.choose(first, "stateless") == "small"
    assert set(routing.memory.ttls.values()) == {TOOL_LOOP_S}
    opening += [said("step", calls=1), result("step")]
    decision = await routing.decide(request(*opening), "stateless")
    assert (routing.model, decision.rule) == ("small", "conversation")
    opening += [said("done"), user(COMPLEX), said("more"), user(SIMPLE)]
    assert await routing.choose(request(*opening), "stateless") == "small"
    assert await routing.choose(request(user(SIMPLE)), "stateless") == "small"
    assert len(routing.memory.models) == 2, "only requests with tools are remembered"


async def test_a_reload_takes_a_model_from_its_conversations(routing: Routing) -> None:
    """Outside of tool loops, and if the route has another model that reads their opaque parts. They do not go down."""
    assert await routing.choose(request(user(IMAGE))) == "middle"
    loop = [user(IMAGE), said("step", calls=1, opaque="anthropic"), result("step")]
    await routing.answer(loop[1])
    signed = [user(IMAGE), said("A cat.", opaque="anthropic"), user(SIMPLE)]
    await routing.answer(signed[1])
    routes = [
        route.model_copy(update={"models": ("small", "large"), "rules": (), "fallbacks": {}})
        for route in routing.registry.routes
    ]
    routing.registry.replace(routing.registry.models, routes)
    assert await routing.choose(request(*loop)) == "middle"
    assert await routing.choose(request(*signed)) == "large"


async def test_prompts_are_no_conversations(routing: Routing) -> None:
    decision = await routing.decide(GenerateRequest(prompt="short"))
    assert (routing.model, decision.conversation) == ("small", None)
    assert routing.memory.models == {}


@pytest.mark.parametrize("error", [ConnectionLost("refused"), TimeoutError()])
async def test_without_redis_each_request_is_routed_by_itself(routing: Routing, error: Exception) -> None:
    turns = [user(SIMPLE)]
    routing.memory.error = error
    assert await routing.choose(request(user(COMPLEX))) == "large"
    assert await routing.choose(request(*turns)) == "small"
    assert routing.conversation_errors >= 2
    routing.memory.error = RuntimeError("a fault")
    assert await routing.choose(request(*turns)) == "small", "Redis is not asked again for a second"


async def test_a_fault_is_not_taken_for_an_outage(routing: Routing) -> None:
    routing.memory.error = RuntimeError("a fault")
    with pytest.raises(RuntimeError):
        await routing.choose(request(user(SIMPLE)))


@dataclass
class Talk:
    """A conversation with the models of a route, as a client has it."""

    routing: Routing
    route: str
    user: str | None
    number: int
    messages: list[Message] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    async def ask(self, text: Any) -> None:
        last = next((item for item in reversed(self.messages) if item.role == "assistant"), None)
        in_loop = last is not None and bool(last.tool_calls)
        self.messages.append(result(str(last.content)) if in_loop and last is not None else user(text))
        decision = await self.routing.decide(request(*self.messages), self.route, user=self.user)
        model = self.routing.model
        requested = self.routing.registry.route(self.route)
        assert requested is not None
        route = requested.route
        allowed = (model, *decision.fallbacks)
        floor = max((position for name in self.models if (position := route.level(name)) is not None), default=0)
        bound = any(item.opaque for item in self.messages)
        if self.models and (in_loop or bound):
            assert allowed == (self.models[-1],), "it keeps its model, and nothing may take over"
        elif self.models:
            assert all((route.level(name) or 0) >= floor for name in allowed if name in route.models)
        if not (self.models and in_loop) and not bound and await self.routing.refusal(model) is not None:
            for name in route.candidates:
                lower = name in route.models and (route.level(name) or 0) < floor
                assert lower or await self.routing.refusal(name) is not None, "this one would serve the request"
        assert not set(decision.tried) & set(allowed)
        self.models.append(model)

    async def answer(self, calls: int, signed: bool) -> None:
        """The model's answer. Only a provider's models sign."""
        spec = self.routing.registry[self.models[-1]]
        text = f"answer {len(self.messages)} in {self.number}"
        self.messages.append(said(text, calls=calls, opaque=spec.provider if signed else None))
        await self.routing.answer(self.messages[-1])


TEXTS = st.sampled_from([SIMPLE, COMPLEX, IMAGE, "poem"])
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # whose turn it is
        TEXTS,
        st.sets(
            st.sampled_from(["small", "middle", "large", "trial", "backup", "middle2", "vision"])
        ),  # without worker
        st.sampled_from([0, 0, 1]),  # tool calls
        st.booleans(),  # signed reasoning
    ),
    min_size=3,
    max_size=12,
)


@given(route=st.sampled_from(["auto", "pictures"]), steps=STEPS)
@example_count(100, long=3000)
def test_conversations_keep_the_rules(shared_routing: Routing, route: str, steps: list[Any]) -> None:
    """Never down a level, never another model inside a tool loop or with opaque parts in the history, and never
    refused if a model may serve the request. Two of the clients are the same to the server."""

    async def run() -> None:
        shared_routing.restart()
        talks = [Talk(shared_routing, route, name, number) for number, name in enumerate(("a", None, None))]
        for whose, text, stopped, calls, signed in steps:
            for name in shared_routing.registry.models:
                (shared_routing.queues.stop if name in stopped else shared_routing.queues.start)(name)
            talk = talks[whose]
            await talk.ask(text)
            await talk.answer(calls, signed)

    asyncio.run(run())
