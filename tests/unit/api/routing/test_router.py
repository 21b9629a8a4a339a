"""Routes choose models: by rules, by complexity, and by what can serve a request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from api.keys.principal import Principal
from shared.config.models.loader import load_registry
from shared.domain.answer_options import ContextOptions, RequestOptions
from shared.domain.decisions import RouteDecision
from shared.domain.request import ChatOptions, Function, GenerateRequest, Sampling, StructuredOutputs, Tool
from shared.postgres.job_store import NewJob
from shared.telemetry.metrics import SkipReason
from tests.support.routing import COMPLEX, IMAGE, OWNER, SIMPLE, Routing, chat, user

RULES = """\
models:
  - {name: small, engine: simulated, options: {max_model_len: 600}}
  - {name: middle, engine: simulated, options: {max_model_len: 4000}}
  - {name: large, engine: simulated, modalities: [image, file]}
  - {name: new, engine: simulated}
  - {name: free, engine: simulated}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: busy, if: {predicted_wait_over_s: 10}, model: middle}
      - {name: images, if: {images: true}, model: large}
      - {name: files, if: {files: true}, model: large}
      - {name: free, if: {tier: [free]}, model: free}
      - {name: structure, if: {structured_output: true, tools: false}, model: middle}
      - {name: tools, if: {tools: true}, model: large}
      - {name: words, if: {keywords: [Translate, "in French", 翻译, "c++"]}, model: new}
      - {name: long, if: {input_tokens_over: 100}, model: middle}
  - {name: plain, otherwise: middle}
"""

TOOLS = ChatOptions(tools=[Tool(function=Function(name="f"))])


@pytest.fixture
def routing(tmp_path: Path) -> Routing:
    return Routing(tmp_path, RULES)


@pytest.mark.parametrize(
    ("request_", "model", "rule"),
    [
        (chat(SIMPLE), "small", "complexity"),
        (chat(COMPLEX), "large", "complexity"),
        (chat([IMAGE]), "large", "images"),
        (chat("word " * 150), "middle", "long"),
        (chat("word " * 90), "small", "complexity"),
        (chat("Please TRANSLATE this"), "new", "words"),
        (chat("Say it  in\nFrench."), "new", "words"),
        (chat("请翻译这个"), "new", "words"),
        (chat("Is C++ old?"), "new", "words"),
        (chat("a mistranslated word"), "small", "complexity"),
        (chat(SIMPLE, chat=TOOLS), "large", "tools"),
        (chat(SIMPLE, structured_outputs=StructuredOutputs(json_object=True)), "middle", "structure"),
        (chat(SIMPLE, structured_outputs=StructuredOutputs(json_object=True), chat=TOOLS), "large", "tools"),
        (GenerateRequest(prompt="translate"), "new", "words"),
        (GenerateRequest(prompt=[1] * 101), "middle", "long"),
        (GenerateRequest(prompt=[1] * 100), "small", "complexity"),
    ],
)
async def test_the_first_rule_that_applies_decides(
    routing: Routing, request_: GenerateRequest, model: str, rule: str
) -> None:
    decision = await routing.decide(request_)
    assert (routing.model, decision.rule) == (model, rule)
    assert (decision.score is not None) is (rule == "complexity")
    assert routing.counted_decisions(route="auto", rule=rule, model=model) == 1


async def test_a_model_is_no_route(routing: Routing) -> None:
    new = NewJob(OWNER, "small", 3, chat(SIMPLE))
    assert await routing.router.route(Principal.of(OWNER), new) is new
    assert await routing.router.explain(Principal.of(OWNER), new) is None


async def test_the_tier_of_the_project_and_the_wait_are_facts(routing: Routing) -> None:
    principal = replace(Principal.of(OWNER), tier="free")
    assert (await routing.decide(chat(SIMPLE), principal=principal)).rule == "free"
    routing.queues.wait("small", 11)
    assert (await routing.decide(chat(SIMPLE), principal=principal)).rule == "busy"
    assert (await routing.decide(chat(SIMPLE), "plain")).rule == "otherwise"
    routing.queues.wait("small", None)
    assert (await routing.decide(chat(SIMPLE))).rule == "complexity", "the wait is unknown"
    routing.queues.stop("small")
    assert (await routing.decide(chat(SIMPLE))).rule == "busy", "a job would wait for ever"


async def test_facts_are_determined_only_if_a_rule_asks(routing: Routing, tmp_path: Path) -> None:
    (tmp_path / "lazy").mkdir()
    busy = "      - {name: busy, if: {predicted_wait_over_s: 10}, model: middle}\n"
    lazy = Routing(tmp_path / "lazy", RULES.replace(busy, "").replace("over: 100}", "over: 1000}"))
    await lazy.decide(chat([IMAGE]))
    await lazy.decide(chat("translate " * 500))
    assert lazy.counted == []
    await lazy.decide(chat("hi"))
    assert lazy.counted == [], "a token is at least one byte"
    await lazy.decide(chat("word " * 500))
    assert lazy.counted == ["small"]
    assert lazy.queues.asked == []


async def test_modes(routing: Routing) -> None:
    question = chat("Summarize the causes of the French revolution in two paragraphs.")
    chosen = [await routing.choose(question, name) for name in ("auto:cost", "auto", "auto:quality")]
    assert chosen[0] != chosen[2]
    decision = await routing.decide(question, "auto:quality")
    assert (decision.route, decision.mode) == ("auto", "quality")
    assert routing.job.requested_model == "auto:quality"
    assert (await routing.decide(question, "auto:balanced")).mode is None


SPLIT = """\
models: [{name: old, engine: simulated}, {name: new, engine: simulated}, {name: other, engine: simulated}]
routes:
  - name: trial
    rules:
      - {name: trial, split: {old: 90, new: 10}}
    fallbacks: {old: [other]}
