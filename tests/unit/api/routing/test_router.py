"""Routes choose models: by rules, by complexity, and by what can serve a request."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from api.context import window
from api.jobs.admission import Admission
from api.keys.principal import Principal
from api.routing.keywords import Keywords, SearchedText
from shared.config.models.loader import load_registry
from shared.domain.answer_options import ContextOptions, RequestOptions
from shared.domain.content import FilePart
from shared.domain.conversation import Conversation
from shared.domain.decisions import RouteDecision
from shared.domain.errors import NotFound
from shared.domain.new_job import NewJob
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
)
from shared.prompts.token_counter import count_words
from shared.telemetry.definitions.labels import SkipReason
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
    assert await routing.router.route(Principal.of(OWNER), new) is None
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


async def test_paused_queues(fallbacks: Routing) -> None:
    fallbacks.queues.pause("small")
    assert await fallbacks.decided(chat(SIMPLE)) == ("middle", ("small",), ("large", "backup"))
    assert fallbacks.skipped("small", SkipReason.PAUSED) == 1
    fallbacks.queues.pause("middle")
    for name in ("large", "backup"):
        fallbacks.queues.stop(name)
    expected = ("large", ("small", "middle"), ("backup",))
    assert await fallbacks.decided(chat(SIMPLE)) == expected, "a worker may come without an operator"
    for name in ("large", "backup"):
        fallbacks.queues.pause(name)
    assert await fallbacks.decided(chat(SIMPLE)) == ("small", (), ("middle", "large", "backup")), "it waits there"


LEVELS = """\
models:
  - {name: small, engine: simulated, options: {max_model_len: 600}}
  - {name: middle, engine: simulated}
  - {name: large, engine: simulated}
routes: [{name: auto, models: [small, middle, large]}]
"""


async def test_a_model_that_cannot_serve_a_request_is_replaced_by_one_that_is_not_paused(tmp_path: Path) -> None:
    routing = Routing(tmp_path, LEVELS)
    long = chat(SIMPLE, sampling=Sampling(max_tokens=5000))
    for name, chosen in (("middle", "large"), ("large", "middle")):
        routing.queues.pause(name)
        assert await routing.decided(long) == (chosen, ("small",), ())


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


async def test_another_level_serves_what_neither_the_model_nor_its_fallbacks_can(fallbacks: Routing) -> None:
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


class _Hash:
    """In place of a hash. Counts the bytes that are hashed."""

    hashed = 0

    def __init__(self, digest_size: int) -> None:
        self._digest = hashlib.sha256()

    def update(self, data: bytes) -> None:
        _Hash.hashed += len(data)
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


LARGE_MESSAGES = {
    "text": [user("x" * 1_000_000)] * 3,
    "parts": [user(*["x" * 400] * 9000)] * 3,
    "images": [user(*[IMAGE] * 9000)] * 3,
    "calls": [
        Message(
            role="assistant",
            tool_calls=[
                MessageToolCall(id="c", function=FunctionCall(name="f", arguments='{"a": "' + "x" * 9000 + '"}'))
            ]
            * 100,
        ),
        user("Go on."),
    ],
    "instructions": [*[Message(role="system", content="x" * 100_000)] * 20, user("hi")],
}


@pytest.mark.parametrize("messages", LARGE_MESSAGES.values(), ids=LARGE_MESSAGES)
def test_the_hash_of_large_requests_is_bounded(messages: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation of megabytes is recognized by the ends and the sizes of its newest messages."""
    monkeypatch.setattr(_Hash, "hashed", 0)
    monkeypatch.setattr(hashlib, "blake2b", _Hash)
    names = Conversation(GenerateRequest(messages=messages)).names("auto", OWNER)
    assert names.own
    assert _Hash.hashed < 500_000
    longer = [*messages[:-1], messages[-1].model_copy(update={"content": f"{messages[-1].text}!"})]
    assert Conversation(GenerateRequest(messages=longer)).names("auto", OWNER) != names


BUSY = """\
models:
  - {name: small, engine: simulated}
  - {name: middle, engine: simulated}
  - {name: large, engine: simulated}
routes:
  - name: auto
    models: [small, middle, large]
    fallbacks: {small: [middle], middle: [large]}
    fallback_wait_s: 10
"""


