"""KEDA: scales from and to zero, and leaves the rest to the HPA. Also models an HPA without KEDA.

Based on https://keda.sh/docs/latest/reference/scaledobject-spec/ and .../concepts/scaling-deployments/ ("Activating and
Scaling thresholds"). Every `pollingInterval` the operator checks whether the trigger is active (its value is above the
activation threshold). Active at zero, it scales to `minReplicaCount` or one; inactive for `cooldownPeriod`, to zero or
`idleReplicaCount`. In between the HPA decides, and queries KEDA for the value.
"""

from __future__ import annotations

from benchmarks.autoscale.hpa import SYNC_S, Hpa
from benchmarks.autoscale.policy import Policy


class Autoscaler:
    """The autoscaler of one deployment. It may be called at any rate; it acts only when a poll or sync is due."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._hpa = Hpa(policy)
        self._next_sync = 0.0
        self._next_poll = 0.0
        self._active_at = 0.0

    def replicas(self, now: float, value: float, replicas: int) -> int:
        """Return the wanted replicas, given the metric value and the current replicas."""
        if self._policy.keda and now >= self._next_poll:
            self._next_poll = now + self._policy.polling_s
            replicas = self._poll(now, value, replicas)
        if now >= self._next_sync:
            self._next_sync = now + SYNC_S
            if not self._is_idle(replicas):
                replicas = self._hpa.sync(now, value, replicas)
        return replicas

    def _poll(self, now: float, value: float, replicas: int) -> int:
        policy = self._policy
        idle = policy.idle_replicas if policy.idle_replicas is not None else 0
        if value > policy.activation:
            self._active_at = now
            return max(1, policy.min_replicas) if self._is_idle(replicas) else replicas
        may_idle = policy.idle_replicas is not None or policy.min_replicas == 0
        if may_idle and replicas > idle and now - self._active_at >= policy.cooldown_s:
            return idle
        return replicas

    def _is_idle(self, replicas: int) -> bool:
        """Return whether the HPA is disabled."""
        idle = self._policy.idle_replicas
        return replicas == 0 or (self._policy.keda and idle is not None and replicas <= idle)
