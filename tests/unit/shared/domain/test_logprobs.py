"""The stored form of log probabilities: what is encoded is read back, in the form that the APIs render."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.logprobs import (
    Candidate,
    candidate,
    encode_entry,
    encode_prompt_entry,
    entry_object,
    prompt_entry_object,
)

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
TOKENS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CANDIDATES = st.builds(candidate, TOKENS, NUMBERS, st.binary(max_size=4)) | st.builds(Candidate, TOKENS, NUMBERS)


def as_object(item: Candidate) -> dict[str, Any]:
    data = item.token.encode() if item.data is None else item.data
    return {"token": item.token, "logprob": item.logprob, "bytes": list(data)}


@given(CANDIDATES, st.lists(CANDIDATES, max_size=4), st.none() | st.integers(0, 4))
def test_an_entry_is_read_back_in_the_form_of_the_apis(
    sampled: Candidate, others: list[Candidate], position: int | None
) -> None:
    if position is not None:
        others.insert(position, sampled)
    expected = {**as_object(sampled), "top": [as_object(item) for item in others]}
    assert entry_object(orjson.loads(encode_entry(sampled, others))) == expected


def test_bytes_are_stored_only_if_they_are_not_those_of_the_text() -> None:
    whole, part = candidate("Mühle", -0.5, "Mühle".encode()), candidate("\ufffd", -1.5, b"\xf0\x9f")
    assert encode_entry(whole, [whole, part]) == '[0,"Mühle",-0.5,"\ufffd",-1.5,[240,159]]'.encode()
    assert encode_entry(part, []) == '[null,"\ufffd",-1.5,[240,159]]'.encode()


def test_entries_of_the_previous_release_are_read_unchanged() -> None:
    entry = {"token": "a", "logprob": None, "bytes": [97], "top": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}
    assert entry_object(entry) is entry
    prompt = {"7": {"logprob": -1.0, "rank": 1, "decoded_token": "a"}}
    assert prompt_entry_object(prompt) is prompt
    assert prompt_entry_object(None) is None


def test_the_entries_of_a_prompt() -> None:
    assert encode_prompt_entry(None) == b"null"
    encoded = encode_prompt_entry([(7, -0.5, 1, "a"), (9, -2.0, None, None)])
    assert encoded == b'[7,-0.5,1,"a",9,-2.0,null,null]'
    assert prompt_entry_object(orjson.loads(encoded)) == {
        "7": {"logprob": -0.5, "rank": 1, "decoded_token": "a"},
        "9": {"logprob": -2.0, "rank": None, "decoded_token": None},
    }
