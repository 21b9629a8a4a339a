"""Lets batch requests skip a step for an interactive prompt on a CPU.

On a CPU a step takes as long as all its tokens together: a prompt that shares a step with the next tokens of 64 batch
requests waits for those too. vLLM accepts a scheduler by import path (`scheduler_cls`). This one extends vLLM's and
leaves batch requests out of such a step with vLLM's own mechanism; they keep their place and their KV blocks.
Measurements: docs/benchmarks.md. On a GPU vLLM's scheduler is used.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from shared.domain.priorities import is_batch


class YieldingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler. Batch requests never skip two consecutive steps: they are slowed down but not stopped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._skipped_step = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Choose the requests of the next step."""
        if self.current_step != self._skipped_step and self._has_interactive_prompt():
            self._skipped_step = self.current_step + 1
            for request in self.running:
                if is_batch(request.priority):
                    request.next_decode_eligible_step = self._skipped_step + 1
        return super().schedule(throttle_prefills)

    def _has_interactive_prompt(self) -> bool:
        """Whether an interactive request's prompt, or the rest of it, has to be computed."""
        if self.waiting and not is_batch(self.waiting.peek_request().priority):
            return True
        return any(request.is_prefill_chunk and not is_batch(request.priority) for request in self.running)


def scheduler_options() -> dict[str, Any]:
    """Engine options that select this scheduler; empty if not on a CPU."""
    if not current_platform.is_cpu():
        return {}
    return {"scheduler_cls": f"{YieldingScheduler.__module__}.{YieldingScheduler.__qualname__}"}
