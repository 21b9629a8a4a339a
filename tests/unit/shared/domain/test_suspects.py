"""Who is charged with the death of an engine, and who becomes a suspect."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shared.domain.suspects import LATE_FACTOR, Verdict, judge

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Ran:
    job_id: str
    suspect: bool = False
    exposures: int = 0


CHARGED, SUSPECT, INNOCENT = Verdict(True, True), Verdict(False, True), Verdict(False, False)


@pytest.mark.parametrize(
    ("ran", "silent", "expected"),
    [
        ([Ran("a")], "a", {"a": CHARGED}),
        ([Ran("a"), Ran("b"), Ran("c")], "b", {"a": INNOCENT, "b": CHARGED, "c": INNOCENT}),
        ([Ran("a"), Ran("b"), Ran("c")], "bc", {"a": INNOCENT, "b": SUSPECT, "c": SUSPECT}),
        ([Ran("a"), Ran("b")], "", {"a": INNOCENT, "b": INNOCENT}),
        ([Ran("a")], "", {"a": Verdict(charged=True, suspect=False)}),
        ([Ran("a", suspect=True), Ran("b")], "ab", {"a": CHARGED, "b": SUSPECT}),
        ([Ran("a", suspect=True), Ran("b")], "b", {"a": CHARGED, "b": SUSPECT}),
        ([Ran("a", suspect=True), Ran("b", suspect=True)], "ab", {"a": CHARGED, "b": CHARGED}),
        ([Ran("a", exposures=8), Ran("b", exposures=7)], "", {"a": SUSPECT, "b": INNOCENT}),
        ([], "", {}),
    ],
    ids=[
        "a silent job alone",
        "one silent job among others",
        "several silent jobs",
        "no silent job",
        "a job alone, with tokens",
        "a suspect beside a silent job",
        "a suspect that has tokens",
        "suspects that ran together",
        "a job that was there at many deaths",
        "an idle engine",
    ],
)
def test_the_verdicts(ran: list[Ran], silent: str, expected: dict[str, Verdict]) -> None:
    assert judge(ran, silent, MAX_ATTEMPTS) == expected


@pytest.mark.parametrize("together", [False, True])
def test_a_job_that_kills_every_engine_dies_a_bounded_number_of_times(together: bool) -> None:
    """Whether or not workers isolate suspects, and wherever the job kills."""
    for kills_silently in (True, False):
        deaths = exposures = total = 0
        suspect = False
        while deaths < MAX_ATTEMPTS:
            total += 1
            ran = [Ran("killer", suspect, exposures)]
            if together or not suspect:
                ran.append(Ran("new"))
            verdict = judge(ran, "killer" if kills_silently else "", MAX_ATTEMPTS)["killer"]
            deaths, exposures = deaths + verdict.charged, exposures + (not verdict.charged)
            suspect = verdict.suspect
            assert total <= (1 + LATE_FACTOR) * MAX_ATTEMPTS
