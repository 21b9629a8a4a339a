"""The ids of answers."""

from __future__ import annotations

import pytest

from shared.domain.response import job_id_of, job_id_of_answer

DIGITS = "0192c7a8e4d17cc38f2d5b1e6a90c4f7"
JOB = f"job_{DIGITS}"


@pytest.mark.parametrize("prefix", ["resp_", "chatcmpl-", "cmpl-", "msg_"])
def test_the_answers_of_all_apis_have_the_digits_of_their_job(prefix: str) -> None:
    assert job_id_of_answer(prefix + DIGITS) == JOB


@pytest.mark.parametrize(
    "text",
    [
        JOB,
        DIGITS,
        "",
        "resp_",
        "chatcmpl-1",
        f"gen-{DIGITS}",
        f"msg_{DIGITS}_0",
        f"resp_chatcmpl-{DIGITS}",
        f"cmpl-{DIGITS}\0",
    ],
)
def test_other_texts_are_no_ids_of_answers(text: str) -> None:
    assert job_id_of_answer(text) is None


def test_only_the_responses_api_has_responses() -> None:
    assert job_id_of(f"resp_{DIGITS}") == JOB
    assert job_id_of(f"chatcmpl-{DIGITS}") is None
