"""A day of jobs: quiet at night, busy during the day, with bursts and many jobs submitted at once."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job: submit time in seconds from midnight, and number of tokens."""

    at: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Service:
    """A scaled-down worker: few slots and slow tokens, so that real workers can run it faster than real time."""

    slots: int = 8
    first_token_s: float = 0.5
    token_s: float = 0.5
    tokens_mean: float = 39.0
    tokens_max: int = 240
    cold_start_s: float = 90.0
    drain_s: float = 120.0

    def seconds(self, tokens: int) -> float:
        """Return the run time of a job."""
        return self.first_token_s + (tokens - 1) * self.token_s

    @property
    def jobs_a_second(self) -> float:
        """Throughput of one full worker."""
        return self.slots / self.seconds(round(self.tokens_mean))


@dataclass(frozen=True, slots=True)
class Burst:
    """A temporary increase of the rate, in jobs per second."""

    start: float
    length: float
    rate: float


def day(seed: int, service: Service) -> list[Arrival]:
    """Generate a day's jobs. Noon needs four full workers; each burst needs 1.5 to 3.5 more."""
    random_ = random.Random(seed)
    worker = service.jobs_a_second
    bursts = [
        Burst(random_.uniform(7, 22) * HOUR, random_.uniform(180, 900), random_.uniform(1.5, 3.5) * worker)
        for _ in range(10)
    ]
    # 600 jobs in ten seconds, between 2:00 and 3:00 and between 15:00 and 16:00.
    bursts += [Burst(hour * HOUR + random_.uniform(0, HOUR), 10, 60) for hour in (2, 15)]

    def rate(now: float) -> float:
        of_day: float = max(0.0, math.sin((now / DAY - 0.27) * 2 * math.pi)) ** 1.3
        hour = now / HOUR
        quiet = 0.0 if 3.2 < hour < 5.2 else 0.04 * worker
        return (
            quiet
            + 4.0 * worker * of_day
            + sum(burst.rate for burst in bursts if burst.start <= now < burst.start + burst.length)
        )

    arrivals: list[Arrival] = []
    step = 5.0
    now = 0.0
    while now < DAY:
        expected = rate(now + step / 2) * step
        times = sorted(random_.uniform(now, now + step) for _ in range(_poisson(random_, expected)))
        arrivals += [Arrival(at, tokens(random_, service)) for at in times]
        now += step
    return arrivals


def tokens(random_: random.Random, service: Service) -> int:
    """Draw a number of tokens: lognormal, with a standard deviation equal to the mean."""
    sigma = math.sqrt(math.log(2))
    drawn = random_.lognormvariate(math.log(service.tokens_mean) - sigma * sigma / 2, sigma)
    return max(1, min(service.tokens_max, round(drawn)))


def _poisson(random_: random.Random, mean: float) -> int:
    """Draw from a Poisson distribution with Knuth's algorithm, in pieces that do not underflow."""
    count = 0
    while mean > 0:
        piece = min(mean, 30.0)
        mean -= piece
        limit, product = math.exp(-piece), random_.random()
        while product > limit:
            count += 1
            product *= random_.random()
    return count


def between(arrivals: list[Arrival], start: float, end: float) -> list[Arrival]:
    """Return the jobs of a part of the day, with times relative to `start`."""
    return [Arrival(item.at - start, item.tokens) for item in arrivals if start <= item.at < end]
