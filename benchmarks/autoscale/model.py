"""A discrete-event simulation of a fleet, which takes about a second per day. `real.py` validates it."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.autoscale.course import Course
from benchmarks.autoscale.keda import Autoscaler
from benchmarks.autoscale.load import Arrival, Service
from benchmarks.autoscale.policy import Policy

TICK_S = 5.0
LOOK_S = 5.0
# The scrape interval of Prometheus, and so the maximum age of the autoscaler's metric.
SCRAPE_S = 15.0


@dataclass(slots=True, eq=False)
class _Job:
    submitted: float
    left_s: float
    begun: float = 0.0
    waited: bool = False
    # The number of the run. End events of earlier runs, which were handed back, are ignored.
    run: int = 0


@dataclass(slots=True, eq=False)
class _Pod:
    created: float
    ready: bool = False
    draining: bool = False
    jobs: set[_Job] = field(default_factory=set)


class Fleet:
    """Pods, queue and pending events. A draining pod takes no jobs; those it cannot finish go first in the queue."""

    def __init__(self, arrivals: Sequence[Arrival], service: Service, seed: int = 0) -> None:
        self._service = service
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, str, object]] = []
        self._count = 0
        self._queue: deque[_Job] = deque()
        self._pods: list[_Pod] = []
        self.course = Course(LOOK_S)
        for arrival in arrivals:
            self._schedule(arrival.at, "arrive", _Job(arrival.at, service.seconds(arrival.tokens)))

    def run(self, scaler: Autoscaler | None, until: float, replicas: int = 0) -> Course:
        """Run the simulation with an autoscaler, or with a fixed number of pods that are ready at the start."""
        for _ in range(replicas):
            pod = _Pod(0.0, ready=True)
            self._pods.append(pod)
        value = 0.0
        now, next_scrape, next_sample = 0.0, 0.0, 0.0
        while now < until:
            self._process_events(now)
            if now >= next_scrape:
                next_scrape += SCRAPE_S
                value = (len(self._queue) + self._running) / self._service.slots
            if scaler is not None:
                held = [pod for pod in self._pods if not pod.draining]
                self._scale(now, held, scaler.replicas(now, value, len(held)))
            if now >= next_sample:
                next_sample += LOOK_S
                ready = sum(pod.ready and not pod.draining for pod in self._pods)
                self.course.sample(len(self._queue), self._running, len(self._pods), ready)
            now += TICK_S
        self._process_events(until)
        for pod in self._pods:
            self.course.pod_seconds += until - pod.created
        for job in self._queue:
            self._record_wait(job, until)  # still waiting: count the wait so far
        return self.course

    @property
    def _running(self) -> int:
        return sum(len(pod.jobs) for pod in self._pods)

    def _schedule(self, time: float, what: str, item: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, what, item))

    def _process_events(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            now, _, what, item = heapq.heappop(self._events)
            match what, item:
                case "arrive", _Job() as job:
                    self._queue.append(job)
                case "ready", _Pod() as pod:
                    if pod in self._pods:
                        pod.ready = True
                case "end", (_Pod() as pod, _Job() as job, int(run)):
                    if job in pod.jobs and job.run == run:
                        pod.jobs.discard(job)
                        if pod.draining and not pod.jobs:
                            self._remove(now, pod)
                case "kill", _Pod() as pod:
                    if pod in self._pods:
                        self._hand_back(now, pod)
                        self._remove(now, pod)
            self._dispatch(now)

    def _dispatch(self, now: float) -> None:
        while self._queue:
            free = [pod for pod in self._pods if pod.ready and not pod.draining and len(pod.jobs) < self._service.slots]
            if not free:
                return
            pod = self._random.choice(free)
            job = self._queue.popleft()
            job.begun, job.run = now, job.run + 1
            self._record_wait(job, now)
            pod.jobs.add(job)
            self._schedule(now + job.left_s, "end", (pod, job, job.run))

    def _record_wait(self, job: _Job, now: float) -> None:
        if not job.waited:
            job.waited = True
            self.course.waits.append(now - job.submitted)
            self.course.submitted.append(job.submitted)

    def _scale(self, now: float, held: list[_Pod], wanted: int) -> None:
        for _ in range(wanted - len(held)):
            pod = _Pod(now)
            self._pods.append(pod)
            self._schedule(now + self._service.cold_start_s, "ready", pod)
        # Like a ReplicaSet, remove pods that are not ready first, then the newest.
        spare = sorted(held, key=lambda pod: (pod.ready, -pod.created))
        for pod in spare[: max(0, len(held) - wanted)]:
            pod.draining = True
            if pod.jobs:
                self._schedule(now + self._service.drain_s, "kill", pod)
            else:
                self._remove(now, pod)

    def _hand_back(self, now: float, pod: _Pod) -> None:
        for job in sorted(pod.jobs, key=lambda job: job.submitted, reverse=True):
            job.left_s -= now - job.begun
            self._queue.appendleft(job)
            self.course.handed_back += 1
        pod.jobs.clear()

    def _remove(self, now: float, pod: _Pod) -> None:
        self.course.pod_seconds += now - pod.created
        self._pods.remove(pod)


def play(arrivals: Sequence[Arrival], service: Service, policy: Policy, until: float) -> Course:
    """Simulate a day with an autoscaler, starting with its minimum of replicas."""
    return Fleet(arrivals, service).run(Autoscaler(policy), until, policy.min_replicas)


def fixed(arrivals: Sequence[Arrival], service: Service, replicas: int, until: float) -> Course:
    """Simulate a day with a fixed number of workers."""
    return Fleet(arrivals, service).run(None, until, replicas)
