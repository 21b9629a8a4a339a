"""The decisions of Kubernetes' HPA controller at each sync.

Based on https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ (algorithm, default and
configurable behavior), and `pkg/controller/podautoscaler/{horizontal,replica_calculator}.go`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from benchmarks.autoscale.policy import Direction, Policy, Rate

SYNC_S = 15
TOLERANCE = 0.1


def wanted(value: float, threshold: float, replicas: int) -> int:
    """Return the replicas for a metric value of `threshold` per pod; unchanged within the tolerance.

    Corresponds to `GetExternalPerPodMetricReplicas`: an external metric with an average value, as KEDA creates.
    """
    if replicas and 1 - TOLERANCE <= value / (threshold * replicas) <= 1 + TOLERANCE:
        return replicas
    return math.ceil(value / threshold - 1e-9)


class Hpa:
    """One HPA, with its history of recommendations and scaling events."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._min = max(1, policy.min_replicas)
        self._recommended: list[tuple[float, int]] = []
        self._added: list[tuple[float, int]] = []
        self._removed: list[tuple[float, int]] = []

    def sync(self, now: float, value: float, replicas: int) -> int:
        """Return the new number of replicas. At 0 the HPA is disabled; only KEDA starts the first one."""
        if replicas == 0:
            return 0
        desired = self._stabilized(now, wanted(value, self._policy.threshold, replicas), replicas)
        desired = self._limited(now, desired, replicas)
        if desired > replicas:
            self._added.append((now, desired - replicas))
        elif desired < replicas:
            self._removed.append((now, replicas - desired))
        return desired

    def _stabilized(self, now: float, desired: int, replicas: int) -> int:
        """Scale up to the lowest recommendation of the up window, down to the highest of the down window."""
        up_s, down_s = self._policy.up.stabilization_s, self._policy.down.stabilization_s
        up = min([desired, *(count for at, count in self._recommended if at > now - up_s)])
        down = max([desired, *(count for at, count in self._recommended if at > now - down_s)])
        oldest = now - max(up_s, down_s)
        self._recommended = [*(item for item in self._recommended if item[0] > oldest), (now, desired)]
        return min(max(replicas, up), down)

    def _limited(self, now: float, desired: int, replicas: int) -> int:
        """Limit by the scaling rates and by the minimum and maximum of replicas."""
        if desired > replicas:
            limit = max(replicas, self._up_limit(now, replicas))
            return min(desired, limit, self._policy.max_replicas)
        if desired < replicas:
            limit = min(replicas, self._down_limit(now, replicas))
            return max(desired, limit, self._min)
        return min(max(desired, self._min), self._policy.max_replicas)

    def _up_limit(self, now: float, replicas: int) -> int:
        rules = self._policy.up
        limits = [
            start + rate.value if rate.kind == "Pods" else math.ceil(start * (1 + rate.value / 100))
            for rate, start in self._starts(rules, now, replicas)
        ]
        return self._select(rules, limits, replicas, most_change=max)

    def _down_limit(self, now: float, replicas: int) -> int:
        rules = self._policy.down
        limits = [
            start - rate.value if rate.kind == "Pods" else int(start * (1 - rate.value / 100))
            for rate, start in self._starts(rules, now, replicas)
        ]
        return self._select(rules, limits, replicas, most_change=min)

    def _starts(self, rules: Direction, now: float, replicas: int) -> Iterator[tuple[Rate, int]]:
        for rate in rules.rates:
            since = now - rate.period_s
            added = sum(count for at, count in self._added if at > since)
            removed = sum(count for at, count in self._removed if at > since)
            yield rate, replicas - added + removed

    @staticmethod
    def _select(rules: Direction, limits: list[int], replicas: int, *, most_change: Callable[[list[int]], int]) -> int:
        if rules.select == "Disabled" or not limits:
            return replicas
        return most_change(limits) if rules.select == "Max" else (min if most_change is max else max)(limits)
