"""On a CPU: requests of batches give way, for a step, to a prompt that somebody waits for.

On a CPU a step takes as long as all its tokens together: a prompt that shares it with the next tokens of 64 batch
requests waits for those too. vLLM takes a scheduler by its import path (`scheduler_cls`), so here is its own, which
leaves batch requests out of such a step, by the means with which vLLM itself leaves requests out of steps. They keep
their places and their KV blocks. `docs/benchmarks.md` says what it brings. Elsewhere vLLM's own is used.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from shared.domain.priorities import is_batch


class YieldingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler. Batches give way in no two steps in a row: they are slowed down, never stopped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._gave_way_in = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """What to compute next."""
        if self.current_step != self._gave_way_in and self._somebody_waits():
            self._gave_way_in = coming = self.current_step + 1
            for request in self.running:
                if is_batch(request.priority):
                    request.next_decode_eligible_step = coming + 1
        return super().schedule(throttle_prefills)

    def _somebody_waits(self) -> bool:
        """Whether a prompt that is no batch's is to be computed, whole or the rest of it."""
        if self.waiting and not is_batch(self.waiting.peek_request().priority):
            return True
        return any(request.is_prefill_chunk and not is_batch(request.priority) for request in self.running)


def scheduler_options() -> dict[str, Any]:
    """What to add to a model's engine options; nothing where vLLM's own scheduler serves as well."""
    if not current_platform.is_cpu():
        return {}
    return {"scheduler_cls": f"{YieldingScheduler.__module__}.{YieldingScheduler.__qualname__}"}