"""


async def test_a_split_is_stable_for_each_end_user(tmp_path: Path) -> None:
    routing = Routing(tmp_path, SPLIT)
    users = [f"user{number}" for number in range(1000)]
    first = [await routing.choose(chat(SIMPLE), "trial", user=name) for name in users]
    again = [await routing.choose(chat(COMPLEX), "trial", user=name) for name in users]
    assert first == again
    assert 70 < first.count("new") < 130
    other_content = [await routing.choose(chat(f"question {number}"), "trial") for number in range(1000)]
    assert 70 < other_content.count("new") < 130, "without end users, it goes by the conversation"
    more = Routing(tmp_path, SPLIT.replace("old: 90, new: 10", "old: 80, new: 20"))
    later = [await more.choose(chat(SIMPLE), "trial", user=name) for name in users]
    assert all(after == "new" for before, after in zip(first, later, strict=True) if before == "new")


FALLBACKS = """\
models:
  - {name: small, engine: simulated, options: {max_model_len: 600}}
  - {name: middle, engine: simulated, options: {max_model_len: 4000}}
  - {name: large, engine: simulated, modalities: [image, file]}
  - {name: backup, engine: simulated}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: easy, if: {keywords: [easy]}, model: small}
    fallbacks: {small: [middle], middle: [large, backup]}
