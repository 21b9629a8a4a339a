"""Labelled requests for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo")
TOPICS = ("inflation", "recursion", "democracy", "entropy", "evolution")


def labelled() -> list[dict[str, Any]]:
    """Requests about cities, which are simple, and about topics, which are not. No indicator tells the kinds apart."""
    simple = [
        *(f"What is the population of {city}?" for city in CITIES),
        *(f"Who is the mayor of {city}?" for city in CITIES),
    ]
    hard = [
        *(f"How does {topic} follow from {other} in theory?" for topic in TOPICS for other in TOPICS),
        *(f"Which assumptions about {topic} are wrong?" for topic in TOPICS),
    ]
    return [
        *({"prompt": text, "label": "simple"} for text in simple),
        {"prompt": simple[0], "label": 0.9},
        *({"messages": [{"role": "user", "content": text}], "label": "complex"} for text in hard),
    ]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a file with one object per line."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