async def test_a_busy_model_is_skipped_for_its_fallback(tmp_path: Path) -> None:
    """Only requests for the busy model move, to the first fallback that is not busy: complex ones stay."""
    routing = Routing(tmp_path, BUSY)
    routing.queues.wait("small", 10)
    assert await routing.choose(chat(SIMPLE)) == "small"
    routing.queues.wait("small", 11)
    assert await routing.decided(chat(SIMPLE)) == ("middle", ("small",), ("large",))
    assert routing.skipped("small", SkipReason.WAIT) == 1
    assert await routing.choose(chat(COMPLEX)) == "large"
    routing.queues.wait("middle", 11)
    assert await routing.choose(chat(SIMPLE)) == "large"
    routing.queues.wait("large", 11)
    assert await routing.decided(chat(SIMPLE)) == ("small", (), ("middle", "large")), "all are busy"
    refusal = (await routing.explain(chat(SIMPLE))).refusals["small"]
    assert refusal is not None
    assert "11 s, more than the route's fallback_wait_s, 10 s" in refusal.message


async def test_other_models_of_a_split_come_before_the_levels(tmp_path: Path) -> None:
    file = """\
models:
  - {name: a, engine: simulated}
  - {name: b, engine: simulated, modalities: [image]}
  - {name: c, engine: simulated, modalities: [image]}
  - {name: d, engine: simulated, modalities: [file]}
routes:
  - {name: auto, models: [a, b], rules: [{name: all, split: {a: 99.9, c: 0.1}}], fallbacks: {c: [d]}}
"""
    routing = Routing(tmp_path, file)
    assert await routing.decided(chat([IMAGE])) == ("c", ("a",), ())
    file_part = FilePart(type="file", media_type="application/pdf", data="JVBERi0=")
    assert await routing.choose(GenerateRequest(messages=[user(file_part)])) == "d", "no other model can serve it"


async def test_a_fallback_takes_over_only_what_fits_its_context(tmp_path: Path) -> None:
    """A conversation is shortened for the chosen model, and not again for those that take over."""
    file = """\
models:
  - {name: big, engine: simulated, options: {max_model_len: 8000}}
  - {name: tiny, engine: simulated, options: {max_model_len: 300}, context: {strategy: sliding_window}}
routes:
  - {name: auto, models: [tiny, big], otherwise: big, fallbacks: {big: [tiny]}}
"""
    routing = Routing(tmp_path, file)
    assert await routing.decided(chat("word " * 900)) == ("big", (), ())
    assert await routing.decided(chat("word " * 90)) == ("big", (), ("tiny",))
    admission = Admission(routing.registry, routing.window, router=routing.router)
    for words, fallbacks in ((900, ()), (90, ("tiny",))):  # as a job that is not submitted would have them
        job = await admission.recheck(Principal.of(OWNER), NewJob(OWNER, "auto", 3, chat("word " * words)))
        assert job.decisions.route is not None
        assert (job.model, job.decisions.route.fallbacks) == ("big", fallbacks)
    routing.queues.stop("big")
    assert await routing.decided(chat("word " * 900)) == ("tiny", ("big",), ())


async def test_a_prompt_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a rule, the limits and the contexts of all models ask for its tokens."""
    file = """\
models:
  - {name: a, engine: simulated, options: {max_model_len: 200}, token_limits: {max_input: 100}}
  - {name: b, engine: simulated, options: {max_model_len: 300}, token_limits: {max_input: 150}}
  - {name: c, engine: simulated, options: {max_model_len: 1000}, token_limits: {max_input: 900}}
routes:
  - {name: auto, models: [a, b, c], rules: [{name: long, if: {input_tokens_over: 900}, model: c}], otherwise: a}
