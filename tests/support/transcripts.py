"""What deltas add up to: the choices of a row, and the deltas of a log with their log probabilities."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import orjson

from shared.domain.events import Delta, Event, delta_event
from shared.domain.job import Choice
from shared.domain.logprobs import entry_object, prompt_entry_object
from shared.domain.transcript import Transcript, encode_output

T = TypeVar("T")


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that only gives way to other tasks."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result


def transcript_of(events: Sequence[Event], choices: int = 1, *, after: str | None = None) -> Transcript:
    return run_now(Transcript.of(events, choices, after=after))


def output_of(*choices: Choice) -> bytes:
    """The stored form of choices without log probabilities."""
    return run_now(encode_output(choices, ()))


def choices_of(deltas: Sequence[Delta], choices: int = 1) -> tuple[Choice, ...]:
    """The choices of a job's row after these deltas, with log probabilities as objects."""
    events = [delta_event(seq, delta) for seq, delta in enumerate(deltas, 1)]
    stored = orjson.loads(run_now(encode_output(transcript_of(events, choices).choices(), events)))
    return tuple(_with_objects(Choice.of(choice)) for choice in stored)


def _with_objects(choice: Choice) -> Choice:
    prompt = choice.prompt_logprobs
    return replace(
        choice,
        logprobs=None if choice.logprobs is None else [entry_object(entry) for entry in choice.logprobs],
        prompt_logprobs=None if prompt is None else [prompt_entry_object(entry) for entry in prompt],
    )


def entries_of(delta: Delta) -> list[dict[str, Any]]:
    """The log probabilities of a delta as objects."""
    return [entry_object(orjson.loads(entry)) for entry in delta.logprobs]


def logged_delta(event: Event) -> Delta:
    """The delta of an event with its log probabilities."""
    entries = event.payload().get("logprobs", ())
    return replace(event.delta(), logprobs=tuple(orjson.dumps(entry) for entry in entries))