"""


@pytest.fixture
def fallbacks(tmp_path: Path) -> Routing:
    return Routing(tmp_path, FALLBACKS)


async def test_the_models_that_can_serve_the_request_may_take_over(fallbacks: Routing) -> None:
    assert await fallbacks.decided(chat(SIMPLE)) == ("small", (), ("middle", "large", "backup"))
    assert await fallbacks.decided(chat(COMPLEX)) == ("large", (), ())
    long = chat(SIMPLE, sampling=Sampling(max_tokens=5000))
    assert await fallbacks.decided(long) == ("large", ("small", "middle"), ("backup",))
    assert fallbacks.skipped("small", SkipReason.CONTEXT_LENGTH) == 1
    assert fallbacks.queues.asked == ["small", "large"], "the load of a model that cannot serve it does not matter"


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt=[1, 2]),
        chat(SIMPLE, sampling=Sampling(logit_bias={"1": -1})),
        chat(SIMPLE, sampling=Sampling(stop_token_ids=[1])),
        chat(SIMPLE, sampling=Sampling(allowed_token_ids=[1])),
    ],
    ids=["prompt", "bias", "stop", "allowed"],
)
async def test_no_model_takes_over_a_request_with_ids_of_tokens(fallbacks: Routing, request_: GenerateRequest) -> None:
    assert await fallbacks.decided(request_) == ("small", (), ())


async def test_overload(fallbacks: Routing) -> None:
    fallbacks.queues.stop("small")
    assert await fallbacks.decided(chat(SIMPLE)) == ("middle", ("small",), ("large", "backup"))
    assert fallbacks.skipped("small", SkipReason.NO_WORKER) == 1
    fallbacks.queues.open_breaker("middle")
    assert await fallbacks.decided(chat(SIMPLE)) == ("large", ("small", "middle"), ("backup",))
    assert fallbacks.skipped("middle", SkipReason.BREAKER_OPEN) == 1
    for name in ("large", "backup"):
        fallbacks.queues.stop(name)
    assert await fallbacks.decided(chat(SIMPLE)) == ("small", (), ("middle", "large", "backup")), "it waits there"
    assert await fallbacks.decided(chat(COMPLEX)) == ("large", (), ()), "it has no fallbacks"


async def test_a_wait_beyond_start_before(fallbacks: Routing) -> None:
    fallbacks.queues.wait("small", 30)
    assert await fallbacks.choose(chat(SIMPLE)) == "small"
    assert await fallbacks.choose(chat(SIMPLE), start_within_s=31) == "small"
    assert await fallbacks.choose(chat(SIMPLE), start_within_s=29) == "middle"
    assert fallbacks.skipped("small", SkipReason.WAIT) == 1
    fallbacks.queues.wait("small", None)
    assert await fallbacks.choose(chat(SIMPLE), start_within_s=1) == "small", "the wait is unknown"


async def test_a_database_outage_is_no_overload(fallbacks: Routing) -> None:
    fallbacks.queues.fail(ConnectionRefusedError())
    assert await fallbacks.choose(chat(SIMPLE), start_within_s=1) == "small"
    fallbacks.queues.fail(RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        await fallbacks.choose(chat(SIMPLE), start_within_s=1)


async def test_another_tier_serves_what_neither_the_model_nor_its_fallbacks_can(fallbacks: Routing) -> None:
    assert await fallbacks.decided(chat([IMAGE])) == ("large", ("small", "middle"), ())
    assert fallbacks.skipped("small", SkipReason.CAPABILITY) == 1
    up = FALLBACKS.replace("    fallbacks: {small: [middle], middle: [large, backup]}\n", "")
    without = Routing(fallbacks.folder, up)
    assert await without.decided(chat([IMAGE])) == ("large", ("small",), ())
    down = Routing(fallbacks.folder, up.replace("[small, middle, large]", "[large, middle, small]"))
    assert await down.choose(chat([IMAGE], "easy")) == "large"


async def test_no_model_can_serve_a_request(fallbacks: Routing) -> None:
    """Admission then reports what is wrong: with the model that the client can do most about."""
    too_long = chat(SIMPLE, sampling=Sampling(max_tokens=10**6))
    assert await fallbacks.decided(too_long) == ("small", (), ())
    assert await fallbacks.decided(chat([IMAGE], sampling=Sampling(max_tokens=10**6))) == ("large", (), ())


async def test_a_conversation_that_will_be_shortened_is_not_too_long(fallbacks: Routing) -> None:
    long = chat("easy " * 1000)
    assert await fallbacks.choose(long) == "middle"
    window = ContextOptions(strategy="sliding_window")
    assert await fallbacks.choose(long, options=RequestOptions(context=window)) == "small"


async def test_a_reload_takes_effect_at_once(fallbacks: Routing) -> None:
    registry = fallbacks.registry
    file = fallbacks.folder / "models.yaml"
    file.write_text(FALLBACKS.replace("[small, middle, large]", "[middle, large]"))
    loaded = load_registry(file)
    registry.replace(loaded.models, loaded.routes)
    assert await fallbacks.choose(chat(SIMPLE)) == "middle"
    without_small = {name: model for name, model in loaded.models.items() if name != "small"}
    registry.replace(without_small, loaded.routes)
    assert await fallbacks.decided(chat("easy")) == ("middle", ("small",), ("large", "backup"))
    assert fallbacks.skipped("small", SkipReason.REMOVED) == 1
    registry.replace(loaded.models)
    assert registry.route("auto") is None


async def test_an_explanation_has_no_effects(fallbacks: Routing) -> None:
    fallbacks.queues.stop("small")
    fallbacks.queues.wait("middle", 5)
    found = await fallbacks.explain(chat(SIMPLE), start_within_s=1)
    assert found.choice.model == "large"
    assert (found.choice.rule, found.choice.tried, found.choice.fallbacks) == (
        "complexity",
        ("small", "middle"),
        ("backup",),
    )
    assert {name: refusal and refusal.reason for name, refusal in found.refusals.items()} == {
        "small": SkipReason.NO_WORKER,
        "middle": SkipReason.WAIT,
        "large": None,
        "backup": None,
    }
    assert (found.tokens.number, found.tokens.estimated) == (len(f"user: {SIMPLE}".split()) + 1, False)
    assert 0 <= found.score < 0.4
    assert fallbacks.memory.models == {}
    assert fallbacks.counted_decisions() == 0


async def test_tokens_are_estimated_without_a_tokenizer(tmp_path: Path) -> None:
    content = """\
models: [{name: up, engine: openai, model: m, options: {base_url: "http://up/v1"}}]
routes: [{name: auto, models: [up]}]
"""
    found = await Routing(tmp_path, content).explain(chat("x" * 400))
    assert found.tokens.estimated
    assert 50 <= found.tokens.number <= 200


def test_the_decision_is_stored_and_reported() -> None:
    decision = RouteDecision(route="auto", rule="long", mode="cost", tried=("a",), fallbacks=("b",), conversation="c")
    assert RouteDecision.model_validate(decision.model_dump(mode="json")) == decision


async def test_the_hash_of_large_requests_is_bounded(routing: Routing) -> None:
    """A conversation of megabytes is recognized by the beginning and the length of its newest messages."""
    huge = [user("x" * 1_000_000)]
    await routing.decide(GenerateRequest(messages=huge))
    assert len(routing.memory.models) == 2