"""
    counts: list[int | None] = []

    def count(request: GenerateRequest, limit: int | None = None, project_id: int | None = None) -> int:
        counts.append(limit)
        return count_words(request, limit)

    monkeypatch.setattr(window, "count_words", count)
    routing = Routing(tmp_path, file)
    admission = Admission(routing.registry, routing.window, router=routing.router)
    for number in (1, 2):
        job = await admission.admit(Principal.of(OWNER), NewJob(OWNER, "auto", 3, chat("longer " * 800)))
        assert (job.model, len(counts)) == ("c", number)
    await admission.explain(Principal.of(OWNER), NewJob(OWNER, "auto", 3, chat("longer " * 800)))
    assert counts[2:] == [1001], "and no further than a rule or a context needs"


async def test_the_model_of_a_route_is_found_without_counting(fallbacks: Routing) -> None:
    new = NewJob(OWNER, "auto", 3, chat("x" * 300))
    assert (await fallbacks.router.preview(Principal.of(OWNER), new)).model == "small"
    assert fallbacks.counted == []
    named = replace(new, model="small")
    assert await fallbacks.router.preview(Principal.of(OWNER), named) is named


async def test_a_decision_by_estimated_tokens_says_so(tmp_path: Path) -> None:
    file = """\
models:
  - {name: up, engine: openai, model: m, options: {base_url: "http://up/v1"}}
  - {name: counted, engine: simulated}
routes:
  - {name: auto, models: [up], rules: [{name: long, if: {input_tokens_over: 50}, model: up}]}
  - {name: exact, models: [up, counted], rules: [{name: long, if: {input_tokens_over: 600}, model: up}]}
"""
    routing = Routing(tmp_path, file)
    decision = await routing.decide(chat("word " * 300))
    assert (decision.rule, decision.tokens_estimated) == ("long", True)
    assert 300 <= (decision.input_tokens or 0) <= 600
    assert routing.job.decisions.headers()["x-headrace-tokens-estimated"] == "true"
    decision = await routing.decide(chat("word " * 700), "exact")
    assert (decision.input_tokens, decision.tokens_estimated) == (702, False)
    assert "x-headrace-tokens-estimated" not in routing.job.decisions.headers()
    none = RouteDecision.model_validate((await routing.decide(chat("hi"), "exact")).model_dump())
    assert (none.input_tokens, none.tokens_estimated) == (None, False)


KEYWORDS = [
    *(
        "translate",
        "In  French",
        "to be or not to be",
        "翻译",
        "c++",
        "Straße",
        "node.js",
        "한국어",
        "x1",
        "ราคา",
        "café",
    ),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Please TRANSLATE this", True),
        ("a mistranslated word", False),
        ("Say it in\nFrench.", True),
        ("in the French way, in French's", True),
        ("in the french", False),
        ("To be, or not to be", True),
        ("to be or not to", False),
        ("请翻译这个", True),
        ("翻 译", False),
        ("Is C++ old?", True),
        ("c+ +", False),
        ("die STRASSE", True),
        ("use Node.js now", True),
        ("nodexjs", False),
        ("한국어로", True),
        ("x1", True),
        ("x 1", False),
        ("请用translate翻写", True),
        ("x1을 써줘", True),
        ("請in French写", True),
        ("in 法 French", False),
        ("ขอทราบราคาสินค้า", True),
        ("a cafe\u0301 nearby", True),
        ("", False),
    ],
)
def test_keywords(text: str, found: bool) -> None:
    assert Keywords(KEYWORDS).are_in(SearchedText(text)) is found


def test_keywords_are_found_as_if_one_was_searched_after_the_other() -> None:
    """Whatever they share."""
    parts = ["ab", "abc", "bca", "a+", "+a", "a", "ab bc", "bc ab", "中文", "文本", "中"]
    texts = [" ".join(item) for item in product(["ab", "bc", "abc", "中文本", "a+"], repeat=3)]
    for keyword in parts:
        expected = [_has(text, keyword) for text in texts]
        assert [Keywords([keyword]).are_in(SearchedText(text)) for text in texts] == expected
        assert [Keywords([keyword, "zz", "z z", "z+"]).are_in(SearchedText(text)) for text in texts] == expected


def _has(text: str, keyword: str) -> bool:
    if keyword.replace(" ", "").isascii() and keyword.replace(" ", "").isalnum():
        return re.search(rf"(?<!\w){keyword}(?!\w)", text) is not None
    return keyword in text


async def test_a_mode_of_a_route_that_does_not_choose_by_complexity_does_not_exist(routing: Routing) -> None:
    assert routing.registry.route("plain:quality") is None
    with pytest.raises(NotFound, match="`plain` has no modes, because it does not choose by complexity; use `plain`"):
        _ = routing.registry["plain:quality"]
