"""Details of the reasoning that come in fragments."""

from __future__ import annotations

from typing import Any

import pytest

from workers.engines.upstream.chat.opaque import OpaqueReader


@pytest.mark.parametrize(
    ("fragments", "details"),
    [
        (
            [{"text": "a", "signature": None}, {"signature": "AB"}, {"signature": "CD"}],
            [{"text": "a", "signature": "ABCD"}],
        ),
        ([{"text": "a", "signature": "AB"}, {"text": "b", "signature": "AB"}], [{"text": "ab", "signature": "AB"}]),
        ([{"data": "A", "id": "1"}, {"data": "B"}, {"data": "C", "id": "1"}], [{"data": "ABC", "id": "1"}]),
        (
            [{"data": "A", "id": "1"}, {"data": "B", "id": "2"}, {"data": "C"}],
            [{"data": "A", "id": "1"}, {"data": "BC", "id": "2"}],
        ),
        ([{"text": "a", "id": "1"}, {"text": "b", "id": "2"}], [{"text": "ab", "id": "2"}]),
    ],
)
def test_fragments_are_joined(fragments: list[dict[str, Any]], details: list[dict[str, Any]]) -> None:
    """Those of an encrypted detail with another id are another detail."""
    reader = OpaqueReader("openrouter", "reasoning_details")
    for fragment in fragments:
        assert reader.add({"reasoning_details": [{"type": "x", "index": 0, **fragment}]}) == []
    (part,) = reader.close()
    assert part.data == {"reasoning_details": [{"type": "x", "index": 0, **detail} for detail in details]}
