"""The recorded course of a run: waits, and samples of the queue and the fleet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Course:
    """One run. `waits` and `submitted` have one value per job, the other lists one per `sample_s` seconds."""

    sample_s: float
    waits: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    # When each job was submitted, in the order of `waits`.
    submitted: list[float] = field(default_factory=list)
    pod_seconds: float = 0.0
    handed_back: int = 0

    def sample(self, waiting: int, running: int, replicas: int, ready: int) -> None:
        self.waiting.append(waiting)
        self.running.append(running)
        self.replicas.append(replicas)
        self.ready.append(ready)

    @property
    def gpu_hours(self) -> float:
        return self.pod_seconds / 3600

    def wait(self, share: float) -> float:
        """Return a percentile of the waits (submit to first claim), in seconds."""
        return percentile(self.waits, share)

    def late(self, seconds: float) -> float:
        """Return the share of jobs that waited longer than `seconds`."""
        return sum(wait > seconds for wait in self.waits) / max(1, len(self.waits))

    def waits_by_window(self, window_s: float, share: float) -> list[float]:
        """Return the percentile of the waits of jobs submitted in each window; 0 for a window without jobs."""
        windows: dict[int, list[float]] = {}
        for at, wait in zip(self.submitted, self.waits, strict=True):
            windows.setdefault(int(at // window_s), []).append(wait)
        count = int(len(self.waiting) * self.sample_s / window_s)
        return [percentile(windows.get(number, [0.0]), share) for number in range(count)]


def percentile(values: list[float], share: float) -> float:
    """Return a percentile of the values, or 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
