"""What the death of an engine means for the jobs that were in it, claimed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shared.domain.suspects import Verdict, judge
from workers.execution.attempts.attempt import JobAttempt
from workers.execution.attempts.early_start import EarlyStart


class EngineDeaths:
    """Judges the deaths of one worker's engine."""

    def __init__(self, attempts: Callable[[], Iterable[JobAttempt]], max_attempts: int) -> None:
        """`attempts` returns those that run."""
        self._attempts = attempts
        self._max_attempts = max_attempts
        # Those that no attempt has adopted. One that the engine died with stays until that death is judged: its claim
        # may fail before another job reports the death.
        self._early: set[EarlyStart] = set()

    def started_early(self, early: EarlyStart) -> None:
        """The engine may get this job's request before its claim is committed."""
        self._early.add(early)

    def adopted(self, early: EarlyStart) -> None:
        """An attempt runs the job now."""
        self._early.discard(early)

    async def discard(self, early: EarlyStart) -> None:
        """Abort an early start, unless an attempt has adopted it."""
        await early.discard()
        if early.verdict is not None or not early.died:
            self._early.discard(early)

    def judge(self, attempt: JobAttempt) -> Verdict:
        """What the death of the engine means for a job. The first attempt that reports a death decides for all.

        A job whose claim is not committed may have caused it too. Its verdict applies to the attempt that adopts it.
        """
        if attempt.verdict is None:
            present: list[JobAttempt | EarlyStart] = [*self._early, *self._attempts()]
            there = [one for one in present if one.in_engine and one.engine is attempt.engine]
            ran = {one.casualty.job_id: one for one in (*there, attempt)}
            verdicts = judge(
                [one.casualty for one in ran.values()],
                [job_id for job_id, one in ran.items() if one.silent],
                self._max_attempts,
            )
            for job_id, one in ran.items():
                one.verdict = one.verdict or verdicts[job_id]
            self._early = {early for early in self._early if early.verdict is None}
            assert attempt.verdict is not None
        return attempt.verdict

    def restarted(self) -> None:
        """The engine runs again: no job will report its death any more."""
        self._early = {early for early in self._early if not early.died}
