"""Conversations stay with their model, or go up: whatever the rules, the fallbacks and the load say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as ConnectionLost

from shared.domain.opaque import OpaquePart
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall
from tests.support.examples import example_count
from tests.support.routing import COMPLEX, IMAGE, SIMPLE, Routing, user

MODELS = """\
models:
  - {name: small, engine: simulated}
  - {name: middle, engine: anthropic, model: claude-haiku-4-5, options: {api_key_env: KEY}}
  - {name: large, engine: anthropic, model: claude-opus-4-5, options: {api_key_env: KEY}}
  - {name: trial, engine: simulated}
  - {name: backup, engine: simulated, modalities: [image]}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: images, if: {images: true}, model: middle}
      - {name: trial, if: {keywords: [poem]}, split: {small: 50, trial: 50}}
      - {name: short, if: {keywords: [short]}, model: small}
      - {name: busy, if: {predicted_wait_over_s: 10}, model: middle}
    fallbacks: {small: [middle], large: [middle, backup], trial: [small]}
  - {name: other, models: [small, middle, large]}
  - {name: stateless, models: [small, middle, large], sticky_s: 0}
"""


@pytest.fixture
def routing(tmp_path: Path) -> Routing:
    return Routing(tmp_path, MODELS)


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


async def test_a_model_on_trial_keeps_its_conversations(routing: Routing) -> None:
    names = [f"user{number}" for number in range(20)]
    chosen = {name: await routing.choose(request(user("a poem")), user=name) for name in names}
    assert set(chosen.values()) == {"small", "trial"}
    for name, model in chosen.items():
        later = request(user("a poem"), said("Roses are red."), user(COMPLEX))
        assert await routing.choose(later, user=name) == ("trial" if model == "trial" else "large")


async def test_a_fallback_that_answered_keeps_the_conversation(routing: Routing) -> None:
    """A worker notes it under the id in the decision."""
    decision = await routing.decide(request(user("short")))
    assert decision.conversation is not None
    await routing.memory.move(decision.conversation, "large")
    assert await routing.choose(request(user("short"), said("Yes."), user("short"))) == "large"


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
    user: str | None
    messages: list[Message] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    async def ask(self, text: Any) -> None:
        last = next((item for item in reversed(self.messages) if item.role == "assistant"), None)
        in_loop = last is not None and bool(last.tool_calls)
        self.messages.append(result(str(last.content)) if in_loop and last is not None else user(text))
        decision = await self.routing.decide(request(*self.messages), user=self.user)
        model, (route, *_) = self.routing.model, self.routing.registry.routes
        allowed = (model, *decision.fallbacks)
        if self.models:
            before = self.models[-1]
            bound = any(item.opaque for item in self.messages)
            if in_loop or bound:
                assert allowed == (before,), "it keeps its model, and nothing may take over"
            elif (floor := route.tier(before)) is not None:
                assert all((route.tier(name) or 0) >= floor for name in allowed if name in route.models)
        assert not set(decision.tried) & set(allowed)
        self.models.append(model)

    def answer(self, calls: int, signed: bool) -> None:
        """The model's answer. Only a provider's models sign."""
        spec = self.routing.registry[self.models[-1]]
        text = f"answer {len(self.messages)} to {self.user}"
        self.messages.append(said(text, calls=calls, opaque=spec.provider if signed else None))


TEXTS = st.sampled_from([SIMPLE, COMPLEX, IMAGE, "poem"])
STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),  # whose turn it is
        TEXTS,
        st.sets(st.sampled_from(["small", "middle", "large", "trial", "backup"])),  # without a worker
        st.sampled_from([0, 0, 1]),  # tool calls
        st.booleans(),  # signed reasoning
    ),
    min_size=3,
    max_size=12,
)


@given(steps=STEPS)
@example_count(100, long=3000)
def test_conversations_keep_the_rules(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Never down a tier, never another model inside a tool loop or with opaque parts in the history."""

    async def run() -> None:
        routing = Routing(tmp_path_factory.getbasetemp(), MODELS)
        talks = [Talk(routing, name) for name in ("a", None)]
        for whose, text, stopped, calls, signed in steps:
            for name in routing.registry.models:
                (routing.queues.stop if name in stopped else routing.queues.start)(name)
            talk = talks[whose]
            await talk.ask(text)
            talk.answer(calls, signed)

    asyncio.run(run())
