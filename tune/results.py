"""The results: a file with one JSON object a line, so that a run can be ended at any time and continued later."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

# Raised when what is measured changes: results of another number are measured again.
MEASUREMENT = 1
# The step after the last measurement.
DONE = "done"


@dataclass
class Figures:
    """What was measured of a candidate; None is what was not.

    Times in seconds, sizes in bytes, speeds in tokens per second. `speed` and `first_token` (median) by the number of
    streams at the same time. `first_token` of one stream is that of an otherwise idle engine. `cold`, `cached` and
    `warmed`: the first token after a long prefix that is new, was in the prompt before, or was computed in advance.
    """

    load: float | None = None
    speed: dict[int, float] = field(default_factory=dict)
    first_token: dict[int, float] = field(default_factory=dict)
    memory: int | None = None
    gpu_memory: int | None = None
    perplexity: float | None = None
    answers: list[list[int]] = field(default_factory=list)
    cold: float | None = None
    cached: float | None = None
    warmed: float | None = None
    repetitive: float | None = None
    plain: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Figures:
        """Read figures from JSON, whose keys are strings. Unknown names are ignored."""
        known = {name.name for name in fields(cls)}
        found = cls(**{name: value for name, value in values.items() if name in known})
        found.speed = {int(streams): value for streams, value in found.speed.items()}
        found.first_token = {int(streams): value for streams, value in found.first_token.items()}
        return found


@dataclass
class Row:
    """A candidate and its figures. `problem`: why it could not be measured, or not completely."""

    key: str
    name: str
    group: str
    changes: dict[str, Any]
    figures: Figures = field(default_factory=Figures)
    problem: str | None = None
    seconds: float = 0.0


def key_of(entry: Mapping[str, Any], weights: str, machine: Mapping[str, str], plan: Any) -> str:
    """Identifies a measurement: the same key means that it need not be repeated."""
    content = [MEASUREMENT, entry, weights, machine, asdict(plan)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_key(source: str) -> str:
    """Identifies the weights: a hub id, or the sizes and times of the files in a folder."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
    return json.dumps([str(folder), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]])


class Store:
    """The file of results. A later line for a key replaces an earlier one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, Row] = {}
        try:
            lines = file.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                values = json.loads(line)
                row = Row(**{**values, "figures": Figures.of(values["figures"])})
            except (ValueError, TypeError, KeyError):  # cut off by the end of a run, or of another version
                continue
            self.rows[row.key] = row

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as output:
            # A run that was killed may have left a part of a line, which would spoil this one.
            separator = b"\n" if _ends_within_a_line(output) else b""
            output.write(separator + json.dumps(asdict(row)).encode() + b"\n")


def _ends_within_a_line(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float | None:
    """The share of the reference's tokens before each answer differs for the first time; None without answers."""
    if not answers or len(answers) != len(reference):
        return None
    equal = total = 0
    for answer, expected in zip(answers, reference, strict=True):
        total += len(expected)
        for ours, theirs in zip(answer, expected, strict=False):
            if ours != theirs:
                break
            equal += 1
    return equal / total if total else None


def perplexity(logprobs: Iterable[float]) -> float:
    """The perplexity of tokens with these log probabilities."""
    values = list(logprobs)
    return math.exp(-sum(values) / len(values))
