"""Speculative decoding, with a schedule by batch size: the same tokens, also after a loss, and several in a step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from shared.domain.events import Delta
from shared.domain.priorities import BATCH_PRIORITY
from shared.domain.request import GenerateRequest, Sampling, StructuredOutputs
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.transcripts import choices_of
from tests.support.vllm_forks import forked_engines
from workers.engines.base import Prior, PromptInfo, Restarted

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

DRAFTED = 4
SPECULATIVE = SMOLLM2.model_copy(
    update={
        "name": "speculative",
        "options": {
            **SMOLLM2.options,
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": DRAFTED,
                "prompt_lookup_min": 1,
                "prompt_lookup_max": 3,
                # Drafts of one or two requests, and none in a crowd.
                "num_speculative_tokens_per_batch_size": [[1, 2, DRAFTED], [3, 8, 0]],
            },
        },
    }
)
REPETITIVE = "one two three four five six seven. one two three four five six seven. one two three"
METRICS = worker_metrics(SPECULATIVE.name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speculative() -> AsyncIterator[Any]:
    from workers.engines.vllm.engine import VllmEngine

    engine = VllmEngine(SPECULATIVE, METRICS)
    try:
        with forked_engines():
            await engine.start()
        yield engine
    finally:
        await engine.stop()


def request(priority: int = 0, **sampling: Any) -> GenerateRequest:
    chosen = {"temperature": 0, "max_tokens": 40, "ignore_eos": True, **sampling}
    return GenerateRequest(prompt=REPETITIVE, sampling=Sampling(**chosen), priority=priority)


async def generate(engine: Any, of: GenerateRequest, prior: Sequence[Delta] = (), job: str = "job_7-1") -> list[Delta]:
    async with aclosing(engine.generate(job, of, Prior(prior))) as items:
        received = [item async for item in items]
    assert not any(isinstance(item, Restarted) for item in received)
    assert isinstance(received.pop(0), PromptInfo)
    return received


def tokens(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_several_tokens_in_a_step_are_those_of_a_run_without_speculation(
    speculative: Any, real_engine: Any
) -> None:
    plain, drafted = await generate(real_engine, request()), await generate(speculative, request())
    assert tokens(drafted) == tokens(plain)
    assert choices_of(drafted) == choices_of(plain)
    stats = speculative.stats().drafts
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    assert real_engine.stats().drafts is None


async def test_resumes_exactly_at_any_token(speculative: Any, real_engine: Any) -> None:
    """A log of an engine with speculation or without continues on either."""
    plain, drafted = await generate(real_engine, request()), await generate(speculative, request())
    for log, engine in ((plain, speculative), (drafted, speculative), (drafted, real_engine)):
        cuts = sorted({1, 2, len(log) // 3, len(log) // 2, len(log) - 1})
        rests = await asyncio.gather(*(generate(engine, request(), log[:cut], f"job_7-{cut}") for cut in cuts))
        for cut, rest in zip(cuts, rests, strict=True):
            assert tokens([*log[:cut], *rest]) == tokens(plain), f"interrupted after {cut} deltas"
            assert choices_of([*log[:cut], *rest]) == choices_of(plain), f"interrupted after {cut} deltas"


@pytest.mark.parametrize(
    "sampling",
    [{"stop": ["five"]}, {"stop": ["e f"]}, {"max_tokens": 7}, {"stop": ["six"], "include_stop_str_in_output": True}],
    ids=["a stop string", "one across tokens", "max_tokens", "an included stop string"],
)
async def test_an_answer_ends_at_the_same_token(speculative: Any, real_engine: Any, sampling: dict[str, Any]) -> None:
    """Although the step that ends it may have drafted, and accepted, tokens after its end."""
    plain, drafted = await generate(real_engine, request(**sampling)), await generate(speculative, request(**sampling))
    assert choices_of(drafted) == choices_of(plain)
    assert tokens(drafted) == tokens(plain)


async def test_a_stop_token_ends_it(speculative: Any, real_engine: Any) -> None:
    stop = tokens(await generate(real_engine, request()))[9]
    chosen = request(stop_token_ids=[stop])
    plain, drafted = await generate(real_engine, chosen), await generate(speculative, chosen)
    assert choices_of(drafted) == choices_of(plain)
    assert tokens(drafted) == tokens(plain)


SCHEMA = {
    "type": "object",
    "properties": {"numbers": {"type": "array", "items": {"enum": ["one", "two", "three"]}, "maxItems": 4}},
    "required": ["numbers"],
}


@pytest.mark.parametrize(
    "structure",
    [{"json_schema": SCHEMA}, {"regex": "(one|two|three)( (one|two|three)){6}"}, {"choice": ["one two three", "one"]}],
    ids=["schema", "regex", "choice"],
)
async def test_a_grammar_holds_for_drafted_tokens(
    speculative: Any, real_engine: Any, structure: dict[str, Any]
) -> None:
    """Drafts from the prompt, which the grammar does not allow, are rejected; the answer is that without drafts."""
    asked = request().model_copy(update={"structured_outputs": StructuredOutputs(**structure)})
    plain, drafted = await generate(real_engine, asked), await generate(speculative, asked)
    assert choices_of(drafted) == choices_of(plain)
    assert tokens(drafted) == tokens(plain)


async def test_log_probabilities_are_those_without_speculation(speculative: Any, real_engine: Any) -> None:
    asked = request(max_tokens=24).model_copy(update={"logprobs": 2})
    found = [choices_of(await generate(engine, asked))[0].logprobs for engine in (real_engine, speculative)]
    plain, drafted = (list(entries or ()) for entries in found)
    assert [entry["token"] for entry in drafted] == [entry["token"] for entry in plain]
    values = [[entry["logprob"] for entry in entries] for entries in (drafted, plain)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert min(values[0]) < 0


async def test_a_crowd_is_not_drafted_for(speculative: Any, real_engine: Any) -> None:
    """By the schedule; the scheduler that lets batch requests skip steps keeps it."""
    expected = tokens(await generate(real_engine, request()))
    before = speculative.stats().drafts.drafted_tokens
    await generate(speculative, request())
    alone = speculative.stats().drafts.drafted_tokens - before
    before = speculative.stats().drafts.drafted_tokens
    crowd = await asyncio.gather(
        *(generate(speculative, request(BATCH_PRIORITY if at % 2 else 0), job=f"job_{at}-1") for at in range(6))
    )
    assert [tokens(one) for one in crowd] == [expected] * 6
    assert speculative.stats().drafts.drafted_tokens - before < alone, "all six together"


async def test_what_the_engine_runs_with_is_exported(speculative: Any) -> None:
    assert speculative.stats().requests == 0
    (line,) = [
        line
        for line in generate_latest(METRICS.registry()).decode().splitlines()
        if line.startswith("headrace_engine_info{")
    ]
    assert line == (
        'headrace_engine_info{attention_backend="CPU_ATTN",dtype="float32",model="speculative",quantization="none",'
        'speculation="ngram",start="fast"} 1.0'
    )
