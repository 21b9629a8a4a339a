"""KEDA around the HPA: from zero and back to zero. An HPA alone is the same without that.

After https://keda.sh/docs/latest/reference/scaledobject-spec/ and .../concepts/scaling-deployments/ ("Activating and
Scaling thresholds"): each `pollingInterval` the operator looks whether the trigger is active (its value is above the
activation threshold); active at zero brings `minReplicaCount`, or one; inactive for `cooldownPeriod` brings it to zero
(or to `idleReplicaCount`). In between, the HPA decides, and asks KEDA for the value itself.
"""

from __future__ import annotations

from benchmarks.autoscale.hpa import SYNC_S, Hpa
from benchmarks.autoscale.policy import Policy


class Autoscaler:
    """One deployment's. Asked once a second, or as often as is convenient: it acts when it is due."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._hpa = Hpa(policy)
        self._next_sync = 0.0
        self._next_poll = 0.0
        self._active_at = 0.0

    def replicas(self, now: float, value: float, replicas: int) -> int:
        """How many there should be, with this value of the metric and so many now."""
        if self._policy.keda and now >= self._next_poll:
            self._next_poll = now + self._policy.polling_s
            replicas = self._polled(now, value, replicas)
        if now >= self._next_sync:
            self._next_sync = now + SYNC_S
            if not self._idle(replicas):
                replicas = self._hpa.sync(now, value, replicas)
        return replicas

    def _polled(self, now: float, value: float, replicas: int) -> int:
        policy = self._policy
        idle = policy.idle_replicas if policy.idle_replicas is not None else 0
        if value > policy.activation:
            self._active_at = now
            return max(1, policy.min_replicas) if self._idle(replicas) else replicas
        may_idle = policy.idle_replicas is not None or policy.min_replicas == 0
        if may_idle and replicas > idle and now - self._active_at >= policy.cooldown_s:
            return idle
        return replicas

    def _idle(self, replicas: int) -> bool:
        """The HPA is out of it."""
        idle = self._policy.idle_replicas
        return replicas == 0 or (self._policy.keda and idle is not None and replicas <= idle)
