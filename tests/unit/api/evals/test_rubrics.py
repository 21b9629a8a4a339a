"""rubrics.yaml: what it may declare, and where its errors are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.evals.reload import RubricsReload
from api.evals.rubrics import Rubric, RubricBook, RubricsError, Sampling, Scale, load_rubrics
from api.evals.sampling import is_selected
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import NotFound
from shared.domain.job import new_job_id
from tests.support.waiting import eventually

VALID = """\
rubrics:
  - name: helpful
    question: Does the answer help?
    judge: large
    prompt_version: 2
    sampling: {rate: 0.5, models: {small: 1}, projects: {internal: 0}, seed: 3}
  - name: polite
    question: Is it polite?
    scale: yes/no
    judge: large
"""


def load(folder: Path, text: str) -> dict[str, Rubric]:
    path = folder / "rubrics.yaml"
    path.write_text(text)
    return load_rubrics(path, ["large", "small"])


def test_rubrics_are_read(tmp_path: Path) -> None:
    helpful, polite = load(tmp_path, VALID).values()
    assert (str(helpful.scale), helpful.judge, helpful.prompt_version) == ("1-5", "large", "2")
    assert helpful.sampling == Sampling(rate=0.5, models={"small": 1}, projects={"internal": 0}, seed=3)
    assert (polite.scale.yes_no, polite.sampling.is_on) == (True, False)
    assert load_rubrics(None, []) == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate: 0.5", "rate: 2", "line 6: rubrics[0].sampling.rate: Input should be less than or equal to 1"),
        (
            "judge: large\n    prompt",
            "judge: huge\n    prompt",
            "line 4: rubrics[0].judge: models.yaml declares no model",
        ),
        ("scale: yes/no", "scale: 5-1", "line 9: rubrics[1].scale: must go from a lower number to a higher one"),
        ("scale: yes/no", "scale: 0-100", "line 9: rubrics[1].scale: must have at most 11 points, got 101"),
        ("scale: yes/no", "scale: 5", "line 9: rubrics[1].scale: must be yes/no, or a range"),
        ("name: polite", "name: helpful", "line 7: rubrics[1].name: 'helpful' is declared twice"),
        ("name: polite", "name: Polite!", "line 7: rubrics[1].name: String should match pattern"),
        ("    question: Is it polite?\n", "", "line 7: rubrics[1].question: this field is required"),
        ("seed: 3", "seeds: 3", "line 6: rubrics[0].sampling.seeds: unknown field"),
        ("    judge: large\n    prompt", "    judge: large\n    judge: small\n    prompt", "is already set in line 4"),
    ],
)
def test_errors_name_their_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(RubricsError) as caught:
        load(tmp_path, VALID.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_missing_file_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(RubricsError, match="HEADRACE_RUBRICS"):
        load_rubrics(tmp_path / "missing.yaml", [])


@pytest.mark.parametrize(
    ("scale", "value", "score"),
    [
        ("1-5", 1, 1), ("1-5", 5.0, 5), ("1-5", " 3 ", 3), ("1-5", 0, None), ("1-5", 6, None), ("1-5", 2.5, None),
        ("1-5", True, None), ("1-5", "good", None), ("1-5", None, None), ("1-5", float("nan"), None),
        ("1-5", float("inf"), None), ("yes/no", "Yes", 1), ("yes/no", "no ", 0), ("yes/no", True, 1),
        ("yes/no", False, 0), ("yes/no", 1, 1), ("yes/no", 2, None), ("yes/no", "maybe", None), ("yes/no", [], None),
    ],
)  # fmt: skip
def test_scores_of_scales(scale: str, value: object, score: int | None) -> None:
    assert Scale.parse(scale).score(value) == score


def test_the_identity_changes_with_what_judges_are_asked() -> None:
    rubric = Rubric(name="helpful", question="Does it help?", judge="large")
    for change in ({"question": "Is it short?"}, {"judge": "small"}, {"prompt_version": "2"}, {"scale": Scale(0, 10)}):
        assert rubric.model_copy(update=change).identity() != rubric.identity()
    assert rubric.model_copy(update={"sampling": Sampling(rate=1)}).identity() == rubric.identity()


@given(rate=st.floats(0, 1), model=st.floats(0, 1), project=st.floats(0, 1))
def test_the_lowest_of_several_rates_applies(rate: float, model: float, project: float) -> None:
    sampling = Sampling(rate=rate, models={"m": model}, projects={"p": project})
    assert sampling.rate_of("other", "other") == rate
    assert (sampling.rate_of("m", "other"), sampling.rate_of("other", "p")) == (model, project)
    assert sampling.rate_of("m", "p") == min(model, project)
    assert sampling.rate_of("other", None) == rate


def sampled(rate: float, seed: int = 0) -> Rubric:
    return Rubric(name="r", question="?", judge="j", sampling=Sampling(rate=rate, seed=seed))


def test_sampling_is_deterministic_and_about_its_rate() -> None:
    jobs = [new_job_id() for _ in range(4000)]
    chosen = {job for job in jobs if is_selected(sampled(0.25), job, "m", "p")}
    assert chosen == {job for job in reversed(jobs) if is_selected(sampled(0.25), job, "m", "p")}
    assert 850 < len(chosen) < 1150, "0.25 of 4000, within 5 standard deviations"
    assert chosen < {job for job in jobs if is_selected(sampled(0.5), job, "m", "p")}, "a higher rate adds answers"
    assert chosen != {job for job in jobs if is_selected(sampled(0.25, seed=1), job, "m", "p")}
    assert not any(is_selected(sampled(0), job, "m", "p") for job in jobs)
    assert all(is_selected(sampled(1), job, "m", "p") for job in jobs)


def test_the_sample_is_the_same_in_every_process_and_version() -> None:
    """The numbers are fixed: a process that computes others selects another sample."""
    rubric = sampled(0.5)
    jobs = [f"job_{number}" for number in range(16)]
    assert [number for number, job in enumerate(jobs) if is_selected(rubric, job, "m", "p")] == [0, 2, 4, 5, 8, 10]


def test_a_comparison_without_a_rubric_needs_a_judge() -> None:
    book = RubricBook({})
    assert book.for_comparison(None, None) is None
    found = book.for_comparison(None, "large")
    assert found is not None
    assert (found.name, found.judge) == ("better", "large")
    assert book.for_comparison("better", "large") == found
    with pytest.raises(NotFound, match="HEADRACE_RUBRICS"):
        book.for_comparison("helpful", "large")


async def test_an_invalid_file_leaves_the_rubrics_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rubrics.yaml"
    path.write_text(VALID)
    models = {name: SimulatedModel.model_validate({"name": name, "engine": "simulated"}) for name in ("large", "small")}
    book = RubricBook({})
    reload = RubricsReload(path, book, Registry(models))
    task = asyncio.create_task(reload.run())
    reload.request()

    async def are_read() -> bool:
        return bool(book.rubrics)

    await eventually(are_read, "the rubrics are read")
    task.cancel()
    assert list(book.rubrics) == ["helpful", "polite"]
    path.write_text(VALID.replace("rate: 0.5", "rate: 7"))
    assert not await reload.reload()
    assert list(book.rubrics) == ["helpful", "polite"]
    assert "line 6: rubrics[0].sampling.rate" in caplog.text
