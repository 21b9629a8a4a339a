"""The key of a cached answer: equal for equal requests of one partition, and different for all others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cache.key import WITHOUT_EFFECT, Partition, cache_key
from shared.domain.request import CacheBreakpoint, ChatOptions, GenerateRequest, Message, Sampling
from tests.support.examples import example_count

SECRET = b"s" * 32
MESSAGES = [Message(role="system", content="Be brief."), Message(role="user", content="Name a river.")]
REQUEST = GenerateRequest(messages=MESSAGES, sampling=Sampling(temperature=0, max_tokens=8))
PARTITION = Partition(1)


def key(request: GenerateRequest = REQUEST, partition: Partition = PARTITION, **changes: Any) -> bytes:
    arguments = {"secret": SECRET, "partition": partition, "model": "m", "revision": "r", "request": request}
    return cache_key(**{**arguments, **changes})


def test_equal_requests_have_one_key_of_32_bytes() -> None:
    again = GenerateRequest.model_validate_json(REQUEST.model_dump_json())
    assert key(again) == key()
    assert len(key()) == 32


def test_what_does_not_change_the_answer_is_not_in_the_key() -> None:
    changed = REQUEST.model_copy(update={"priority": 7, "cache_breakpoints": [CacheBreakpoint(message=0)]})
    assert key(changed) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [*MESSAGES, Message(role="assistant", content="A")]},
        {"messages": list(reversed(MESSAGES))},
        {"messages": None, "prompt": "Name a river."},
        {"sampling": Sampling(temperature=0, max_tokens=9)},
        {"sampling": Sampling(temperature=0, max_tokens=8, seed=0)},
        {"chat": ChatOptions(chat_template_kwargs={"a": 1})},
        {"chat": ChatOptions(chat_template_kwargs={"a": None})},
        {"logprobs": 0},
        {"echo": True},
        {"token_counts": True},
        {"extra_body": {"top_a": 1}},
        {"extra_body": {}},
    ],
    ids=str,
)
def test_everything_else_is_in_the_key(changes: dict[str, Any]) -> None:
    assert key(REQUEST.model_copy(update=changes)) != key()


def test_a_new_field_of_requests_is_in_the_key_unless_it_was_decided_otherwise() -> None:
    """Whoever adds a field that does not change the answer adds it to `WITHOUT_EFFECT`, and here."""
    # Of a job of an adapter, the key has the model's name.
    assert {"priority", "cache_breakpoints", "prompt_cache_key", "cache_salt", "adapter"} == WITHOUT_EFFECT


@pytest.mark.parametrize(
    "changes",
    [{"secret": b"t" * 32}, {"model": "m2"}, {"revision": "r2"}, {"model": "mr", "revision": ""}],
    ids=str,
)
def test_the_model_its_revision_and_the_secret_are_in_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


# Texts that could stand for parts of the encoded identity or of a request, if the encoding were ambiguous.
texts = st.text(st.sampled_from('ab"[]{},:\\1 \u00e9'), max_size=6) | st.sampled_from(
    ['"', "null", "1", "project", '1,"project",null', '{"messages":[]}', "\\u0000"]
)
partitions = st.builds(
    Partition,
    st.integers(1, 12),
    st.just("project"),
    st.none(),
) | st.builds(Partition, st.integers(1, 12), st.just("key"), st.integers(1, 12)) | st.builds(
    Partition, st.integers(1, 12), st.just("user"), texts
)  # fmt: skip
requests = st.builds(
    lambda content, temperature, echo: GenerateRequest(
        messages=[Message(role="user", content=content)], sampling=Sampling(temperature=temperature), echo=echo
    ),
    texts,
    st.sampled_from([None, 0, 0.5]),
    st.booleans(),
)
asked = st.tuples(requests, texts, texts)


@example_count(20, long=2000)
@given(st.lists(partitions, min_size=8, max_size=8), st.lists(asked, min_size=8, max_size=8))
def test_no_request_of_another_partition_has_the_key(
    tenants: list[Partition], questions: list[tuple[GenerateRequest, str, str]]
) -> None:
    """No tenant finds another's answers: neither with the same request nor with one that looks like its key.

    Each example compares the requests of eight tenants, which are some 2,000 pairs.
    """
    found: dict[bytes, Partition] = {}
    for tenant in tenants:
        for request, model, revision in questions:
            digest = key(request, tenant, model=model, revision=revision)
            assert found.setdefault(digest, tenant) == tenant
            assert key(request, replace(tenant), model=model, revision=revision) == digest
