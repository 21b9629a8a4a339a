"""A run measures what is missing, keeps what it has, and reports what failed."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.errors import LaunchError
from launcher.progress import Progress
from shared.config.models.vllm import VllmModel
from tests.unit.launcher.test_quantize import model as small_model
from tests.unit.tune.rows import MODEL, row
from tune import campaign as campaign_module
from tune import machine
from tune.__main__ import DOCUMENT
from tune.campaign import Campaign
from tune.proposal import Aim, Bounds
from tune.report import BEGIN, END, write, write_document
from tune.results import Figures
from tune.workload import QUICK, Plan


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "description", lambda: {"CPU": "test"})
    monkeypatch.setattr(machine, "gpus", list)


class Engines:
    """Returns recorded figures, better with another dtype and speculation; `fails`: an option that does not work."""

    def __init__(self) -> None:
        self.measured: list[dict[str, Any]] = []
        self.limits: list[float] = []
        self.gain_of_bfloat16 = 100
        self.interrupt_after: int | None = None
        self.fails = "nothing"

    def __call__(
        self, entry: Mapping[str, Any], plan: Plan, log: Path, limit: float, step: Callable[[str], None]
    ) -> tuple[Figures, str | None]:
        if len(self.measured) == self.interrupt_after:
            raise KeyboardInterrupt
        step("loads")
        self.measured.append(dict(entry["options"]))
        self.limits.append(limit)
        if self.fails in entry["options"]:
            return Figures(), "no kernel"
        options = entry["options"]
        speed = 400 + self.gain_of_bfloat16 * (options.get("dtype") == "bfloat16")
        speed += 50 * ("speculative_config" in options)
        return row("", "", busy=speed).figures, None


def campaign(folder: Path, engines: Engines, model: VllmModel = MODEL, *, limit: float | None = 60) -> Campaign:
    progress = Progress(io.StringIO())
    return Campaign(model, folder, QUICK, Aim.THROUGHPUT, Bounds(), limit=limit, progress=progress, measure=engines)


def test_measures_each_candidate_and_the_best_together(tmp_path: Path) -> None:
    engines = Engines()
    run = campaign(tmp_path, engines)
    run.run(quick=True)
    assert [found.name for found in run.rows] == [
        "baseline",
        "bfloat16",
        "INT8",
        "4 bits",
        "n-gram speculation, by load",
        "bfloat16 + n-gram speculation, by load",
    ]
    assert engines.measured[-1]["dtype"] == "bfloat16"
    assert "speculative_config" in engines.measured[-1]
    problems = {found.name: found.problem for found in run.rows if found.problem}
    assert list(problems) == ["INT8", "4 bits"]
    assert "/models/m is not a folder on this machine" in problems["4 bits"]


def test_a_run_that_was_interrupted_continues(tmp_path: Path) -> None:
    engines = Engines()
    engines.fails = "speculative_config"
    engines.interrupt_after = 2
    first = campaign(tmp_path, engines)
    with pytest.raises(KeyboardInterrupt):
        first.run(quick=True)
    assert "| baseline |" in write(first)
    engines.interrupt_after = None
    campaign(tmp_path, engines).run(quick=True)
    assert len(engines.measured) == 3  # nothing twice
    count = len(engines.measured)
    again = campaign(tmp_path, engines)
    again.run(quick=True)
    assert len(engines.measured) == count
    again.run(quick=True, retry=True)
    assert len(engines.measured) == count + 1  # the one that failed


def test_a_dtype_that_is_slow_here_is_not_quantized(tmp_path: Path) -> None:
    engines = Engines()
    engines.gain_of_bfloat16 = -300
    run = campaign(tmp_path, engines)
    run.run(quick=False)
    slow = {found.name: found.problem for found in run.rows if found.name.startswith("FP8 per")}
    reason = "needs bfloat16, which has 25% of the baseline's tokens/s here; --only measures it anyway"
    assert set(slow.values()) == {reason}
    assert len(slow) == 3
    assert not any("quantization" in options for options in engines.measured)
    campaign(tmp_path, engines).run(quick=False, only=["baseline", "bfloat16", "FP8 per channel (online)"])
    assert engines.measured[-1]["quantization"] == "fp8_per_channel"
    again = campaign(tmp_path, engines)
    again.run(quick=False)
    measured = next(found for found in again.rows if found.name == "FP8 per channel (online)")
    assert measured.problem is None


def test_a_dtype_that_pays_is_quantized_too(tmp_path: Path) -> None:
    engines = Engines()
    campaign(tmp_path, engines).run(quick=False)
    assert {options.get("quantization") for options in engines.measured} >= {"fp8_per_channel", "fp8_per_tensor"}


@pytest.mark.parametrize(("baseline_s", "limit_s"), [(40, 600), (800, 2400)])
def test_a_candidate_may_take_a_multiple_of_the_baseline(
    baseline_s: int, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines()
    # The clock is read when a candidate begins, in its step, and when it ends.
    clock = itertools.count(0, baseline_s // 2)
    monkeypatch.setattr("tune.campaign.time.monotonic", lambda: float(next(clock)))
    campaign(tmp_path, engines, limit=None).run(quick=True)
    assert engines.limits[0] == 1800
    assert set(engines.limits[1:]) == {limit_s}
    engines.limits.clear()
    campaign(tmp_path, engines, limit=60).run(quick=True, fresh=True)
    assert set(engines.limits) == {60}


def test_two_runs_do_not_measure_into_one_folder(tmp_path: Path) -> None:
    engines = Engines()
    refused: list[str] = []

    def measure(*arguments: Any) -> tuple[Figures, str | None]:
        with pytest.raises(LaunchError) as error:
            campaign(tmp_path, engines).run(quick=True)
        refused.append(str(error.value))
        return engines(*arguments)

    run = campaign(tmp_path, engines)
    run._measure = measure
    run.run(quick=True, only=["baseline"])
    assert refused == [
        f"Another process measures into {tmp_path}. Wait for it: two at a time would measure each other."
    ]


def test_the_copies_are_those_of_the_models_files(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    unfinished = tmp_path / "results" / ".8-bit-0.unfinished-x"
    unfinished.mkdir(parents=True)
    model = MODEL.model_copy(update={"model": str(tmp_path / "model")})

    def copies() -> set[str]:
        run = campaign(tmp_path / "results", Engines(), model)
        run.run(quick=True, only=["INT8", "4 bits"])
        assert [found.problem for found in run.rows] == [None, None]
        return {str(found.changes["model"]) for found in run.rows}

    run = campaign(tmp_path / "results", Engines(), model)
    run.run(quick=True, only=["baseline"])
    assert not list((tmp_path / "results").glob("*-bit-*")), "only those that are measured"
    first = copies()
    assert len(first) == 2
    assert not unfinished.exists(), "what a killed run has left"
    assert copies() == first
    os.utime(tmp_path / "model" / "config.json", (1, 1))
    assert copies().isdisjoint(first)


def test_a_copy_that_cannot_be_made_is_a_row_with_the_reason(tmp_path: Path) -> None:
    small_model(tmp_path / "model", vision_config={})
    model = MODEL.model_copy(update={"model": str(tmp_path / "model")})
    engines = Engines()
    run = campaign(tmp_path / "results", engines, model)
    run.run(quick=True, only=["baseline", "INT8"])
    assert [found.problem is None for found in run.rows] == [True, False]
    assert "only models of text can be quantized" in str(run.rows[1].problem)
    assert len(engines.measured) == 1


def test_the_time_left_is_that_of_candidates_that_ran_and_are_not_measured_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(campaign_module, "time", SimpleNamespace(monotonic=lambda: now))
    engines = Engines()
    engines.fails = "speculative_config"

    def measure(*arguments: Any) -> tuple[Figures, str | None]:
        nonlocal now
        figures, problem = engines(*arguments)
        now += 600 if problem is None else 20
        return figures, problem

    def run_and_read(*names: str) -> list[str]:
        output = io.StringIO()
        run = campaign(tmp_path, engines)
        run._measure, run._progress = measure, Progress(output)
        run.run(quick=False, only=names)
        return output.getvalue().splitlines()

    speculation = ["n-gram speculation, 2 tokens", "n-gram speculation, 4 tokens"]
    said = run_and_read("baseline", *speculation, "512 tokens a step", "2048 tokens a step")
    left = [line.partition("; about ")[2] for line in said if line.startswith("  ") and "min left" in line]
    assert left[-4:] == ["40 min left", "30 min left", "20 min left", "10 min left"]
    said = run_and_read("baseline", "512 tokens a step", "8192 tokens a step", "16 slots")
    assert (
        "  8192 tokens a step: 40 / 400 / 600 tokens/s with 1 / 16 / 64 streams, measured in 600 s; about 10 min left"
        in said
    )


def test_fresh_measures_again(tmp_path: Path) -> None:
    engines = Engines()
    campaign(tmp_path, engines).run(quick=True, only=["baseline"])
    campaign(tmp_path, engines).run(quick=True, only=["baseline"], fresh=True)
    assert len(engines.measured) == 2


def test_an_unknown_candidate_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no candidate x; there are: baseline, bfloat16"):
        campaign(tmp_path, Engines()).run(quick=True, only=["x"])


def test_the_report_has_table_chart_and_proposal(tmp_path: Path) -> None:
    run = campaign(tmp_path, Engines())
    run.run(quick=True)
    text = write(run)
    assert "For throughput: bfloat16 + n-gram speculation, by load: " in text
    assert "```yaml\n    options:\n" in text
    assert (tmp_path / "chart.svg").read_text().startswith("<svg ")
    assert text.split("\nTable:")[0] in (tmp_path / "report.md").read_text()


def test_the_page_keeps_what_is_around_the_results(tmp_path: Path) -> None:
    page = tmp_path / "tuning.md"
    page.write_text("before\n<!-- results: begin -->\nof another day\n<!-- results: end -->\nafter\n")
    run = campaign(tmp_path / "results", Engines())
    run.run(quick=True, all_aims=True)
    write_document(run, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- results: begin -->\n\nCPU: test")
    assert text.endswith("<!-- results: end -->\nafter\n")
    assert "of another day" not in text
    assert all(f"For {aim}: " in text for aim in Aim)
    assert (tmp_path / "tuning.svg").exists()
    page.write_text("no marks")
    with pytest.raises(LaunchError, match="has no lines"):
        write_document(run, page)


def test_the_results_have_a_place_in_the_documentation(tmp_path: Path) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    assert before.endswith("## The bundled model\n\n")
    page = tmp_path / "tuning.md"
    page.write_text(DOCUMENT.read_text())
    run = campaign(tmp_path / "results", Engines())
    run.run(quick=True, all_aims=True)
    write_document(run, page)
    assert page.read_text().startswith(f"{before}{BEGIN}\n\nCPU: test")
    assert page.read_text().endswith(f"{END}{after}")


def test_if_nothing_ran_the_reasons_are_printed(tmp_path: Path) -> None:
    engines = Engines()
    engines.fails = "dtype"
    run = campaign(tmp_path, engines)
    run.run(quick=True, only=["bfloat16"])
    assert write(run) == "Nothing could be measured.\nbfloat16: no kernel"
