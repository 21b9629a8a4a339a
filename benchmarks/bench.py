"""The context of a scenario: options, folder and collected figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from benchmarks import generator
from benchmarks.load.plan import Plan, Summary
from benchmarks.processes import Processes, machine_busy_seconds
from benchmarks.statistics import Measured, number

T = TypeVar("T")
# CPU seconds that the load generator takes to start, which its own figure leaves out.
GENERATOR_START_S = 0.4
# The share of CPU time used by other processes above which a run counts as disturbed.
OTHERS_MAX = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """Command-line options."""

    repeats: int = 5
    quick: bool = False
    device: str = "cpu"
    # Folder of the model. None: the bundled model.
    model: Path | None = None
    load_format: str = "auto"
    # Of vLLM. None: `auto` on a GPU, float32 on a CPU.
    dtype: str | None = None
    # Whether vLLM compiles the model, as it always does on a GPU.
    compiled: bool = False


class Key(NamedTuple):
    """Identifies a figure."""

    scenario: str
    system: str
    name: str


@dataclass(slots=True)
class Figures:
    """All figures, in the order of their first value."""

    values: dict[Key, list[float]] = field(default_factory=dict)
    units: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, value: float, unit: str) -> None:
        self.values.setdefault(key, []).append(value)
        self.units[key] = unit

    def get(self, key: Key) -> Measured | None:
        values = self.values.get(key)
        return Measured(tuple(values)) if values else None


@dataclass(slots=True)
class Bench:
    """The run of one scenario."""

    scenario: str
    options: Options
    folder: Path
    figures: Figures
    began: float = field(default_factory=time.monotonic)
    # Number of runs during which other processes used the CPU.
    disturbed: int = 0

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f}  {self.scenario}: {line}", flush=True)

    def add(self, system: str, name: str, value: float, unit: str) -> None:
        self.figures.add(Key(self.scenario, system, name), value, unit)
        self.say(f"{system}: {name}: {number(value)} {unit}")

    def pick(self, full: T, quick: T) -> T:
        """Return `quick` with `--quick`, otherwise `full`."""
        return quick if self.options.quick else full

    def repeats(self) -> Iterator[int]:
        return iter(range(self.options.repeats))

    def rotated(self, systems: Sequence[T], repeat: int) -> list[T]:
        """Rotate the systems at each repeat, so that none always runs first."""
        first = repeat % len(systems)
        return [*systems[first:], *systems[:first]]

    def measure(
        self, system: str, processes: Processes, plan: Plan, *, may_fail: bool = False
    ) -> tuple[Summary, dict[str, float]]:
        """Run a plan. Returns its summary and the CPU seconds used by each process; `load` is the generator."""
        began, busy_before = time.monotonic(), machine_busy_seconds()
        before = processes.cpu_seconds()
        summary = generator.run(plan, may_fail=may_fail)
        after = processes.cpu_seconds()
        busy, seconds = machine_busy_seconds() - busy_before, time.monotonic() - began
        used = {name: after[name] - before.get(name, 0.0) for name in after} | {"load": summary.cpu_s}
        others = max(0.0, busy - sum(used.values()) - GENERATOR_START_S)
        if summary.failed:
            self.say(f"{system}: {summary.failed} requests failed; the first: {summary.first_failure}")
        if others > OTHERS_MAX * seconds * (psutil.cpu_count() or 1):
            self.disturbed += 1
            self.say(f"{system}: other processes used {others:.1f} CPU seconds in {seconds:.1f} s")
        return summary, used

    def add_cpu(self, system: str, name: str, used: dict[str, float], count: int) -> None:
        """Add CPU milliseconds per job or token: the system's total, then each process, including the generator."""
        if not count:
            return
        total = sum(seconds for process, seconds in used.items() if process != "load")
        self.figures.add(Key(self.scenario, system, name), 1000 * total / count, "ms")
        for process, seconds in used.items():
            self.figures.add(Key(self.scenario, system, f"{name}: {process}"), 1000 * seconds / count, "ms")
        parts = ", ".join(f"{process} {1000 * seconds / count:.3f}" for process, seconds in used.items())
        self.say(f"{system}: {name}: {1000 * total / count:.3f} ms ({parts})")
