"""What happened: waits, and second by second the queue and the fleet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Course:
    """One run. The lists beside `waits` have a value for each look, `look_s` seconds apart."""

    look_s: float
    waits: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    # By job, in the order of `waits`: when it was submitted.
    submitted: list[float] = field(default_factory=list)
    pod_seconds: float = 0.0
    handed_back: int = 0

    def look(self, waiting: int, running: int, replicas: int, ready: int) -> None:
        self.waiting.append(waiting)
        self.running.append(running)
        self.replicas.append(replicas)
        self.ready.append(ready)

    @property
    def gpu_hours(self) -> float:
        return self.pod_seconds / 3600

    def wait(self, share: float) -> float:
        """A percentile of the waits, in seconds: from submit to the first claim."""
        return percentile(self.waits, share)

    def late(self, seconds: float) -> float:
        """The share of jobs that waited for longer."""
        return sum(wait > seconds for wait in self.waits) / max(1, len(self.waits))

    def waits_by_window(self, window_s: float, share: float) -> list[float]:
        """The percentile of the jobs submitted in each window; 0 where none was."""
        windows: dict[int, list[float]] = {}
        for at, wait in zip(self.submitted, self.waits, strict=True):
            windows.setdefault(int(at // window_s), []).append(wait)
        count = int(len(self.waiting) * self.look_s / window_s)
        return [percentile(windows.get(number, [0.0]), share) for number in range(count)]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
