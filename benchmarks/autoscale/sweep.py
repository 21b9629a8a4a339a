"""Compares settings: a grid of them, each simulated on several days."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.autoscale.load import DAY, Service, day
from benchmarks.autoscale.model import play
from benchmarks.autoscale.policy import Policy, Rate

# Settings that meet this p95 wait are compared by cost.
WAIT_P95_S = 30.0
LATE_S = 60.0
THRESHOLDS = (0.7, 0.8, 0.9, 1.0)
DOWN_S = (60, 120, 300, 600)
COOLDOWNS_S = (120, 300, 900, 1800)
POLLING_S = (5, 15, 30)
MIN_REPLICAS = (0, 1, 2)
UP_RATES = {
    "double or +4 per 15 s": (Rate("Percent", 100, 15), Rate("Pods", 4, 15)),
    "+1 per 60 s": (Rate("Pods", 1, 60),),
    "+2 per 60 s": (Rate("Pods", 2, 60),),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination of autoscaler settings."""

    threshold: float
    down_s: int
    cooldown_s: int
    polling_s: int = 15
    up: str = "double or +4 per 15 s"
    min_replicas: int = 0

    def __str__(self) -> str:
        return f"threshold {self.threshold:g}, scale-down window {self.down_s} s, cooldown {self.cooldown_s} s"

    def apply(self, base: Policy) -> Policy:
        return replace(
            base,
            threshold=self.threshold,
            min_replicas=self.min_replicas,
            cooldown_s=self.cooldown_s,
            polling_s=self.polling_s,
            down=replace(base.down, stabilization_s=self.down_s),
            up=replace(base.up, rates=UP_RATES[self.up]),
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A setting's averages over all days. Waits are in seconds; `late` is the share of waits over `LATE_S`."""

    setting: Setting
    gpu_hours: float
    p50: float
    p95: float
    p99: float
    late: float
    handed_back: float

    @property
    def meets_target(self) -> bool:
        return self.p95 <= WAIT_P95_S

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key: settings that meet the wait target by cost, then the others by wait."""
        return not self.meets_target, self.gpu_hours if self.meets_target else self.p95


def grid(quick: bool = False) -> list[Setting]:
    """Return all combinations of thresholds, windows and cooldowns."""
    if quick:
        return [Setting(1.0, 300, 300), Setting(0.8, 60, 120)]
    return [Setting(*values) for values in itertools.product(THRESHOLDS, DOWN_S, COOLDOWNS_S)]


def around(best: Setting) -> list[Setting]:
    """Return variations of the best setting, each with one other value changed."""
    polled = [replace(best, polling_s=value) for value in POLLING_S]
    rated = [replace(best, up=name) for name in UP_RATES]
    kept = [replace(best, min_replicas=count) for count in MIN_REPLICAS]
    return [setting for setting in dict.fromkeys((*kept, *polled, *rated)) if setting != best]


def scores(settings: Sequence[Setting], base: Policy, service: Service, seeds: Sequence[int]) -> Iterator[Score]:
    """Yield each setting's score over the days of all seeds."""
    work = [(setting, base, service, seed) for setting in settings for seed in seeds]
    with ProcessPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1)) as pool:
        results = list(pool.map(_one, work, chunksize=len(seeds)))
    for number, setting in enumerate(settings):
        yield _score(setting, results[number * len(seeds) : (number + 1) * len(seeds)])


def best(found: Iterable[Score]) -> Score:
    """Return the cheapest setting that meets the wait target, or else the one with the shortest wait."""
    return min(found, key=lambda score: score.rank)


def _one(work: tuple[Setting, Policy, Service, int]) -> tuple[float, ...]:
    setting, base, service, seed = work
    course = play(day(seed, service), service, setting.apply(base), DAY)
    return (
        course.gpu_hours,
        course.wait(0.5),
        course.wait(0.95),
        course.wait(0.99),
        course.late(LATE_S),
        float(course.handed_back),
    )


def _score(setting: Setting, days: Sequence[tuple[float, ...]]) -> Score:
    return Score(setting, *(fmean(values) for values in zip(*days, strict=True)))
