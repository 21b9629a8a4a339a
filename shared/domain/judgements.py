"""What judges do: kinds of runs, and states of judgements."""

from __future__ import annotations

from enum import StrEnum


class RunKind(StrEnum):
    """What a run judges: sampled answers of the request log, the answers of a set, or pairs of two models' answers."""

    LIVE = "live"
    SET = "set"
    PAIRWISE = "pairwise"


class JudgementState(StrEnum):
    """The states of a judgement. Only a `scored` one has a score that a judge has given."""

    PENDING = "pending"
    SCORED = "scored"
    # The judge's answer is not one that the rubric allows.
    UNPARSABLE = "unparsable"
    # The judge gave no answer.
    FAILED = "failed"
    # A model has not answered the item of a set, so there was nothing to judge. Of a pair, the score is the one that it
    # would have if the answer that there is were better.
    UNANSWERED = "unanswered"
    # The item of a set was a request whose data was erased, or which was deleted before it was judged. It counts for
    # nothing. The column has `failed`, which earlier versions can read, and `erased_at` says what it is.
    ERASED = "erased"
