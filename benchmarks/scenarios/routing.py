"""CPU to judge a request's complexity, by the shipped heuristic and by a trained classifier, in this process."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from api.routing.classifier import Classifier
from api.routing.complexity import Complexity, Heuristic
from api.routing.examples import Example
from api.routing.fit import fit, write
from benchmarks.bench import Bench
from benchmarks.statistics import percentile
from shared.domain.request import GenerateRequest, Message

# Beginnings of tasks, which are labelled, and texts that follow them.
SIMPLE = ("What is the population of", "Who wrote about", "Translate into German:", "Which colour has")
COMPLEX = ("Prove a statement about", "Write a program that simulates", "Compare step by step", "Analyse the causes of")
TEXTS = (
    "the river and its bridges ",
    "мост через реку ",
    "河上的桥和船",
    "川にかかる橋",
    "جسر فوق النهر ",
    "नदी पर पुल ",
    "def cross(river): return [bridge for bridge in river];\n",
    "😀🤯🦙 ",
)
CHARACTERS = (20, 200, 2000, 20_000, 200_000)
TURNS = (1, 11, 101)


def requests(seed: int) -> Iterator[GenerateRequest]:
    """One request of each kind of text, length and conversation, in random order."""
    order = random.Random(seed)
    kinds = [(text, characters, turns) for text in TEXTS for characters in CHARACTERS for turns in TURNS]
    order.shuffle(kinds)
    for text, characters, turns in kinds:
        beginning = order.choice((*SIMPLE, *COMPLEX))
        task = f"{beginning} {(text * (characters // len(text) + 1))[:characters]}"
        earlier = [Message(role=("user", "assistant")[at % 2], content=text) for at in range(turns - 1)]
        yield GenerateRequest(messages=[*earlier, Message(role="user", content=task)])


def examples() -> list[Example]:
    """Labelled requests to train on. How good the classifier is does not change its cost."""
    return [
        Example(GenerateRequest(prompt=f"{beginning} {text} {number}"), label)
        for label, beginnings in ((0.0, SIMPLE), (1.0, COMPLEX))
        for beginning in beginnings
        for number, text in enumerate(TEXTS)
    ]


def measure(bench: Bench, name: str, complexity: Complexity, rounds: int) -> None:
    """Score each kind of request `rounds` times, and add the figures."""
    used = []
    for seed in range(rounds):
        for request in requests(seed):
            before = time.thread_time_ns()
            complexity.score(request)
            used.append((time.thread_time_ns() - before) / 1e6)
    used.sort()
    bench.add(name, "CPU per score p50", percentile(used, 0.5), "ms")
    bench.add(name, "CPU per score p99", percentile(used, 0.99), "ms")
    bench.add(name, "CPU per score, maximum", used[-1], "ms")


def run(bench: Bench) -> None:
    file, _ = fit(examples(), 0.95)
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = bench.folder / "model.json"
    write(file, path)
    rounds = bench.pick(20, 2)
    for _ in bench.repeats():
        before = time.process_time()
        classifier = Classifier.read(path)
        bench.add("classifier", "CPU to load", 1000 * (time.process_time() - before), "ms")
        measure(bench, "heuristic", Heuristic(), rounds)
        measure(bench, "classifier", classifier, rounds)
