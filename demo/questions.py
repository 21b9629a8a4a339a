"""The mixed set of requests that the demonstration sends."""

from __future__ import annotations

from typing import Any

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_REPORT = "The mill on the river has a new wheel, and the miller has written down what each part of it cost. " * 40


def question(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat completion with one message, answered greedily."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 32, **more}


# The title of each in the terminal, and the request.
MIXED: list[tuple[str, dict[str, Any]]] = [
    (text, question(text))
    for text in (
        "What is the capital of France?",
        "Name three rivers.",
        "Translate 'good morning' into Spanish.",
        "Is 17 a prime number?",
        "Summarize the plot of Hamlet for a ten-year-old, scene by scene.",
        "Prove step by step that the square root of 2 is irrational.",
        "Write a Python function that merges two sorted lists, with tests, and explain its complexity.",
        "Compare three designs of a job queue, and analyse how each of them fails.",
    )
] + [
    ("What is the weather in Oslo?  (with a tool)", question("What is the weather in Oslo?", tools=[_WEATHER])),
    (f"What did the wheel cost? {_REPORT[:20]}...  (long)", question(f"What did the wheel cost? {_REPORT}")),
]
# Only complete answers are stored. This is a question for the large model, which is simulated and always completes.
REPEATED = question(
    "Compare three designs of a job queue, and analyse how each of them fails.", cache={"ttl": 600}, max_tokens=200
)
POPULAR = question("Describe a water mill in three sentences.", cache={"ttl": 600}, max_tokens=200)
