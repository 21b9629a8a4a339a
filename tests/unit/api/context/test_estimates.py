"""Estimates of tokens, and the ratios that they learn from usage."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.estimates import DEFAULT_TOKENS_PER_BYTE, IMAGE_TOKENS, MAX_PROJECTS, TokenEstimates
from api.context.learned_ratios import LEAST, MIN_JOBS, MOST, shared_ratio, tokens_per_byte
from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool
from tests.support.examples import example_count


def asked(*content: TextPart | ImagePart | FilePart) -> GenerateRequest:
    return GenerateRequest(messages=[Message(role="user", content=list(content))])


def test_a_ratio_needs_some_jobs() -> None:
    assert tokens_per_byte([]) is None
    assert tokens_per_byte([(400, 100)] * (MIN_JOBS - 1)) is None
    assert tokens_per_byte([(400, 100)] * MIN_JOBS) == 0.25


def test_a_ratio_is_that_of_dense_prompts_but_not_of_outliers() -> None:
    usual, dense = [(4000, 1000)] * 90, [(4000, 1600)] * 10
    assert tokens_per_byte([*usual, *dense]) == 0.4
    assert tokens_per_byte([(4000, 1000)] * 98 + [(4000, 4000)] * 2) == 0.25, "two of a hundred are outliers"
    assert tokens_per_byte([(4000, 1000)] * 60 + [(4000, 1)] * 40) == 0.25, "wrong usage does not lower it"


def test_short_prompts_with_a_long_template_do_not_count() -> None:
    assert tokens_per_byte([(70, 60)] * 50 + [(4000, 1000)] * 50) == 0.25
    assert tokens_per_byte([(70, 35)] * 50) == 0.5, "there are no others"


@example_count(200, long=5000)
@hypothesis.given(
    prompts=some.lists(some.tuples(some.integers(1, 10**7), some.integers(1, 10**9)), min_size=MIN_JOBS, max_size=200)
)
def test_a_ratio_is_possible_whatever_a_provider_reports(prompts: list[tuple[int, int]]) -> None:
    ratio = tokens_per_byte(prompts)
    assert ratio is not None
    assert LEAST <= ratio <= MOST


@example_count(100, long=2000)
@hypothesis.given(sizes=some.lists(some.integers(200, 10**6), min_size=40, max_size=200), spread=some.randoms())
def test_19_of_20_prompts_have_at_most_the_estimate(sizes: list[int], spread: object) -> None:
    prompts = [(size, max(1, int(size * spread.uniform(0.15, 0.5)))) for size in sizes]  # type: ignore[attr-defined]
    ratio = tokens_per_byte(prompts)
    assert ratio is not None
    median = sorted(sizes)[len(sizes) // 2]
    larger = [prompt for prompt in prompts if prompt[0] >= median]
    assert sum(tokens <= size * ratio + 1e-6 for size, tokens in larger) >= 0.95 * len(larger)


def test_one_project_does_not_decide_for_others() -> None:
    assert shared_ratio([]) == DEFAULT_TOKENS_PER_BYTE
    assert shared_ratio([1.0]) == shared_ratio([0.1]) == DEFAULT_TOKENS_PER_BYTE
    assert shared_ratio([0.25, 1.0]) == DEFAULT_TOKENS_PER_BYTE
    assert shared_ratio([0.25, 0.26, 1.0]) == 0.26
    assert shared_ratio([0.25, 0.25]) == 0.25


def test_a_project_has_its_own_ratio() -> None:
    estimates = TokenEstimates()
    estimates.use({"m": 0.3}, {("m", 1): 0.25})
    assert estimates.tokens_per_byte("m", 1) == 0.25
    assert estimates.tokens_per_byte("m", 2) == estimates.tokens_per_byte("m") == 0.3
    for project in range(3, 3 + MAX_PROJECTS):
        estimates.tokens_per_byte("m", project)
    assert estimates.projects == list(range(3, 3 + MAX_PROJECTS)), "those that asked last"


def test_an_estimate_is_the_ratio_times_the_bytes_of_all_that_the_model_reads() -> None:
    estimates = TokenEstimates()
    text = "ä" * 500
    plain = GenerateRequest(messages=[Message(role="user", content=text)])
    assert plain.prompt_bytes == 1064, "bytes, not characters"
    assert asked(TextPart(type="text", text=text)).prompt_bytes == 1064 + 64
    assert estimates.estimate("m", plain) == 355
    estimates.use({"m": 0.5})
    assert estimates.estimate("m", plain) == 532
    assert estimates.estimate("another", plain) == 355
    assert estimates.tokens_per_byte("another") == DEFAULT_TOKENS_PER_BYTE
    tool = Tool(function=Function(name="f", description="d" * 1000, parameters={"type": "object"}))
    with_tools = plain.model_copy(update={"chat": ChatOptions(tools=[tool])})
    assert estimates.estimate("m", with_tools) >= 532 + 500


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (ImagePart(type="image", media_type="image/png", data="A" * 1_000_000), IMAGE_TOKENS),
        (ImagePart(type="image", url="https://example.com/mill.png"), IMAGE_TOKENS),
        (FilePart(type="file", media_type="application/pdf", data="A" * 80_000), 3000),
        (FilePart(type="file", media_type="text/plain", data="A" * 80_000), 20_000),
    ],
)
def test_images_and_files_are_estimated_by_themselves(part: ImagePart | FilePart, tokens: int) -> None:
    request = asked(TextPart(type="text", text="What is this?"), part)
    assert request.prompt_bytes is None, "nothing is learned from it"
    assert TokenEstimates().estimate("m", request) == pytest.approx(tokens, abs=100)
