"""Large bodies are parsed like small ones; those that are expensive to handle are rejected early."""

from __future__ import annotations

import json

import pytest

from api.http.json_body import MAX_CONTAINERS, loads
from shared.domain.errors import InvalidRequest

LARGE = "x" * 40_000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_large_bodies_may_have_any_encoding_of_json(encoding: str) -> None:
    value = {"text": LARGE, "list": ["é"] * 10_000}
    assert loads(json.dumps(value, ensure_ascii=False).encode(encoding)) == value


def test_unpaired_surrogates_are_left_to_validation() -> None:
    assert loads(json.dumps([LARGE, "\ud800"]).encode()) == [LARGE, "\ud800"]


def test_too_many_objects_and_lists_are_rejected() -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_CONTAINERS} objects and lists"):
        loads(b"[" + b"{}," * MAX_CONTAINERS + b"{}]")


def test_brackets_in_strings_do_not_count() -> None:
    text = '[{"' * MAX_CONTAINERS
    assert loads(json.dumps([text]).encode()) == [text]


def test_an_object_with_too_many_members_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="An object has 5000 members"):
        loads(json.dumps({"a": {f"name{number}": 1 for number in range(5000)}}).encode())
